"""`modlib verify`: what the papers say, what was measured here, and what differs from the locked recipes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.recipes import Paper, find_paper, papers
from modlib.cli.report import reported
from modlib.cli.runs import complete_run
from modlib.cli.table import print_table
from modlib.runtime.errors import EXIT_OK
from modlib.tracking.claims import COMPUTED, Claim, shown

COLOURS = {"pass": "green", "FAIL": "red", "not run": "dim"}


def command(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run's name or path, to compare with its recipe.", autocompletion=complete_run
        ),
    ] = None,
    runs_dir: Annotated[Path, typer.Option("--runs_dir", help="Where run folders live.")] = Path("runs"),
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
    """Compare a run, or all that was measured, with what the papers say; exit code 1 when a claim fails."""
    with reported():
        if [run is not None, everything, lock is not None].count(True) != 1:
            raise typer.BadParameter("give one of RUN, --all and --lock EXPERIMENT")
        for flag, given in (("--record", record), ("--recipe", recipe is not None)):
            if given and run is None:
                raise typer.BadParameter(f"{flag} goes with a RUN")
        if lock is not None:
            _lock(papers() if lock == "all" else [find_paper(lock)])
            return
        if run is not None:
            from modlib.cli.verify_run import verify_run

            code = verify_run(run, runs_dir, recipe=recipe, record=record, as_json=as_json)
        else:
            code = _show(scoreboard(papers()), as_json)
    raise typer.Exit(code)


@dataclass(frozen=True)
class Row:
    """One claim of the scoreboard.

    Args:
        experiment: Its folder.
        recipe: Its gin file.
        claim: Its name.
        measured: Our number; None where there is none.
        expected: The paper's, as a text.
        state: "pass", "FAIL", or "not run".
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


def scoreboard(experiments: list[Paper]) -> list[Row]:
    """Every claim of the experiments with our number: computed now where it needs no training."""
    return [row for paper in experiments for row in _rows(paper)]


def _rows(paper: Paper) -> list[Row]:
    claims = paper.expected.claims
    computed: dict[str, float] = {}
    for recipe in dict.fromkeys(claim.recipe for claim in claims if claim.kind in COMPUTED):
        from modlib.cli.measuring import computed as compute

        own = [claim for claim in claims if claim.recipe == recipe and claim.kind in COMPUTED]
        computed |= compute(paper.config(recipe), own)
    rows = []
    for claim in claims:
        if claim.kind in COMPUTED:
            rows.append(_row(paper, claim, computed[claim.name], "computed now"))
        else:
            rows.append(_measured_row(paper, claim))
    return rows


def _measured_row(paper: Paper, claim: Claim) -> Row:
    result = paper.result(claim.recipe)
    kept = (result or {}).get("values", {}).get(claim.name)
    if result is None or kept is None or kept["question"] != claim.question:
        return _row(paper, claim, None, "")
    note = f"{result['date']}, {result['machine']}, commit {str(result['git_commit'])[:10]}"
    if result["git_dirty"]:
        note += " with changes"
    locked = paper.locks.get(claim.recipe)
    if locked is not None and locked["hash"] != result["config_hash"]:
        note += "; the recipe has changed since"
    return _row(paper, claim, kept["value"], note)


def _row(paper: Paper, claim: Claim, measured: float | None, note: str) -> Row:
    state = "not run" if measured is None else "pass" if claim.holds(measured) else "FAIL"
    return Row(paper.name, claim.recipe, claim.name, measured, claim.expected, state, note, claim.source)


def _show(rows: list[Row], as_json: bool) -> int:
    failed = [row for row in rows if row.state == "FAIL"]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False))
    else:
        cells = [
            [row.experiment, row.claim, "" if row.measured is None else shown(row.measured), row.expected, row.state,
             row.note]
            for row in rows
        ]  # fmt: skip
        print_table(["experiment", "claim", "measured", "expected", "", "measured when and where"], cells, "", COLOURS)
        counts = {state: sum(row.state == state for row in rows) for state in COLOURS}
        told = f"{counts['pass']} of {len(rows)} claims hold, {counts['FAIL']} fail, {counts['not run']} are not run"
        print(told, file=sys.stderr)
    return 1 if failed else EXIT_OK


def _lock(experiments: list[Paper]) -> None:
    for paper in experiments:
        for line in paper.lock():
            print(line)
