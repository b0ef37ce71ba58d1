"""`modlib list`: the catalogue of components."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modlib.cli.report import reported
from modlib.cli.table import print_table

if TYPE_CHECKING:
    from modlib.components import Component


def complete_name(incomplete: str) -> list[tuple[str, str]]:
    """Types and gin names that begin so, for the shell's completion."""
    from modlib.components import known_components

    known = known_components().values()
    words = {entry.type: f"all of type {entry.type}" for entry in known}
    words |= {entry.name: entry.doc or entry.selector for entry in known}
    return [(word, text) for word, text in sorted(words.items()) if word.lower().startswith(incomplete.lower())]


def command(
    pattern: Annotated[
        str, typer.Argument(help="Part of a type, variant or name, in any case.", autocompletion=complete_name)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    as_page: Annotated[bool, typer.Option("--markdown", help="docs/components.md on stdout.")] = False,
) -> None:
    """List the components that a gin file can choose, with their parameters, types and defaults."""
    with reported():
        found = describe(pattern)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    if as_page:
        from modlib.cli.configs.component_page import page

        print(page(found), end="")
        return
    if not found:
        from modlib.components import known_components
        from modlib.config.suggestions import did_you_mean

        hint = did_you_mean(pattern, known_components()) or " `modlib list` shows all"
        print(f"no component matches {pattern!r}.{hint}", file=sys.stderr)
        raise typer.Exit(1)
    rows = []
    for one in found:
        parameters = "\n".join(_parameter_line(name, each) for name, each in one["parameters"].items())
        rows.append([one["name"], f"{one['type']}/{one['variant']}", parameters, one["doc"], one["defined"]])
    print_table(["name", "type/variant", "parameters", "what it is", "defined"], rows)


def _parameter_line(name: str, parameter: dict[str, Any]) -> str:
    kind = f": {parameter['type']}" if parameter["type"] else ""
    return f"{name}{kind}" if parameter["required"] else f"{name}{kind} = {parameter['default']}"


def describe(pattern: str) -> list[dict[str, Any]]:
    """The matching components as plain data, by type and name; an exact name or type matches only itself."""
    from modlib.components import known_components

    known = sorted(known_components().values(), key=lambda entry: (entry.type, entry.name))
    word = pattern.lower()
    exact = [entry for entry in known if word in (entry.name.lower(), entry.type.lower(), entry.variant.lower())]
    matching = exact or [entry for entry in known if word in f"{entry.type}/{entry.variant} {entry.selector}".lower()]
    return [description for entry in matching if (description := _described(entry)) is not None]


def _described(entry: Component) -> dict[str, Any] | None:
    from modlib.components import load_component
    from modlib.config.signatures import default_text, signature_of
    from modlib.runtime.errors import ConfigError

    try:
        loaded = load_component(entry.name)
    except (ConfigError, ImportError) as error:  # this torch lacks the class, or an extra is not installed
        print(f"{entry.selector} is left out: {error}", file=sys.stderr)
        return None
    signature = signature_of(loaded)
    return {
        "type": loaded.type,
        "variant": loaded.variant,
        "name": loaded.name,
        "selector": loaded.selector,
        "doc": loaded.doc,
        "defined": loaded.place,
        "runtime_args": list(loaded.runtime_args),
        "parameters": {
            name: {
                "type": parameter.type_text,
                "required": parameter.required,
                "default": None if parameter.required else default_text(parameter.default),
            }
            for name, parameter in signature.parameters.items()
        },
    }
