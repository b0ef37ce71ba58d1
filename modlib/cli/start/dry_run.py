"""`launch.py --dry_run`: everything that can be known before a run, and the script that a cluster would get."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from modlib.cli.start.planning import plan_run
from modlib.cli.start.slurm import job_script, plain_script
from modlib.config import Config
from modlib.launching.local import Local
from modlib.launching.slurm import Slurm
from modlib.launching.submission import NOT_CHECKED, SubmissionError, slurm_would_take
from modlib.runtime import durable
from modlib.runtime.console import PlainConsole
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.tracking.banner import start_banner
from modlib.training.planned_data import data_is_ready


def show_plan(
    config: Config,
    place: Local | Slurm,
    runs_dir: Path,
    name: str,
    *,
    as_json: bool,
    write_script: Path | None = None,
) -> None:
    """Check and plan for the target world size, and print the plan; writes nothing but the script that is asked for.

    Raises:
        ConfigError: The plan cannot be made; or data is missing, which is said after the plan.
        SubmissionError: SLURM would refuse the job, which is said after the plan.
    """
    problems: list[ModlibError] = []
    try:
        data_is_ready(config)
    except ConfigError as error:
        problems.append(error)
    plan = plan_run(config, place, runs_dir, name, make_data=False, without_data=bool(problems))
    script = answer = None
    if isinstance(place, Slurm):
        run_path = (runs_dir / plan.run_name).resolve()
        script = job_script(place, run_path)
        try:
            answer = slurm_would_take(script) or ("" if as_json else f"{NOT_CHECKED}: sbatch is not on this machine")
        except SubmissionError as error:
            problems.append(error)
    if as_json:
        print(
            json.dumps(
                plan.to_json() | ({} if script is None else {"sbatch": script, "slurm": answer or None}), indent=1
            )
        )
    else:
        console = PlainConsole()
        console.print(start_banner(plan))
        if script is not None:
            console.print(script, soft_wrap=True)
            console.print(answer or "refused by SLURM; see below")
    if write_script is not None and isinstance(place, Slurm):
        durable.atomic_write_text(write_script, plain_script(config, place, (runs_dir / plan.run_name).resolve()))
        print(f"wrote {write_script}; submit it with: sbatch {write_script}", file=sys.stderr)
    if problems:
        raise problems[0]
