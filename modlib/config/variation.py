"""One parameter of a run that a person could change next, as a binding that works."""

from __future__ import annotations

from modlib.config.config import Config
from modlib.config.resolving import Setting
from modlib.config.values import Literal, MacroUse


def variation(config: Config) -> str | None:
    """A --gin_param that makes another experiment of this one: half the learning rate, else another seed.

    It binds the macro where the value comes from one, since a macro that nothing reads any more is an error.

    Args:
        config: The run's.
    """
    for parameter in ("lr", "seed"):
        for setting in config.settings:
            if setting.parameter != parameter or setting.name not in config.science:
                continue
            name, value = _name(setting, config), _another(setting.value)
            if name is not None and value is not None:
                return f"{name}={value}"
    return None


def _name(setting: Setting, config: Config) -> str | None:
    """What to bind for the parameter; None where its value is computed."""
    name, node = setting.name, setting.node
    while isinstance(node, MacroUse):
        name, definitions = node.name, config.program.macros.get(node.name, [])
        if not definitions:  # a constant
            return None
        node = definitions[-1].value
    return name if node is None or isinstance(node, Literal) else None


def _another(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value > 0:
        return f"{value / 2:.3g}"
    return str(value + 1) if isinstance(value, int) else None
