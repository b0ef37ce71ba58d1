"""A small project of a user: components in a module of its own, and gin files, in a folder of a test."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from modlib.config import Config, load
from modlib.runtime.errors import ConfigError

_numbers = itertools.count()

COMPONENTS = '''
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modlib.components import component


@component("run", "{m}", name="{m}_run", not_science=("log_every", "subscribers"))
@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the test."""

    model: Callable[..., Any]
    evaluators: Sequence[Any] = ()
    optimizer: Callable[..., Any] | None = None
    subscribers: Sequence[Callable[..., Any]] = ()
    steps: int = 10
    log_every: int = 1


@component("model", "{m}", name="Model", runtime_args=("device",), non_finite=("anything",))
class Model:
    """A model of the test."""

    def __init__(
        self,
        dim: int,
        *,
        device: str = "cpu",
        ffn_dim: int | None = None,
        dropout: float = 0.0,
        activation: Literal["gelu", "relu"] = "gelu",
        betas: tuple[float, float] = (0.9, 0.999),
        norm: Callable[..., Any] | None = None,
        layers: list[int] = [],
        path: str | Path = "",
        options: dict[str, Any] | None = None,
        bias: bool = True,
        anything=None,
    ) -> None:
        self.__dict__.update({{name: value for name, value in locals().items() if name != "self"}})


@component("norm", "{m}_norm", name="Norm")
class Norm:
    """A norm of the test."""

    def __init__(self, eps: float = 1e-5, **extra: Any) -> None:
        self.eps = eps
        self.extra = extra


@component("evaluator", "{m}", name="Eval")
class Eval:
    """An evaluator of the test."""

    def __init__(self, name: str = "", data: Callable[..., Any] | None = None, depth: int = 0) -> None:
        self.name, self.data, self.depth = name, data() if data else None, depth


@component("dataset", "{m}", name="Data")
class Data:
    """A dataset of the test."""

    def __init__(self, path: str, length: int = 3) -> None:
        self.path, self.length = path, length


@component("results_subscriber", "{m}", name="Log")
class Log:
    """A subscriber of the test."""

    def __init__(self, every: int = 1) -> None:
        self.every = every
'''


class Project:
    """A folder with `<module>.py` and gin files; the module's components are gone after the test."""

    def __init__(self, folder: Path, source: str = COMPONENTS) -> None:
        self.folder = folder
        self.module = f"project_{next(_numbers)}"
        self.run = f"{self.module}_run"
        (folder / f"{self.module}.py").write_text(
            source.replace("{{", "\0").replace("{m}", self.module).replace("\0", "{").replace("}}", "}")
        )

    def write(self, text: str, name: str = "a.gin", *, whole: bool = True) -> Path:
        """Write a gin file; `whole` adds the import, and a model with a dim."""
        path = self.folder / name
        head = f"import {self.module}\n{self.run}.model = @Model\nModel.dim = 8\n" if whole else ""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + textwrap.dedent(text).replace("RUN", self.run))
        return path

    def load(self, text: str = "", params: Sequence[str] = (), *, whole: bool = True) -> Config:
        return load([self.write(text, whole=whole)], [param.replace("RUN", self.run) for param in params])

    def problems(self, text: str = "", params: Sequence[str] = (), *, whole: bool = True) -> list[str]:
        """The problems of a gin file, paths relative to the folder; its own lines begin at 1."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, params, whole=whole)
        return [one.replace(f"{self.folder}/", "").replace(self.run, "RUN") for one in caught.value.problems]

    def forget(self) -> None:
        sys.modules.pop(self.module, None)
        if str(self.folder) in sys.path:
            sys.path.remove(str(self.folder))
