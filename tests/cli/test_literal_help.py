"""Every bracket of a help text is in the help that is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer import rich_utils

from modlib.cli.main import app
from modlib.cli.start.launch import app as launch_app


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """All commands below one, loaded."""
    yield name, command
    context = typer.Context(command)
    for child in command.list_commands(context) if hasattr(command, "list_commands") else ():
        _, loaded, _ = command.resolve_command(context, [child])
        yield from commands(f"{name} {child}", loaded)


FOUND = dict(
    [*commands("modlib", typer.main.get_command(app)), *commands("launch.py", typer.main.get_command(launch_app))]
)


def test_all_commands_are_looked_at() -> None:
    assert {"launch.py", "modlib sweep", "modlib data pack"} <= set(FOUND)
    assert len(FOUND) > 25


@pytest.mark.parametrize("name", FOUND)
def test_brackets_are_shown(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 4000)
    command = FOUND[name]
    texts = [command.help, *(getattr(param, "help", None) for param in command.params)]
    if hasattr(command, "table"):
        texts += [line for _, line in command.table.values()]
    wanted = [part for text in texts if text for part in re.findall(r"\S*\[[^\]]*\]\S*", text)]
    monkeypatch.setenv("COLUMNS", "4000")
    command.main(["--help"], prog_name=name, standalone_mode=False)
    shown = capsys.readouterr().out
    assert len(shown) > 100
    assert [part for part in wanted if part not in shown] == []
