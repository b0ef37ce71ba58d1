"""What a run shows at its end: kept in memory, and for earlier attempts from metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from modlib.tracking.jsonl import JSONL
from modlib.tracking.messages import MetricsLogged
from modlib.tracking.results import Results, best_evaluations

LOSS = "val/validation/loss"


def written(folder: Path) -> Path:
    jsonl = JSONL(run_path=folder)
    for step, loss in [(100, 4.0), (200, 3.5), (300, math.nan), (400, 3.6)]:
        jsonl.receive(MetricsLogged(step, 1, 1.0, 1, {"train/loss": step / 1000}))
        jsonl.receive(MetricsLogged(step, 1, 1.0, 1, {LOSS: loss, "val/code/loss": 9.0}))
    jsonl.close()
    return folder


def test_the_best_of_metrics_jsonl(tmp_path: Path) -> None:
    assert best_evaluations(written(tmp_path)) == {LOSS: (3.5, 200), "val/code/loss": (9.0, 100)}
    assert best_evaluations(tmp_path, 100) == {LOSS: (4.0, 100), "val/code/loss": (9.0, 100)}
    assert best_evaluations(tmp_path / "nowhere") == {}


def test_an_attempt_begins_with_what_the_earlier_ones_left(tmp_path: Path) -> None:
    results = Results.until(written(tmp_path), 200)
    assert results.values == {"train/loss": 0.2, LOSS: 3.5, "val/code/loss": 9.0}
    results.add(210, {"train/loss": 0.1, "throughput/tokens_per_s": 100.0})
    results.add(220, {"train/loss": 0.3, "throughput/tokens_per_s": 300.0})
    results.add(220, {LOSS: 3.4, "throughput/tokens_per_s": 0.0})
    assert results.best[LOSS] == (3.4, 220)
    assert results.tokens_per_s == pytest.approx(150.0)  # twice as many steps of equal size in the time of one
    assert (results.values["train/loss"], results.values[LOSS]) == (0.3, 3.4)
    assert Results.until(tmp_path / "nowhere") == Results()


def test_values_of_other_types_do_not_count(tmp_path: Path) -> None:
    lines = [{"step": 4, LOSS: "low", "train/loss": []}, {"step": "4", "train/loss": 1.0}, {"step": 8, LOSS: 2.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = Results.until(tmp_path)
    assert (results.values, results.best) == ({LOSS: 2.5}, {LOSS: (2.5, 8)})


def test_there_and_back() -> None:
    results = Results({"train/loss": math.nan}, {LOSS: (3.5, 200)}, 12.5)
    again = Results.of(json.loads(json.dumps(results.to_json())))
    assert (again.best, again.tokens_per_s) == (results.best, 12.5)
    assert math.isnan(again.values["train/loss"])
