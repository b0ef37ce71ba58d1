"""What a paper says must come out, and whether it did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, read_json

COMPUTED = ("parameters", "plan", "mfu")
"""Kinds of claims that need no training."""
KINDS = (*COMPUTED, "run")
ROUNDING = 1 + 1e-9  # 1.94 is within 0.06 of 1.88
ENDS = ("first", "last", "min", "max")
NEVER = "never"  # what JSON and people get for a step that did not come; in the code it is inf


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One number of a paper, and how near to it ours must be.

    Args:
        name: What it is, unique in its expected.json.
        recipe: The gin file that it is about.
        kind: "parameters": of the model on meta; "plan": of the dry run; "mfu": from a published speed; "run": a metric
            of a finished run.
        metric: Which one: "total", "trainable" or "non_embedding"; a field of the plan; a name in metrics.jsonl.
        source: Paper with table or section, or where else the number is from.
        value: What must come out, within the tolerance; None where there is a bound instead.
        tolerance: Largest distance from the value; 0 asks for equality.
        tolerance_percent: The same as a share of the value.
        at_least: Lower bound, where there is no value.
        at_most: Upper bound.
        at: Of a run's metric, which one counts: "first", "last", "min", "max", or that of a step.
        until: Only steps up to this one count.
        reaches: What is measured is the first step at which the metric is at least this.
        given: What a computed claim starts from, such as a published speed; by name.
    """

    name: str
    recipe: str
    kind: str
    metric: str
    source: str
    value: float | None = None
    tolerance: float | None = None
    tolerance_percent: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    at: str | int = "last"
    until: int | None = None
    reaches: float | None = None
    given: Mapping[str, float] | None = None

    @property
    def margin(self) -> float:
        """Largest distance from the value."""
        if self.tolerance_percent is not None and self.value is not None:
            return abs(self.value) * self.tolerance_percent / 100
        return self.tolerance or 0.0

    def holds(self, measured: float) -> bool:
        """Whether a measured value is what the claim says."""
        if not math.isfinite(measured):
            return False
        if self.value is not None:
            return abs(measured - self.value) <= self.margin * ROUNDING
        return (self.at_least is None or measured >= self.at_least) and (
            self.at_most is None or measured <= self.at_most
        )

    @property
    def expected(self) -> str:
        """The value with its tolerance, or the bounds, as a table shows them."""
        if self.value is not None:
            if self.tolerance_percent is not None:
                return f"{shown(self.value)} ± {self.tolerance_percent:g} %"
            return shown(self.value) + (f" ± {self.tolerance:g}" if self.tolerance else "")
        bounds = [(">=", self.at_least), ("<=", self.at_most)]
        return " and ".join(f"{sign} {shown(bound)}" for sign, bound in bounds if bound is not None)

    @property
    def question(self) -> dict[str, Any]:
        """What is measured, whatever must come out: a value measured for another question does not answer this one."""
        return {"metric": self.metric, "at": self.at, "until": self.until, "reaches": self.reaches}

    def measure(self, lines: Iterable[Mapping[str, Any]]) -> float | None:
        """The value in a run's metrics; None if it is missing, inf if the target was never reached.

        Args:
            lines: Of metrics.jsonl.
        """
        points = [
            (int(line["step"]), float(line[self.metric]))
            for line in lines
            if self.metric in line and (self.until is None or line["step"] <= self.until)
        ]
        if not points:
            return None
        if self.reaches is not None:
            return next((float(step) for step, value in points if value >= self.reaches), math.inf)
        if isinstance(self.at, int):
            return next((value for step, value in points if step == self.at), None)
        values = [value for _, value in points]
        return {"first": values[0], "last": values[-1], "min": min(values), "max": max(values)}[self.at]


def shown(value: float) -> str:
    """A number for people: whole ones with commas, others with five digits, `never` for a step that did not come."""
    if value == math.inf:
        return NEVER
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.5g}"


def to_json(measured: float | None) -> float | str | None:
    """A measured value as JSON can hold it."""
    return NEVER if measured == math.inf else measured


def from_json(kept: float | str) -> float:
    """The same back."""
    return math.inf if kept == NEVER else float(kept)


@dataclass(frozen=True)
class Expected:
    """The contents of an expected.json.

    Args:
        paper: Its authors, year and title.
        claims: In the order of the file.
    """

    paper: str
    claims: tuple[Claim, ...]


class ExpectedRecord(TypedDict):
    """What expected.json holds."""

    paper: str
    claims: list[dict[str, Any]]


def read_expected(path: Path) -> Expected:
    """The claims of an experiment.

    Raises:
        ConfigError: It cannot be read, or a claim is not one; all problems at once.
    """
    try:
        content = read_json(path, ExpectedRecord)
    except JSONError as error:
        raise ConfigError(f"{error}; expected.json has a paper and its claims") from error
    paper, rows = content["paper"], content["claims"]
    problems = [f"{path}: {problem}" for number, row in enumerate(rows, 1) for problem in _problems(row, number)]
    names = [row.get("name") for row in rows]
    problems += [f"{path}: claim {name!r} is there twice; give each its own name" for name in _twice(names)]
    if problems:
        raise ConfigError(problems)
    return Expected(paper, tuple(Claim(**row) for row in rows))


def _twice(names: list[Any]) -> list[Any]:
    return sorted({name for name in names if names.count(name) > 1}, key=str)


def _problems(row: Mapping[str, Any], number: int) -> list[str]:
    """What is wrong with one claim."""
    name = f"claim {row.get('name', number)!r}"
    known = {each.name for each in fields(Claim)}
    problems = [f"{name} has no field {word!r}; it may have {', '.join(sorted(known))}" for word in {*row} - known]
    needed = ("name", "recipe", "kind", "metric", "source")
    problems += [f"{name} needs {word}; write it as a text" for word in needed if not isinstance(row.get(word), str)]
    if row.get("kind") not in KINDS:
        problems.append(f"kind ({row.get('kind')!r}) of {name} must be one of {', '.join(KINDS)}")
    at = row.get("at", "last")
    if not isinstance(at, int) and at not in ENDS:
        problems.append(f"at ({at!r}) of {name} must be a step, or one of {', '.join(ENDS)}")
    bounds = [row.get("at_least"), row.get("at_most")]
    if (row.get("value") is None) == (bounds == [None, None]):
        problems.append(f"{name} must have either a value or bounds (at_least, at_most); give one of them")
    tolerances = [row.get("tolerance"), row.get("tolerance_percent")]
    if row.get("value") is not None and tolerances.count(None) != 1:
        problems.append(f"{name} must have tolerance or tolerance_percent beside its value; 0 asks for equality")
    return problems
