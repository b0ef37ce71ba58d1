"""What somebody chose for a run, out of all that it consists of: what to look at when runs are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from modlib.config.program import Program
from modlib.config.resolving import Setting
from modlib.config.values import ValueProblem, format_value, plain


def chosen_values(settings: Iterable[Setting], program: Program) -> dict[str, Any]:
    """What was set for a run: name -> number, text, True, False or None; anything else as gin text.

    First what the command line sets, then the macros, learning rates, and what else the gin files set without a macro.
    """
    macros = {}
    for name, definitions in program.macros.items():
        with contextlib.suppress(ValueProblem):
            macros[name] = plain(program.value_of(definitions[-1].value))
    values = {one.name: plain(one.value) for one in settings if not one.is_default}
    given = [name for name, definitions in program.macros.items() if definitions[-1].origin.from_command_line]
    given += [one.name for one in settings if any(origin.startswith("--") for origin in one.origins)]
    rates = [one.name for one in settings if one.parameter == "lr" and not one.is_default]
    plainly = [one.name for one in settings if one.node is not None and not program.macros_in(one.node)]
    found = macros | values
    return {name: _simple(found[name]) for name in dict.fromkeys([*given, *macros, *rates, *plainly]) if name in found}


def _simple(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else format_value(value)
