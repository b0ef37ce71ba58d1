"""Groups of commands whose modules are imported when they are used, not to print the help."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommands(TyperGroup):
    """The commands of a table. A subclass gives the table.

    Its rows are name: (module with a function `command` or a typer app `app`, what the help says).
    """

    table: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the help's line; the command itself is imported by resolve_command."""
        if cmd_name not in self.table:
            return None
        return TyperCommand(cmd_name, help=self.table[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.table:
            command = load_command(name, *self.table[name])
        return name, command, rest


def load_command(
    name: str, module_name: str, help_line: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
) -> Any:
    """Import a command.

    Args:
        name: What it is called.
        module_name: Has a function `command` or a typer app `app`.
        help_line: What the help says.
        wrap: Makes the command of the module's function; None takes it as it is.
    """
    module = importlib.import_module(module_name)
    command_app = getattr(module, "app", None)
    if command_app is None:
        command_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        command_app.command(name, help=help_line)(module.command if wrap is None else wrap(module.command))
    command = typer.main.get_command(command_app)
    command.name = name
    return command
