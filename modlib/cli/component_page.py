"""docs/components.md: the catalogue as a page, made from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from modlib.components import PACKAGE, load_component

HEAD = """# Components

Everything a gin file can choose, by type. This page is made by `modlib list --markdown > docs/components.md` with
torch {torch}; a test fails when it is out of date. In a gin file a component is chosen by its name,
`train.optimizer = @AdamW`, and its parameters are bound as `AdamW.lr = 3e-4`. Parameters without a default must be
bound. Those that only the running process knows (marked "at run time") are passed by training and cannot be bound.
"""
_ARGUMENT = re.compile(r"^    (\*{0,2}\w+)(?: \([^)]*\))?: ?(.*)$")


def page(described: Iterable[Mapping[str, Any]]) -> str:
    """The whole page, from what `modlib list` says of every component."""
    import torch

    lines = [HEAD.format(torch=torch.__version__.partition("+")[0])]
    for kind, entries in groupby(described, key=lambda entry: entry["type"]):
        lines.append(f"## {kind}\n")
        for entry in entries:
            lines += _section(entry)
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(entry: Mapping[str, Any]) -> Iterator[str]:
    target = load_component(entry["name"]).target
    ours = entry["defined"].startswith(f"{PACKAGE.name}/")
    path = entry["defined"].rpartition(":")[0]
    where = f"[{path}](../{path})" if ours else f"`{target.__module__}.{entry['name']}`"  # type: ignore[union-attr]
    yield f"### {entry['name']}\n"
    yield f"`{entry['type']}/{entry['variant']}`, {where}\n"
    yield f"{entry['doc'] if ours else 'torch documents it.'}\n"
    described = argument_lines(target) if ours else {}
    rows = [
        (
            f"`{name}`",
            _cell(f"`{each['type']}`") if each["type"] else "",
            "" if each["required"] else f"`{_cell(each['default'])}`",
            _cell(described.get(name, "")),
        )
        for name, each in entry["parameters"].items()
    ]
    rows += [(f"`{name}`", "", "at run time", _cell(described.get(name, ""))) for name in entry["runtime_args"]]
    if rows:
        yield "| parameter | type | default | what it is |\n|---|---|---|---|"
        yield "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def argument_lines(target: Any) -> dict[str, str]:
    """What the docstring's Args section says of each argument, on one line each."""
    found: dict[str, str] = {}
    name = ""
    inside = False
    for line in inspect.cleandoc(target.__doc__ or "").splitlines():
        if not line.startswith(" ") and line.strip():
            inside = line.strip() == "Args:"
        elif inside and (match := _ARGUMENT.match(line)):
            name = match[1].lstrip("*")
            found[name] = match[2]
        elif inside and name and line.strip():
            found[name] = f"{found[name]} {line.strip()}"
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
