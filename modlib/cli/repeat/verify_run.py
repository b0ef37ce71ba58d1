"""`modlib verify RUN`: a run beside its recipe: what came out, and what was different."""

from __future__ import annotations

import json
import sys
import time
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from modlib.cli.repeat.recipes import (
    Paper,
    find_paper,
    papers,
    recipe_of,
)
from modlib.cli.table import print_table
from modlib.cli.watch.runs import find_run
from modlib.config.diff import recorded
from modlib.config.lock import OTHER, SCIENCE, Drift, changes, drift, entry_of, is_data_path, is_left_open
from modlib.launching.continuing import PLACING
from modlib.launching.git import SOURCE, commit_of
from modlib.runtime.errors import EXIT_OK, ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder, versions
from modlib.runtime.units import counted
from modlib.tracking.claims import COMPUTED, Claim, shown, to_json
from modlib.tracking.jsonl import read_lines

PLACE = ("launch.executor", "Local.num_processes", "Slurm.nodes", "Slurm.tasks_per_node", "Slurm.gpus_per_node")
SET_BY_REPRODUCE = ("Local.num_processes", "Local.threads_per_process")
COLOURS = {"pass": "green", "FAIL": "red", "not measured": "red"}


class Otherness(NamedTuple):
    """One thing that is not as in the locked recipe or its recorded run."""

    what: str
    here: str
    there: str


@dataclass(frozen=True)
class Verdict:
    """One claim about the run.

    Args:
        claim: What the paper says.
        measured: What came out; None where the run has not measured it.
    """

    claim: Claim
    measured: float | None

    @property
    def state(self) -> str:
        """ "pass", "FAIL", or "not measured"."""
        if self.measured is None:
            return "not measured"
        return "pass" if self.claim.holds(self.measured) else "FAIL"


def verify_run(word: str, runs_dir: Path, *, recipe: str | None, record: bool, as_json: bool) -> int:
    """Compare a run with its recipe and print it; returns the exit code.

    Args:
        word: The run's name or path.
        runs_dir: Where run folders live.
        recipe: `<experiment>/<file>.gin`; None finds it by the gin files that the run was made from.
        record: Keep the values in results/.
        as_json: JSON on stdout.
    """
    run = find_run(word, runs_dir)
    said = recorded(run.path)
    if said is None:
        raise RunFolderError(
            f"run ({run.path}) must have the provenance.json that was written with its config.gin; start it again"
        )
    paper, name = _named(recipe) if recipe is not None else _made_from(run, said)
    lines = list(read_lines(run.metrics_path)) if run.metrics_path.exists() else []
    claims = [claim for claim in paper.expected.claims if claim.recipe == name and claim.kind not in COMPUTED]
    verdicts = [Verdict(claim, claim.measure(lines)) for claim in claims]
    different = differences(run, said, paper, name)
    if as_json:
        print(json.dumps(_as_json(paper, name, verdicts, different), indent=1, ensure_ascii=False))
    else:
        _print(paper, name, run, verdicts, different)
    if record:
        path = paper.record(name, result(run, said, paper, name, verdicts))
        print(f"wrote {path}", file=sys.stderr)
    return EXIT_OK if all(one.state == "pass" for one in verdicts) else 1


def _named(recipe: str) -> tuple[Paper, str]:
    path = Path(recipe)
    if not path.parent.name:
        there = [f"{paper.name}/{name}" for paper in papers() for name in paper.recipes]
        close = [one for one in there if recipe in one.split("/")]
        raise ConfigError(
            f"recipe ({recipe}) must be EXPERIMENT/FILE.gin; "
            + (f"there is {', '.join(close)}" if close else f"as in {there[0]}")
        )
    paper = find_paper(path.parent.name)
    if path.name not in paper.recipes:
        raise ConfigError(f"recipe ({recipe}) must be a gin file of {paper.path}: {', '.join(paper.recipes)}")
    return paper, path.name


def _made_from(run: RunFolder, said: Mapping[str, Any]) -> tuple[Paper, str]:
    found = recipe_of(said)
    if found is None and (original := run.read().get("reproduces")) and Path(original).is_dir():
        before = recorded(original)
        found = None if before is None else recipe_of(before)
    if found is None:
        files = ", ".join(Path(file).name for file in said["files"][:3])
        raise ConfigError(
            f"run ({run.path}) must be made from a gin file of experiments/, but is made from {files}; "
            "name the recipe to compare it with: --recipe 2019_gpt2/gpt2_124m.gin"
        )
    return found


