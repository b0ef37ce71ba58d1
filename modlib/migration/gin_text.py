"""Bindings with where they come from, as the text of a gin file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modlib.migration.yaml_tree import Node


class Name(str):
    """A reference or macro that stands in a gin file as it is: `@GPT2`, `%LR`."""


@dataclass
class Bindings:
    """What a gin file will say.

    Args:
        macros: Name -> (value, where from).
        parameters: Dotted name -> (value, where from).
        notes: What is different or has no counterpart: (line, path, text).
    """

    macros: dict[str, tuple[Any, Node | None]] = field(default_factory=dict)
    parameters: dict[str, tuple[Any, Node | None]] = field(default_factory=dict)
    notes: list[tuple[int, str, str]] = field(default_factory=list)

    def bind(self, name: str, value: Any, node: Node | None = None) -> None:
        """Bind a parameter, or a macro where the name is upper case."""
        (self.macros if name.isupper() else self.parameters)[name] = value, node

    def note(self, node: Node, text: str) -> None:
        """Tell the user of one place of the old file."""
        if text and (node.line, node.path, text) not in self.notes:
            self.notes.append((node.line, node.path, text))

    def text(self, source: str) -> str:
        """The gin file.

        Args:
            source: Name of the YAML file, for the first line.
        """
        lines = [f"# Run: migrated from {source} by modlib migrate; behind each value is the line that it comes from."]
        if self.notes:
            lines += ["#", "# What is different here, or has no counterpart:"]
            lines += [f"#   line {line}, {path}: {text}" for line, path, text in sorted(self.notes)]
        lines += ["", *(_line(name, *value) for name, value in self.macros.items()), ""]
        lines += ["include 'tracking/default.gin'", ""]
        lines += [_line(name, *value) for name, value in self.parameters.items()]
        return "\n".join(lines) + "\n"


def _line(name: str, value: Any, node: Node | None) -> str:
    written = f"{name} = {_written(value)}"
    return written if node is None else f"{written}  # line {node.line}: {node.path}"


def _written(value: Any) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, list | tuple):
        inner = ", ".join(map(_written, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)
