"""modlib: gin-config experiments for training language models on HPC clusters."""

import importlib
from typing import TYPE_CHECKING, Any

from modlib.moved import understand_old_names
from modlib.version import VERSION as __version__

if TYPE_CHECKING:
    from modlib.door import build as build
    from modlib.door import generate as generate
    from modlib.door import load_checkpoint as load_checkpoint
    from modlib.door import load_config as load_config
    from modlib.door import load_run as load_run
    from modlib.door import open_dataset as open_dataset
    from modlib.door import train as train


__all__ = ["__version__", "build", "generate", "load_checkpoint", "load_config", "load_run", "open_dataset", "train"]

understand_old_names()


def __getattr__(name: str) -> Any:
    """The functions above, imported when one is used: `import modlib` alone imports nothing."""
    if name in __all__ and not name.startswith("_"):
        return getattr(importlib.import_module("modlib.door"), name)
    raise AttributeError(f"module 'modlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
