"""What a gin file is made of: bindings, macros, imports and includes, each with its place."""

from __future__ import annotations

from dataclasses import dataclass

from modlib.config.values import Node


@dataclass(frozen=True)
class Origin:
    """Where a statement stands.

    Args:
        source: The file as the user knows it, or `--gin_param #1`.
        line: Line in the file; None for a parameter of the command line.
        order: Position among all statements of the run.
    """

    source: str
    line: int | None = None
    order: int = 0

    @property
    def from_command_line(self) -> bool:
        """Whether it is a --gin_param."""
        return self.line is None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Binding:
    """`scope/selector.parameter = value`."""

    scope: tuple[str, ...]
    selector: str
    parameter: str
    value: Node
    origin: Origin


@dataclass(frozen=True)
class Macro:
    """`NAME = value`."""

    name: str
    value: Node
    origin: Origin


@dataclass(frozen=True)
class Import:
    """`import a.b`, or `from a import b`."""

    module: str
    origin: Origin


@dataclass(frozen=True)
class Include:
    """`include 'file.gin'`."""

    name: str
    origin: Origin


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where; `key` is what the broken statement would have bound."""

    origin: Origin
    text: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


Statement = Binding | Macro | Import | Include
