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
Classes of torch itself are described by the first words of torch's own documentation, which the link leads to.
"""
_TORCHS_MODULES = {"optimizer": "torch.optim", "scheduler": "torch.optim.lr_scheduler", "layer_norm": "torch.nn"}
_TORCHS_PAGE = "[{0}](https://docs.pytorch.org/docs/stable/generated/{0}.html)"
_HEADER = re.compile(r"(Args|Returns|Raises|Attributes):$|Source: ")
_NOTES = {
    "scheduler": "Stepped once after every optimizer step, which is what torch's own mean by an epoch.",
    "layer_norm": "From (..., size) to the same shape and type, computed in at least float32; models give the size.",
}
_ROLE = re.compile(r":\w+:`~?([^`<]+)(?: <[^`]*)?`")
_REFERENCE = re.compile(r"`([^`]+)`_+")
_ARGUMENT = re.compile(r"^    (\*{0,2}\w+)(?: \([^)]*\))?: ?(.*)$")


def page(described: Iterable[Mapping[str, Any]]) -> str:
    """The whole page, from what `modlib list` says of every component."""
    import torch

    lines = [HEAD.format(torch=torch.__version__.partition("+")[0])]
    for kind, entries in groupby(described, key=lambda entry: entry["type"]):
        lines.append(f"## {kind}\n")
        lines += [f"{_NOTES[kind]}\n"] if kind in _NOTES else []
        for entry in entries:
            lines += _section(entry)
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(entry: Mapping[str, Any]) -> Iterator[str]:
    target = load_component(entry["name"]).target
    path = entry["defined"].rpartition(":")[0]
    torchs = target.__module__.startswith("torch.")  # type: ignore[union-attr]
    if torchs:
        where = _TORCHS_PAGE.format(f"{_TORCHS_MODULES[entry['type']]}.{entry['name']}")
    else:
        where = f"[{path}](../{path})" if path.startswith(f"{PACKAGE.name}/") else f"`{path}`"
    yield f"### {entry['name']}\n"
    yield f"`{entry['type']}/{entry['variant']}`, {where}\n"
    yield f"{entry['doc']}\n"
    if not torchs and (text := body(target)):
        yield f"{text}\n"
    described = _torchs_arguments(target) | ({} if torchs else argument_lines(target))
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
    if not torchs:
        for error, reason in argument_lines(target, "Raises:").items():
            yield f"Raises `{error}`: {reason}\n"
        if source := _source(target):
            yield f"Source: {source}\n"


def body(target: Any) -> str:
    """What the docstring says between its first line and its first section."""
    lines = inspect.cleandoc(target.__doc__ or "").splitlines()[1:]
    end = next((number for number, line in enumerate(lines) if _HEADER.match(line)), len(lines))
    return "\n".join(lines[:end]).strip()


def argument_lines(target: Any, section: str = "Args:") -> dict[str, str]:
    """What the docstring's section says of each argument (or error), on one line each."""
    found: dict[str, str] = {}
    name = ""
    inside = False
    for line in inspect.cleandoc(target.__doc__ or "").splitlines():
        if not line.startswith(" ") and line.strip():
            inside = line.strip() == section
        elif inside and (match := _ARGUMENT.match(line)):
            name = match[1].lstrip("*")
            found[name] = match[2]
        elif inside and name and line.strip():
            found[name] = f"{found[name]} {line.strip()}"
    return found


def _source(target: Any) -> str:
    text = inspect.cleandoc(target.__doc__ or "").partition("\nSource: ")[2]
    return " ".join(text.partition("\n\n")[0].split())


def _torchs_arguments(target: Any) -> dict[str, str]:
    """The first sentence of what torch says of each argument of its class, or of ours that is derived from it."""
    kinds = (kind for kind in getattr(target, "__mro__", ()) if kind.__module__.startswith("torch."))
    found = {}
    for name, text in argument_lines(next(kinds, None)).items():
        plain = _REFERENCE.sub(r"\1", _ROLE.sub(r"`\1`", text.partition(" .. ")[0]).replace("``", "`"))
        found[name] = " ".join(re.split(r"(?<!e\.g)(?<!i\.e)\. ", plain)[0].split()).rstrip(".")
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
