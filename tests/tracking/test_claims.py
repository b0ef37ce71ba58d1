"""Claims: which number of a run counts, when it is near enough, and what a wrong expected.json says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from modlib.runtime.errors import ConfigError
from modlib.tracking.claims import Claim, from_json, read_expected, shown, to_json

LINES = [
    {"step": 10, "time": 1.0, "loss/a": 4.0},
    {"step": 20, "time": 2.0, "loss/a": 2.0, "acc/a": 0.5},
    {"step": 30, "time": 3.0, "acc/a": 0.995},
    {"step": 40, "time": 4.0, "loss/a": 3.0, "acc/a": 0.99},
]
BASE: dict[str, Any] = {"name": "a", "recipe": "a.gin", "kind": "run", "metric": "loss/a", "source": "table 1"}


def claim(**fields: Any) -> Claim:
    return Claim(**{**BASE, **fields})


@pytest.mark.parametrize(
    ("fields", "measured"),
    [
        ({}, 3.0),
        ({"at": "first"}, 4.0),
        ({"at": "min"}, 2.0),
        ({"at": "max"}, 4.0),
        ({"at": 20}, 2.0),
        ({"at": 30}, None),
        ({"until": 20}, 2.0),
        ({"metric": "loss/b"}, None),
        ({"metric": "acc/a", "reaches": 0.99}, 30.0),
        ({"metric": "acc/a", "reaches": 0.999}, math.inf),
        ({"metric": "acc/b", "reaches": 0.9}, None),
        ({"metric": "acc/a", "reaches": 0.99, "until": 20}, math.inf),
    ],
)
def test_which_number_counts(fields: dict[str, Any], measured: float | None) -> None:
    assert claim(value=0, tolerance=0, **fields).measure(LINES) == measured


@pytest.mark.parametrize(
    ("fields", "holds", "fails", "text"),
    [
        ({"value": 124439808, "tolerance": 0}, 124439808, 124439809, "124,439,808"),
        ({"value": 1.88, "tolerance": 0.06}, 1.94, 1.95, "1.88 ± 0.06"),
        ({"value": 383e6, "tolerance_percent": 2}, 390e6, 391e6, "383,000,000 ± 2 %"),
        ({"at_least": 0.99}, 0.99, 0.98, ">= 0.99"),
        ({"at_most": 5000}, 5000, 5001, "<= 5,000"),
        ({"at_least": 1, "at_most": 2}, 1.5, 3, ">= 1 and <= 2"),
        ({"at_least": 0.0}, 0.0, math.nan, ">= 0"),
        ({"at_most": 1.0}, 0.5, -math.inf, "<= 1"),
        ({"at_most": 5000, "reaches": 0.99}, 5000, math.inf, "<= 5,000"),
    ],
)
def test_near_enough(fields: dict[str, Any], holds: float, fails: float, text: str) -> None:
    made = claim(**fields)
    assert made.holds(holds)
    assert not made.holds(fails)
    assert made.expected == text


def test_a_step_that_never_came_is_a_text_in_json_and_for_people() -> None:
    assert (shown(math.inf), to_json(math.inf), from_json("never")) == ("never", "never", math.inf)
    assert (to_json(2.5), from_json(2.5), to_json(None)) == (2.5, 2.5, None)


def problems(folder: Path, *rows: dict[str, Any]) -> list[str]:
    path = folder / "expected.json"
    path.write_text(json.dumps({"paper": "A paper", "claims": rows}))
    with pytest.raises(ConfigError) as caught:
        read_expected(path)
    return [one.replace(f"{path}: ", "") for one in caught.value.problems]


def test_all_problems_at_once(tmp_path: Path) -> None:
    good = {**BASE, "value": 1, "tolerance": 0}
    assert problems(
        tmp_path,
        {**good, "kind": "guess"},
        {**good, "name": "b", "tolerance": None},
        {**good, "name": "c", "at": "best"},
        {**BASE, "name": "d"},
        {**good, "name": "e", "colour": "red"},
        {key: value for key, value in good.items() if key != "source"} | {"name": "f"},
        {**good, "name": "a"},
    ) == [
        "kind ('guess') of claim 'a' must be one of parameters, plan, mfu, run",
        "claim 'b' must have tolerance or tolerance_percent beside its value; 0 asks for equality",
        "at ('best') of claim 'c' must be a step, or one of first, last, min, max",
        "claim 'd' must have either a value or bounds (at_least, at_most); give one of them",
        "claim 'e' has no field 'colour'; it may have at, at_least, at_most, given, kind, metric, name, reaches, "
        "recipe, source, tolerance, tolerance_percent, until, value",
        "claim 'f' needs source; write it as a text",
        "claim 'a' is there twice; give each its own name",
    ]


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "expected.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"must have an object, and has \[\]; expected.json has a paper"):
        read_expected(tmp_path / "expected.json")
