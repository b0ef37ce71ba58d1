"""Whether a run that starts again and again gets anywhere."""

from __future__ import annotations

from modlib.runtime.errors import ModlibError
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import quoted

MOST_IDLE_ATTEMPTS = 3


class NoProgressError(ModlibError, RuntimeError):
    """Several attempts in a row gained no step; starting again would not either."""


def idle_attempts(run: RunFolder) -> int:
    """How many of the newest attempts since the last submission, or extension, gained no saved step."""
    state = run.read()
    first = int(state.get("slurm", {}).get("attempts_before", 0))
    reached = _saved_step(run, first) or 0
    if (extended := state.get("extended")) and extended[-1].get("attempts", -1) >= first:  # which went back to a step
        first, reached = extended[-1]["attempts"], extended[-1]["at_step"]
    idle = 0
    for number in range(first + 1, run.num_attempts + 1):
        step = _saved_step(run, number)
        if not run.attempt(number).exit_path.exists():
            continue  # it runs
        idle = 0 if (step or 0) > reached else idle + 1
        reached = max(reached, step or 0)
    return idle


def require_progress(run: RunFolder) -> None:
    """Refuse another attempt after three that gained nothing.

    Raises:
        NoProgressError: Says where to look and how to go on.
    """
    idle = idle_attempts(run)
    if idle >= MOST_IDLE_ATTEMPTS:
        raise NoProgressError(
            f"{idle} attempts in a row saved no step beyond {run.read().get('step', 0)}, so run {run.name} is not "
            f"queued again; look for why in {run.attempts_path}, correct it, and continue with: "
            f"modlib resume {quoted(str(run.path))}"
        )


def _saved_step(run: RunFolder, number: int) -> int | None:
    step = run.attempt(number).ending().get("step") if number > 0 else None
    return int(step) if step is not None else None
