"""Writes a resolved run as a gin file that means exactly that run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from modlib.config.program import Program
from modlib.config.resolving import Setting
from modlib.config.values import (
    Items,
    Literal,
    MacroUse,
    Node,
    Operation,
    Pairs,
    Reference,
    format_value,
    is_literal,
    object_name,
    walk,
)

HEADER = """\
# The complete configuration of a run: every parameter of every component, defaults included.
# It is a gin file: give it to --gin_file, and change it with --gin_param.
"""


def render(settings: Sequence[Setting], program: Program, imports: Iterable[str]) -> str:
    """The text of config.gin: imports, knobs, then a block for each component.

    A macro stays a knob where every use of it is a plain `%NAME`. One that takes part in arithmetic is replaced by its
    value everywhere: changing it alone would no longer change what was computed from it.
    """
    kept = _knobs(settings, program)
    parts = [HEADER]
    if imports:
        parts.append("".join(f"import {module}\n" for module in imports))
    if kept:
        parts.append(
            "".join(f"{name} = {_node_text(program.macros[name][-1].value, program, kept)}\n" for name in kept)
        )
    for instance, group in groupby(settings, key=lambda setting: setting.instance):
        parts.append(_block(str(instance), list(group), program, kept))
    return "\n".join(parts)


def _block(instance: str, settings: Sequence[Setting], program: Program, kept: Sequence[str]) -> str:
    lines = []
    for setting in settings:
        if setting.node is not None and _keeps_macros(setting.node, kept):
            lines.append(f"    {setting.parameter} = {_node_text(setting.node, program, kept)}\n")
        elif setting.is_default and setting.hides:
            lines.append(f"    # {setting.parameter} = {setting.text} (default; a secret, which is not written down)\n")
        elif is_literal(setting.value) or setting.node is not None:
            lines.append(f"    {setting.parameter} = {format_value(setting.value)}\n")
        else:
            lines.append(f"    # {setting.parameter} = {object_name(setting.value)} (default; not a gin value)\n")
    if all(line.lstrip().startswith("#") for line in lines):
        return f"# {instance}:\n" + "".join(
            f"#{line[1:]}" if line.startswith("    #") else line for line in lines
        ).replace("#   # ", "#     ")
    return f"{instance}:\n" + "".join(lines)


def _keeps_macros(node: Node, kept: Sequence[str]) -> bool:
    return any(isinstance(part, MacroUse) and part.name in kept for part in walk(node))


def _node_text(node: Node, program: Program, kept: Sequence[str]) -> str:
    """A node as written, with the macros that are kept and the values of all else."""
    match node:
        case MacroUse(name=name) if name in kept:
            return f"%{name}"
        case Items(kind=kind, items=items):
            inside = ", ".join(_node_text(item, program, kept) for item in items)
            if kind is list:
                return f"[{inside}]"
            return f"({inside}{',' if len(items) == 1 else ''})"
        case Pairs(items=items):
            pairs = (f"{_node_text(key, program, kept)}: {_node_text(item, program, kept)}" for key, item in items)
            return f"{{{', '.join(pairs)}}}"
        case Literal() | Reference() | MacroUse() | Operation():
            return format_value(program.value_of(node))
    raise AssertionError(node)


def _knobs(settings: Iterable[Setting], program: Program) -> list[str]:
    """The macros that can stay, in the order of their definition."""
    nodes = [setting.node for setting in settings if setting.node is not None]
    used = {name for node in nodes for name in program.macros_in(node)}
    nodes += [program.macros[name][-1].value for name in used]
    computed = {
        name for node in nodes for part in walk(node) if isinstance(part, Operation) for name in program.macros_in(part)
    }
    return [name for name in program.macros if name in used - computed]