def differences(run: RunFolder, said: Mapping[str, Any], paper: Paper, recipe: str) -> list[Otherness]:
    """What is not as in the locked recipe, and not as in the run whose values are in results/.

    Without such a run, code and environment are compared with this checkout and its packages.
    """
    state = run.read()
    before = paper.result(recipe) or {}
    locked = paper.locks.get(recipe)
    found = []
    if locked is None:
        found.append(Otherness("lock", "not locked", "locked"))
    else:
        by_reproduce = SET_BY_REPRODUCE if "reproduces" in state else ()
        drifted = _changes_since_locked(locked, said, state)
        found += [_parameter(one) for one in drifted if one.name not in by_reproduce]
    commit = before.get("git_commit") or commit_of(SOURCE)
    if state.get("git_commit") != commit:
        found.append(Otherness("code: commit", str(state.get("git_commit")), str(commit)))
    if state.get("git_dirty") is not False:
        found.append(Otherness("code: changes since the commit", _changes(state), "none"))
    found += _data(state.get("data", []), before.get("data"))
    other = before.get("versions") or versions()
    for package in sorted({*state.get("versions", {}), *other}):
        pair = state.get("versions", {}).get(package, "none"), other.get(package, "none")
        if pair[0] != pair[1]:
            found.append(Otherness(f"version of {package}", *pair))
    if not before and locked is not None and (asked := _ranks(locked)) not in (None, state.get("world_size")):
        found.append(Otherness("world size", str(state.get("world_size")), str(asked)))
    for field in ("world_size", "device", "num_threads"):
        if before and state.get(field) != before.get(field):
            found.append(Otherness(field.replace("_", " "), str(state.get(field)), str(before.get(field))))
    return found


def _ranks(locked: Mapping[str, Any]) -> int | None:
    """The number of ranks that a locked recipe asks for; None where it takes what the machine has."""
    asked = {name: literal_eval(locked[OTHER][name]) for name in PLACE if name in locked[OTHER]}
    if asked.get("launch.executor") != "slurm":
        return asked.get("Local.num_processes")
    per_node = asked.get("Slurm.tasks_per_node") or asked.get("Slurm.gpus_per_node") or 1
    return int(asked.get("Slurm.nodes", 1)) * int(per_node)


def _changes_since_locked(locked: Mapping[str, Any], said: Mapping[str, Any], state: Mapping[str, Any]) -> list[Drift]:
    """The parameters that are not as locked; the global batch of as many ranks as the recipe asks for is as locked."""
    drifted = changes(locked, entry_of(said), data_known=_data_is_known(state))
    return [one for one in drifted if not (is_left_open(one) and _is_batch_of_recipe(locked, int(one.now)))]


def _is_batch_of_recipe(locked: Mapping[str, Any], number: int) -> bool:
    per_rank = int(locked[SCIENCE]["train.micro_batch_size"]) * int(locked[SCIENCE]["train.grad_accum_steps"])
    asked = _ranks(locked)
    return number == per_rank * asked if asked is not None else number % per_rank == 0


def _data_is_known(state: Mapping[str, Any]) -> bool:
    """Whether a run has written down what is in its data, which where it lies does not tell."""
    data = state.get("data") or []
    return bool(data) and all(one.get("fingerprint") for one in data)


def _parameter(one: Drift) -> Otherness:
    what = "" if one.science else " (rounding may differ)" if one.name in PLACING else " (changes no number)"
    return Otherness(f"config: {one.name}{what}", one.now, one.locked)


def _changes(state: Mapping[str, Any]) -> str:
    return "unknown" if state.get("git_dirty") is None else "some; see dirty.patch"


def _data(here: list[Mapping[str, Any]], there: list[Mapping[str, Any]] | None) -> list[Otherness]:
    if there is None:
        return []
    mine, theirs = ({one["use"]: one["fingerprint"] for one in side} for side in (here, there))
    return [
        Otherness(f"data of {use}", mine.get(use, "none"), theirs.get(use, "none"))
        for use in dict.fromkeys((*mine, *theirs))
        if mine.get(use) != theirs.get(use)
    ]


