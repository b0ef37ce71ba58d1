"""What a user's module gives to LambdaLR and MultiplicativeLR: a function of the step, as a component."""

from __future__ import annotations

from modlib.components import component


@component("function", "halving", runtime_args=("step",))
def halving(step: int) -> float:
    """Half after ten steps, a third after twenty."""
    return 1 / (1 + step / 10)
