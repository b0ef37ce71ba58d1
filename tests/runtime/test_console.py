"""What others wrote (paths, names, SLURM's words) is printed as it is: brackets are no styles."""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from modlib.runtime.console import PlainConsole

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "modlib").rglob("*.py"))
ODD = ("r[/y]/q", "r[a]", "[bold]x", ":smile:", "x[/]", "[link=y]z")


@pytest.mark.parametrize("text", ODD)
def test_brackets_and_colons_are_kept(text: str) -> None:
    console = PlainConsole(file=io.StringIO(), width=100)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    console.print(table)
    console.print(Panel(text, title=Text(text)))
    assert console.file.getvalue().count(text) == 6  # type: ignore[attr-defined]


def problems(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where a text could be read as markup."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "rich" and "print" in {one.name for one in node.names}:
            yield node.lineno, "rich.print reads markup; use PlainConsole().print"
        if isinstance(node, ast.ClassDef) and any(_name(one) == "Console" for one in node.bases):
            yield node.lineno, "derive from PlainConsole"
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        match _name(node.func):
            case "Console":
                yield node.lineno, "use PlainConsole"
            case "from_markup" | "render":
                if isinstance(node.func, ast.Attribute):
                    yield node.lineno, f"{_name(node.func)} reads markup; use Text"
            case "TextColumn" if not (isinstance(given.get("markup"), ast.Constant) and not given["markup"].value):
                yield node.lineno, "TextColumn(..., markup=False)"
            case "Panel":
                for title in ("title", "subtitle"):
                    if isinstance(given.get(title), ast.Constant | ast.JoinedStr):
                        yield node.lineno, f"Panel reads markup in its {title}; give a Text"
        if isinstance(given.get("markup"), ast.Constant) and given["markup"].value:
            yield node.lineno, "markup=True"


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_text_of_the_package_is_printed_as_markup() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        if path.name != "console.py" and "rich" in (source := path.read_text())
        for line, what in problems(ast.parse(source))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "Console().print(path)",
        "rich.console.Console(stderr=True)",
        "class Mine(Console): pass",
        "from rich import print",
        "Text.from_markup(x)",
        "TextColumn('x')",
        "Panel(x, title=f'{name}')",
        "console.print(x, markup=True)",
    ],
)
def test_the_check_sees(line: str) -> None:
    assert len(list(problems(ast.parse(line)))) == 1
