"""Lines of metrics.jsonl for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modlib.launching.run_state import RunState
from modlib.runtime.units import format_seconds
from modlib.tracking.lines import SHORT_NAMES, format_value, split_evaluations


def progress(record: Mapping[str, Any], state: RunState) -> list[str]:
    """A line of metrics.jsonl for people: one line for training, one per evaluator."""
    values = {name: float(value) for name, value in record.items() if "/" in name and _is_number(value)}
    training, evaluations = split_evaluations(values)
    step = f"step={record.get('step')}" + (f"/{state.num_steps}" if state.num_steps else "")
    lines = []
    if training:
        eta = f" eta={format_seconds(state.eta_s).replace(' ', '')}" if state.eta_s is not None else ""
        pairs = [f"{SHORT_NAMES.get(name, name)}={format_value(name, value)}" for name, value in training.items()]
        lines.append(f"train {step} {' '.join(pairs)}{eta}")
    for name, metrics in evaluations.items():
        pairs = [f"{kind}={format_value(kind, value)}" for kind, value in metrics.items()]
        lines.append(f"eval {step} name={name} {' '.join(pairs)}")
    return lines


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("NaN", "Infinity", "-Infinity")
    return isinstance(value, (int, float)) and not isinstance(value, bool)
