"""Old names of components and parameters, so that gin files and records written with them go on working."""

from __future__ import annotations

import re
from collections.abc import Mapping

from modlib.components import Rename, present_name, renamed_parameters, renames

REFERENCE = re.compile(r"@((?:\w+/)*)((?:\w+\.)?)([A-Za-z_]\w*)")


def component_rename(name: str) -> Rename | None:
    """What a component that had this name is called now, and since when; None where the name is no old one."""
    table = renames()
    return Rename(name, present_name(name), table[name].since) if name in table else None


def parameter_rename(component: str, parameter: str) -> Rename | None:
    """The same for a parameter.

    Args:
        component: By its present name.
        parameter: Its name in the gin file.
    """
    table = renamed_parameters(component)
    if parameter not in table:
        return None
    name = parameter
    for _ in table:
        name = table[name].new.rpartition(".")[2] if name in table else name
    return Rename(f"{component}.{parameter}", f"{component}.{name}", table[parameter].since)


def current_parameters(values: Mapping[str, str]) -> dict[str, str]:
    """Values of a configuration by dotted name, in present names: those of the keys, and references in the values.

    Args:
        values: As gin texts, from a run folder or a lock.
    """
    if not renames():
        return dict(values)
    return {_current_name(name): REFERENCE.sub(_current_reference, value) for name, value in values.items()}


def _current_name(name: str) -> str:
    owner, _, parameter = name.rpartition(".")
    scope, slash, component = owner.rpartition("/")
    component = present_name(component)
    found = parameter_rename(component, parameter)
    return f"{scope}{slash}{component}.{found.new.rpartition('.')[2] if found else parameter}"


def _current_reference(match: re.Match[str]) -> str:
    return f"@{match[1]}{match[2]}{present_name(match[3])}"
