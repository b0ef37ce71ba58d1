"""Sweeps with results, without training them; and whether a picture shows something."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modlib.launching.sweep import Sweep, plan_sweep

VALIDATION = "val/validation/loss"


def made(folder: Path, loss: Callable[[Mapping[str, str]], float | str], *flags: str, **options: Any) -> Sweep:
    """A sweep whose runs have left what trained ones leave.

    Args:
        folder: Where runs live.
        loss: Of a point's values: its lowest validation loss, seen at step 20 of 30; or its state.
        flags: Of the sweep.
        options: Of plan_sweep.
    """
    sweep = plan_sweep(
        flags, ["debug/tiny.gin"], [], runs_dir=folder, ranks_of=lambda config: 1, **{"name": "s", **options}
    )
    sweep.write()
    for point in sweep.points:
        value = loss(point.values)
        if value == "missing":
            continue
        point.run.create()
        if isinstance(value, str):
            point.run.update(status=value, exit_code=5)
            continue
        lines = [(10, value + 1), (20, value), (30, value + 0.25)]
        rows = [{"step": step, "tokens": step, "time": 0.0, "attempt": 1, VALIDATION: one} for step, one in lines]
        point.run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        point.run.update(status="finished", step=30, exit_code=0)
    return sweep


def is_a_drawing(path: Path, least_share: float = 0.01) -> bool:
    """Whether a PNG is of a useful size and not all of one color."""
    from PIL import Image

    with Image.open(path) as image:
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
        width, height = image.size
    drawn = 1 - sum(count for count, color in colors if color == (255, 255, 255)) / (width * height)
    return bool(width > 600 and height > 400 and drawn > least_share and len(colors) > 10)
