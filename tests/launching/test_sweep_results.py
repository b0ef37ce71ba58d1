"""What came out of a sweep."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modlib.launching.sweep_results import (
    best_result,
    choose_metric,
    is_seed,
    over_seeds,
    results,
    state_of,
    usual_goal,
    value_of,
    why,
)
from modlib.runtime.errors import ConfigError
from tests.launching.sweeps import VALIDATION, made


def test_each_point_has_its_state_and_the_last_and_best_value(tmp_path: Path) -> None:
    sweep = made(tmp_path, lambda v: {"0": 3.0, "1": "failed", "2": "missing", "3": 2.0}[v["SEED"]], "SEED=[0,1,2,3]")
    found = results(sweep, VALIDATION, "min")
    assert [(one.state, one.exit_code, one.step, one.last, one.best, one.best_step) for one in found] == [
        ("finished", 0, 30, 3.25, 3.0, 20),
        ("failed", 5, None, None, None, None),
        ("missing", None, None, None, None, None),
        ("finished", 0, 30, 2.25, 2.0, 20),
    ]
    assert best_result(found, "min") is found[3]
    highest = results(sweep, VALIDATION, "max")
    assert [one.best for one in highest] == [4.0, None, None, 3.0]
    assert best_result(highest, "max") is highest[0]
    assert best_result(found[1:3], "min") is None


def test_values_that_are_not_finite_are_never_the_best(tmp_path: Path) -> None:
    sweep = made(tmp_path, lambda values: 3.0, "SEED=[0]")
    with sweep.points[0].run.metrics_path.open("a") as file:
        for value in ("-Infinity", "NaN"):
            file.write(json.dumps({"step": 31, "tokens": 1, "time": 0.0, "attempt": 1, VALIDATION: value}) + "\n")
    (found,) = results(sweep, VALIDATION, "min")
    assert found.best == 3.0
    assert found.last is not None
    assert math.isnan(found.last)


def test_the_metric_is_the_one_asked_for_or_the_usual_one(tmp_path: Path) -> None:
    sweep = made(tmp_path, lambda values: 3.0, "SEED=[0,1]")
    assert choose_metric(sweep, None) == VALIDATION
    path = sweep.points[1].run.metrics_path
    path.write_text(path.read_text().replace(VALIDATION, "val/code/accuracy"))
    assert choose_metric(sweep, "val/code/accuracy") == "val/code/accuracy"
    with pytest.raises(ConfigError) as caught:
        choose_metric(sweep, "val/code")
    assert str(caught.value) == (
        "--metric (val/code) must be a metric of the runs; they have val/code/accuracy, val/validation/loss"
    )
    for point in sweep.points:
        point.run.metrics_path.write_text('{"step": 1, "train/loss": 1.0, "val/b/loss": 2.0}\n')
    assert choose_metric(sweep, None) == "val/b/loss"
    sweep.points[0].run.metrics_path.write_text('{"step": 1, "train/loss": 1.0}\n')
    sweep.points[1].run.metrics_path.unlink()
    assert choose_metric(sweep, None) == "train/loss"
    sweep.points[0].run.metrics_path.unlink()
    assert choose_metric(sweep, None) == VALIDATION
    with pytest.raises(ConfigError, match=r"which have none yet; run the sweep first"):
        choose_metric(sweep, "train/loss")


def test_the_goal_follows_the_metric() -> None:
    assert usual_goal("val/validation/loss") == usual_goal("val/validation/perplexity") == "min"
    assert usual_goal("val/shapes/caption_accuracy") == usual_goal("throughput/tokens_per_s") == "max"


def test_a_run_whose_process_is_gone_has_died() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = {"status": "running", "host": socket.gethostname(), "pid": gone.pid}
    assert state_of(record) == "died"
    assert state_of({**record, "pid": os.getpid()}) == "running"
    assert state_of({**record, "host": "elsewhere"}) == "running"
    assert state_of({"status": "created"}) == state_of({}) == "missing"


@pytest.mark.parametrize(
    ("code", "words"),
    [(5, "non-finite numbers, exit code 5"), (1, "unexpected error, exit code 1"), (-9, "killed by SIGKILL"),
     (-99, "killed by signal 99"), (None, "no exit code")],
)  # fmt: skip
def test_exit_codes_in_words(code: int | None, words: str) -> None:
    assert why(code) == words


def test_points_that_differ_in_seeds_alone_are_one_setting(tmp_path: Path) -> None:
    losses = {("1e-3", "0"): 3.0, ("1e-3", "1"): 5.0, ("3e-3", "0"): 3.5, ("3e-3", "1"): 3.7}
    sweep = made(tmp_path, lambda v: losses[v["LR"], v["SEED"]], "LR=[1e-3,3e-3]", "SEED=[0,1]")
    groups = over_seeds(results(sweep, VALIDATION, "min"))
    assert [(group.values, group.bests, round(group.mean, 9)) for group in groups] == [
        ((("LR", "1e-3"),), (3.0, 5.0), 4.0),
        ((("LR", "3e-3"),), (3.5, 3.7), 3.6),
    ]


def test_seeds_and_values() -> None:
    assert [is_seed(key) for key in ("SEED", "train.seed", "ShuffledSampler.seed", "LR", "seed.lr")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert [value_of(text) for text in ("1e-4", "'x'", "(0.9, 0.95)", "@GPT2", "2 * %LR", "None")] == [
        1e-4, "x", (0.9, 0.95), "@GPT2", "2 * %LR", None,
    ]  # fmt: skip
