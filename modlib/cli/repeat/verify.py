"""`modlib verify`: what the papers say, what was measured here, and what differs from the locked recipes."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Annotated

import typer

from modlib.cli.completion import complete_run
from modlib.cli.options import RUNS, RunsDir
from modlib.cli.repeat.recipes import Paper, find_paper, papers
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.cli.watch.runs import is_run
from modlib.config import Config
from modlib.runtime.errors import EXIT_OK, ConfigError
from modlib.tracking.claims import COMPUTED, Claim, from_json, shown, to_json

MOST_NAMED = 3
RECIPE_FOLDER = re.compile(r"\d{4}_")
COLOURS = {"pass": "green", "FAIL": "red", "not measured": "red", "stale": "yellow", "not run": "dim"}


def command(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's name or path, to compare with its recipe; or an experiment's name, for its scoreboard.",
            autocompletion=complete_run,
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    everything: Annotated[bool, typer.Option("--all", help="The scoreboard of all experiments.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the run's values in the results/ of its experiment.")
    ] = False,
    lock: Annotated[
        str | None,
        typer.Option("--lock", metavar="EXPERIMENT", help="Lock the recipes of an experiment ('all') as they are now."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Of a RUN, as in 2019_gpt2/gpt2_124m.gin. Default: what it was made from."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare a run, or all recorded, with the papers; exit code 1 when a claim fails, is not measured or stale."""
    with reported():
        if [run is not None, everything, lock is not None].count(True) != 1:
            raise typer.BadParameter("give one of RUN, --all and --lock EXPERIMENT")
        for flag, given in (("--record", record), ("--recipe", recipe is not None)):
            if given and run is None:
                raise typer.BadParameter(f"{flag} goes with a RUN")
        if lock is not None:
            _lock(papers() if lock == "all" else [find_paper(lock)])
            return
        if run is not None and not record and recipe is None and (paper := _experiment(run, runs_dir)):
            code = _show_all([paper], as_json)
        elif run is not None:
            from modlib.cli.repeat.verify_run import verify_run

            code = verify_run(run, runs_dir, recipe=recipe, record=record, as_json=as_json)
        else:
            code = _show_all(papers(), as_json)
    raise typer.Exit(code)


def _experiment(word: str, runs_dir: Path) -> Paper | None:
    """The experiment of this name, where no run has it."""
    if is_run(Path(word)) or is_run(runs_dir / word):
        return None
    name = PurePath(word).name
    return next((paper for paper in papers() if paper.name == name), None) if RECIPE_FOLDER.match(name) else None


@dataclass(frozen=True)
class Row:
    """One claim of the scoreboard.

    Args:
        experiment: Its folder.
        recipe: Its gin file.
        claim: Its name.
        measured: Our number; None where there is none.
        expected: The paper's, as a text.
        state: "pass", "FAIL", "not run", "not measured": its recipe was run, but not for this;
            or "stale": it holds for the recipe as it was when it was run.
        note: Where and when it was measured, and what has changed since.
        source: Of the expected number.
    """

    experiment: str
    recipe: str
    claim: str
    measured: float | None
    expected: str
    state: str
    note: str
    source: str


def scoreboard(paper: Paper) -> tuple[list[Row], list[str]]:
    """Every claim of an experiment with our number, computed now where it needs no training; and what is wrong.

    Returns:
        The claims, and a line for each parameter that changes numbers and is not as it was locked, and for each recipe
        that cannot be read.
    """
    claims = paper.expected.claims
    values: dict[str, float] = {}
    problems: list[str] = []
    broken: dict[str, str] = {}
    for recipe in paper.recipes:
        own = [claim for claim in claims if claim.recipe == recipe and claim.kind in COMPUTED]
        try:
            config = paper.config(recipe)
            changed = [one for one in paper.drifted(recipe, config) if one.science]
            problems += [f"{paper.name}/{recipe} is not as locked: {one}" for one in changed]
            values |= _computed(config, own)
        except ConfigError as error:  # a package that is not installed is no reason to show nothing
            broken[recipe] = error.problems[0]
            problems.append(f"{paper.name}/{recipe}: {error.problems[0]}")
    rows = []
    for claim in claims:
        if claim.kind not in COMPUTED:
            rows.append(_measured_row(paper, claim))
        elif claim.name in values:
            rows.append(_row(paper, claim, values[claim.name], "computed now"))
        else:
            rows.append(replace(_row(paper, claim, None, broken[claim.recipe]), state="FAIL"))
    return rows, problems


def _computed(config: Config, claims: list[Claim]) -> dict[str, float]:
    if not claims:
        return {}
    from modlib.cli.repeat.measuring import computed

    return computed(config, claims)


def _measured_row(paper: Paper, claim: Claim) -> Row:
    result = paper.result(claim.recipe)
    if result is None:
        return _row(paper, claim, None, "")
    kept = result["values"].get(claim.name)
    note = f"{result['date']}, {result['machine']}, commit {str(result['git_commit'])[:10]}"
    if result["git_dirty"]:
        note += " with changes"
    changed = paper.changes_since(claim.recipe, result)
    if changed:
        more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        note += f"; the recipe since then: {', '.join(map(str, changed[:MOST_NAMED]))}{more}"
    if kept is None or kept["question"] != claim.question:
        return replace(_row(paper, claim, None, note), state="not measured")
    row = _row(paper, claim, from_json(kept["value"]), note)
    return replace(row, state="stale") if changed and row.state == "pass" else row


def _row(paper: Paper, claim: Claim, measured: float | None, note: str) -> Row:
    state = "not run" if measured is None else "pass" if claim.holds(measured) else "FAIL"
    return Row(paper.name, claim.recipe, claim.name, measured, claim.expected, state, note, claim.source)


def _show_all(experiments: list[Paper], as_json: bool) -> int:
    rows: list[Row] = []
    problems: list[str] = []
    for paper in experiments:
        claims, lines = scoreboard(paper)
        rows, problems = rows + claims, problems + lines
    counts = Counter(row.state for row in rows)
    if as_json:
        content = {"claims": [asdict(row) | {"measured": to_json(row.measured)} for row in rows], "problems": problems}
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        cells = [
            [
                row.experiment,
                row.claim,
                "" if row.measured is None else shown(row.measured),
                row.expected,
                row.state,
                row.note,
            ]
            for row in rows
        ]
        print_table(["experiment", "claim", "measured", "expected", "", "when and where"], cells, "", COLOURS)
        told = f"{counts['pass']} of {len(rows)} claims hold, {counts['FAIL']} fail, {counts['not run']} are not run"
        if counts["not measured"]:
            told += f", {counts['not measured']} are not measured by the run of their recipe"
        if counts["stale"]:
            told += f", {counts['stale']} are stale: run their recipes again"
        print(told, file=sys.stderr)
        for line in problems:
            print(line, file=sys.stderr)
    bad = counts["FAIL"] + counts["not measured"] + counts["stale"] + len(problems)
    return 1 if bad else EXIT_OK


def _lock(experiments: list[Paper]) -> None:
    for paper in experiments:
        for line in paper.lock():
            print(line)