def result(
    run: RunFolder, said: Mapping[str, Any], paper: Paper, recipe: str, verdicts: list[Verdict]
) -> dict[str, Any]:
    """What results/ keeps of a run.

    Raises:
        ConfigError: It was not the recipe that ran, or not the code of a commit, or no claim was measured.
        RunFolderError: The run is not finished.
    """
    state = run.read()
    if state.get("status") != "finished":
        raise RunFolderError(
            f"status of run {run.name} ({state.get('status')}) must be finished to be recorded; let it train to its end"
        )
    measured = [one for one in verdicts if one.measured is not None]
    if problems := [*_other_science(run, said, paper, recipe), *_other_code(run), *_nothing_measured(run, verdicts)]:
        raise ConfigError(problems)
    ended = run.current_attempt().ending().get("time", time.time())
    return {
        "recipe": recipe,
        "date": time.strftime("%Y-%m-%d", time.gmtime(ended)),
        "machine": _machine(state),
        "git_commit": state.get("git_commit"),
        "git_dirty": state.get("git_dirty"),
        "config_hash": said["hash"],
        "values": {
            one.claim.name: {"value": to_json(one.measured), "question": one.claim.question} for one in measured
        },
        "steps": state.get("step"),
        "data": [
            {**{key: one[key] for key in ("use", "fingerprint")}, "name": _without_folders(one["name"])}
            for one in state.get("data", [])
        ],
        "world_size": state.get("world_size"),
        "device": state.get("device"),
        "num_threads": state.get("num_threads"),
        "versions": state.get("versions"),
        SCIENCE: _science(said, paper.locks[recipe]),
    }


def _machine(state: Mapping[str, Any]) -> str:
    threads = counted(state["num_threads"], "thread") if state.get("num_threads") else None
    return ", ".join(filter(None, [state.get("device"), threads, counted(state.get("world_size") or 1, "rank")]))


def _other_science(run: RunFolder, said: Mapping[str, Any], paper: Paper, recipe: str) -> list[str]:
    locked = paper.locks.get(recipe)
    if locked is None:
        return [f"{paper.name}/{recipe} must be in lock.json; `modlib verify --lock {paper.name}` locks it"]
    return [
        f"{one.name} of run {run.name} ({one.now}) must be as it is locked ({one.locked}) to be recorded; run the "
        "recipe as it is"
        for one in _changes_since_locked(locked, said, run.read())
        if one.science
    ]


def _other_code(run: RunFolder) -> list[str]:
    state = run.read()
    if not state.get("git_commit"):
        return [f"commit of run {run.name} (unknown) must be known to be recorded; run it from a git checkout"]
    if state.get("git_dirty") is not False:
        return [
            f"changes since the commit of run {run.name} ({_changes(state)}) must be none to be recorded; commit them "
            "and run it again"
        ]
    return []


def _nothing_measured(run: RunFolder, verdicts: list[Verdict]) -> list[str]:
    if any(one.measured is not None for one in verdicts):
        return []
    asked = ", ".join(dict.fromkeys(one.claim.metric for one in verdicts)) or "none"
    return [
        f"claims that run {run.name} has measured (0 of {len(verdicts)}) must be at least 1 to be recorded; "
        f"the metrics that they ask for: {asked}"
    ]


def _science(said: Mapping[str, Any], locked: Mapping[str, Any]) -> dict[str, str]:
    """The run's parameters that change numbers; paths of data as the recipe has them, since they are a machine's."""
    entry = entry_of(said)
    sides = ({SCIENCE: side[SCIENCE], OTHER: {}} for side in (locked, entry))
    return entry[SCIENCE] | {one.name: one.locked for one in drift(*sides) if is_data_path(one) or is_left_open(one)}


def _without_folders(name: str) -> str:
    """The name of a dataset, or of several (`mixture of a/b.packed, c/d.packed`), with files by name alone."""
    parts = (part.rpartition(" of ") for part in name.split(", "))
    return ", ".join(f"{before}{of}{PurePath(file).name}" for before, of, file in parts)


def _as_json(paper: Paper, recipe: str, verdicts: list[Verdict], different: list[Otherness]) -> dict[str, Any]:
    rows = [
        {
            "claim": one.claim.name,
            "measured": to_json(one.measured),
            "expected": one.claim.expected,
            "state": one.state,
            "source": one.claim.source,
        }
        for one in verdicts
    ]
    return {
        "recipe": f"{paper.name}/{recipe}",
        "claims": rows,
        "differences": [one._asdict() for one in different],
    }


def _print(paper: Paper, recipe: str, run: RunFolder, verdicts: list[Verdict], different: list[Otherness]) -> None:
    print(f"{run.name}: {paper.name}/{recipe}", file=sys.stderr)
    cells = [
        [one.claim.name, "" if one.measured is None else shown(one.measured), one.claim.expected, one.state,
         one.claim.source]
        for one in verdicts
    ]  # fmt: skip
    if verdicts:
        print_table(["claim", "measured", "expected", "", "source"], cells, "", COLOURS)
    else:
        print("no claim of expected.json is about a run of this recipe", file=sys.stderr)
    if different:
        what = "its recorded run" if paper.result(recipe) else "this checkout"
        print(f"\nnot as in the locked recipe and {what}:", file=sys.stderr)
        print_table(["what", "this run", "there"], [list(one) for one in different])
