"""The folders of experiments: recipes, their locks, what must come out of them, and what did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.components import SHIPPED
from modlib.config import Config, load
from modlib.config.lock import OTHER, SCIENCE, Drift, changes, drift, entry_of, is_left_open, lock_entry
from modlib.config.suggestions import similar
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, read_json
from modlib.tracking.claims import Expected, read_expected

EXPERIMENTS = SHIPPED / "experiments"
LOCK_FILE, EXPECTED_FILE, RESULTS = "lock.json", "expected.json", "results"
FORMAT = 1


@dataclass(frozen=True)
class Paper:
    """One folder of experiments/.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """Of the folder, `<year>_<paper>`."""
        return self.path.name

    @property
    def recipes(self) -> list[str]:
        """The gin files of whole runs: those directly in the folder; shared parts are in its subfolders."""
        return sorted(path.name for path in self.path.glob("*.gin"))

    def config(self, recipe: str) -> Config:
        """A recipe, read and checked."""
        return load([self.path / recipe])

    @property
    def expected(self) -> Expected:
        """What must come out."""
        expected = read_expected(self.path / EXPECTED_FILE)
        there = self.recipes
        wrong = [claim for claim in expected.claims if claim.recipe not in there]
        if wrong:
            raise ConfigError(
                [
                    f"{self.path / EXPECTED_FILE}: recipe ({one.recipe}) of claim {one.name!r} must be a gin file of "
                    f"the folder, which has {', '.join(there)}"
                    for one in wrong
                ]
            )
        return expected

    @property
    def locks(self) -> dict[str, dict[str, Any]]:
        """What lock.json holds: an entry by recipe; empty without the file."""
        path = self.path / LOCK_FILE
        if not path.is_file():
            return {}
        try:
            content = read_json(path, dict[str, Any])
            if content["format"] == FORMAT:
                return dict(content["recipes"])
        except (ValueError, KeyError, TypeError):
            pass
        raise ConfigError(f"{path} must be of format {FORMAT}; write it anew with `modlib verify --lock {self.name}`")

    def lock(self) -> list[str]:
        """Write lock.json as the recipes are now; returns what changed, a line each."""
        before = self.locks if (self.path / LOCK_FILE).is_file() else {}
        entries = {recipe: lock_entry(self.config(recipe)) for recipe in self.recipes}
        text = json.dumps({"format": FORMAT, "recipes": entries}, indent=1, ensure_ascii=False) + "\n"
        durable.atomic_write_text(self.path / LOCK_FILE, text)
        lines = [f"{self.name}/{name}: no longer there" for name in before if name not in entries]
        for recipe, entry in entries.items():
            if recipe not in before:
                lines.append(f"{self.name}/{recipe}: new, {len(entry['science'])} parameters that change numbers")
            else:
                lines += [f"{self.name}/{recipe}: {one}" for one in drift(before[recipe], entry)]
        return lines

    def drifted(self, recipe: str, config: Config | None = None) -> list[Drift]:
        """What is not as it was locked in a recipe.

        Raises:
            ConfigError: The recipe is not locked, or cannot be read any more.
        """
        locked = self.locks.get(recipe)
        if locked is None:
            raise ConfigError(f"{self.name}/{recipe} must be in lock.json; `modlib verify --lock {self.name}` locks it")
        return drift(locked, lock_entry(config or self.config(recipe)))

    def changes_since(self, recipe: str, result: Mapping[str, Any]) -> list[Drift]:
        """The parameters that change numbers and are locked otherwise now than they were in a recorded run."""
        locked = self.locks.get(recipe, {SCIENCE: {}})
        sides = ({SCIENCE: entry[SCIENCE], OTHER: {}} for entry in (result, locked))
        return changes(*sides, data_known=False)  # a result holds the paths as the recipe had them

    def result_path(self, recipe: str) -> Path:
        """Where the measured values of a recipe are kept."""
        return self.path / RESULTS / f"{Path(recipe).stem}.json"

    def result(self, recipe: str) -> dict[str, Any] | None:
        """What was measured with a recipe; None where it was not run."""
        path = self.result_path(recipe)
        try:
            return read_json(path, dict[str, Any])
        except JSONError as error:
            if error.missing:
                return None
            raise ConfigError(f"{error}; record the run again") from error

    def record(self, recipe: str, result: Mapping[str, Any]) -> Path:
        """Keep what was measured with a recipe; returns where."""
        path = self.result_path(recipe)
        path.parent.mkdir(exist_ok=True)
        durable.atomic_write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        return path


def papers() -> list[Paper]:
    """Every experiment: the folders with an expected.json.

    Raises:
        ConfigError: There are none.
    """
    found = [Paper(path.parent) for path in sorted(EXPERIMENTS.glob(f"*/{EXPECTED_FILE}"))]
    if not found:
        raise ConfigError(
            f"experiments ({EXPERIMENTS}) must be a folder with papers, and is none; call modlib from a checkout "
            "of its repository"
        )
    return found


def find_paper(word: str) -> Paper:
    """An experiment by its name or path.

    Raises:
        ConfigError: There is none.
    """
    known = {paper.name: paper for paper in papers()}
    name = Path(word).name
    if name in known:
        return known[name]
    close = similar(name, known) or [one for one in known if name and name.lower() in one.lower()]
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    raise ConfigError(f"experiment ({word}) must be a folder of {EXPERIMENTS}; {hint}")


def recipe_of(record: Mapping[str, Any]) -> tuple[Paper, str] | None:
    """The recipe that a run was made from, by the gin files that it read; None where it was made from another one.

    Args:
        record: What the run folder says about its configuration.
    """
    known = {paper.name: paper for paper in papers()}
    for file in record["files"]:
        path = Path(file)
        paper = known.get(path.parent.name)
        if paper is not None and path.name in paper.recipes:
            return paper, path.name
    made = entry_of(record)
    same = [
        (paper, name)
        for paper in known.values()
        for name, locked in paper.locks.items()
        if not any(one.science and not is_left_open(one) for one in drift(locked, made))
    ]
    return same[0] if len(same) == 1 else None
