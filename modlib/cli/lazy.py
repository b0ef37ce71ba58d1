"""Groups of commands whose modules are imported when they are used, not to print the help."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from modlib.cli.literal_help import LiteralHelp

SETTINGS = {"token_normalize_func": lambda name: name.replace("-", "_")}
"""Of every typer app, as its context_settings: `--gin-file` is `--gin_file`, and so on for all options."""


class LazyCommands(TyperGroup):
    """The commands of a table. A subclass gives the table.

    Its rows are name: (module with a function `command` or a typer app `app`, what the help says).
    """

    table: ClassVar[Mapping[str, tuple[str, str]]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """What people may type although it is no command here, and what to type instead."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # stand-ins with the help's lines; the commands themselves are imported by resolve_command
        self.commands = {name: TyperCommand(name, help=line) for name, (_, line) in sorted(self.table.items())}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if word not in self.table and not ctx.resilient_parsing:
            meant = difflib.get_close_matches(word, [*self.table, *self.elsewhere], 1)
            if meant and meant[0] in self.elsewhere:
                ctx.fail(f"No such command {word!r}; {self.elsewhere[meant[0]]}")
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
        function = module.command if wrap is None else wrap(module.command)
        command_app.command(name, help=help_line, cls=LiteralHelp)(function)
    command = typer.main.get_command(command_app)
    command.name = name
    return command
