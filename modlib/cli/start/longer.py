"""May this run go on for longer, or begin in the middle of another? Decided before anything is written."""

from __future__ import annotations

from pathlib import Path

from modlib.checkpointing.names import step_folders
from modlib.checkpointing.run_checkpoints import indented
from modlib.config import Config, load
from modlib.config.length import other_differences
from modlib.launching.identity import with_batch_of
from modlib.launching.lengthening import Change, steps_text
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder
from modlib.training.building import build_experiment
from modlib.training.schedule_change import Departure, departure


def extension(config: Config, run: RunFolder) -> Change | None:
    """How a run that exists is made longer; None where it is not, or differs in other things, too.

    Args:
        config: With its global batch; it is the active one afterwards.
        run: The run's folder, which need not exist.

    Raises:
        ConfigError: Its schedule goes another way from a step on that too much was trained beyond.
    """
    steps = _saved(run)
    if not steps or not run.config_path.is_file():
        return None
    try:
        before = with_batch_of(load([run.config_path]), run)
    except ConfigError:  # which is said where the run is continued
        return None
    if before.hash == config.hash or other_differences(before, config):
        return None
    old, new = _num_steps(before), _num_steps(config)
    if new <= old:
        return None
    done = steps[0]
    parting = departure(before, config, min(done, old))
    step = next((one for one in steps if parting is None or one <= parting.update), None)
    if step is None or 2 * step < done:
        assert parting is not None
        raise ConfigError(_no_extension(config, run, old, new, steps, parting))
    return Change("extended", run, step, done, old, new, before.identity, config.identity)


def _no_extension(config: Config, run: RunFolder, old: int, new: int, steps: list[int], parting: Departure) -> str:
    usable = [one for one in steps if one <= parting.update]
    remedy = f"a branch is allowed from step {parting.update} at most"
    if usable:
        remedy += f": --branch_from {run.name} --step {usable[0]} --name NEW"
    else:
        remedy += f", and its checkpoints are of {_steps(steps)}: start a new run with another --name"
    return (
        f"num_steps ({new}) of run '{run.name}' must be {old}, for which its schedule was planned: "
        f"{_parting(config, old, new, parting)}, and {steps[0]} are done; {remedy}"
    )


def _parting(config: Config, old: int, new: int, parting: Departure) -> str:
    schedule = str(config.resolved.get("train.scheduler")).removeprefix("@")
    return (
        f"from update {parting.update + 1} on {schedule} has other rates ({parting.after:.4g} with {new} steps, "
        f"{parting.before:.4g} with {old})"
    )


def branch_from(config: Config, run: RunFolder, source: RunFolder, step: int | None) -> Change | None:
    """How a new run begins with a checkpoint of another; None where it has begun so already.

    Args:
        config: The new run's, with its global batch; it is the active one afterwards.
        run: Its folder.
        source: The run to branch from.
        step: Of the checkpoint; None takes the newest that can be taken.

    Raises:
        ConfigError: The configurations differ in more than length and schedule, or the rates differ before the step.
        RunFolderError: The run exists and is none of this branch, or the source has no configuration.
    """
    if run.path.exists() and _is_begun(run, source, step):
        return None
    if not source.config_path.is_file():
        raise RunFolderError(f"--branch_from ({source.path}) must have a config.gin; there is none")
    before = with_batch_of(load([source.config_path]), source)
    if differences := other_differences(before, config):
        raise ConfigError(
            f"run '{run.name}' must be like '{source.name}', which it branches from, but for its length and schedule:\n"
            f"    {indented(differences)}\n"
            "    set these values back, or start from the weights alone: models/warm_start.gin"
        )
    old, new = _num_steps(before), _num_steps(config)
    steps = _saved(source)
    if step is not None and step not in steps:
        raise ConfigError(f"--step ({step}) must be a checkpoint of run '{source.name}': {_steps(steps)}")
    if not steps:
        raise ConfigError(f"--branch_from ({source.name}) must have a checkpoint; it has none")
    wanted = steps[0] if step is None else step
    parting = departure(before, config, min(wanted, old, new))
    usable = [one for one in steps if one < new and (parting is None or one <= parting.update)]
    if step is not None and step >= new:
        raise ConfigError(f"--step ({step}) must be below num_steps ({new}); raise NUM_STEPS, or branch from before")
    if not usable or (step is not None and step not in usable):
        newest = f"the newest step from which it is allowed is {usable[0]}" if usable else "no kept checkpoint serves"
        why = "" if parting is None else f", since {_parting(config, old, new, parting)}"
        least = new - 1 if parting is None else min(parting.update, new - 1)
        raise ConfigError(
            f"--step ({wanted}) must be at most {least} for a run of {new} steps that branches from "
            f"'{source.name}'{why}; {newest}, of {_steps(steps)}"
        )
    chosen = usable[0] if step is None else step
    return Change("branched", source, chosen, steps[0], old, new, before.identity, config.identity)


def _is_begun(run: RunFolder, source: RunFolder, step: int | None) -> bool:
    """Whether a run that exists has its checkpoints; False where the branch was interrupted.

    Raises:
        RunFolderError: It is another run.
    """
    record = run.read().get("branched_from")
    same = isinstance(record, dict) and record.get("path") == str(source.path.absolute())
    begun = bool(step_folders(run.checkpoints_path))
    if not same and (begun or record is not None or run.metrics_path.exists()):
        raise RunFolderError(
            f"name ({run.name}) must be of a new run, or of one that branched from '{source.name}', but {run.path} is "
            "another; choose another --name"
        )
    at_step = record.get("at_step") if isinstance(record, dict) else None
    if begun and step is not None and at_step != step:
        raise RunFolderError(
            f"--step ({step}) must be {at_step}, from which run '{run.name}' has branched already; choose "
            "another --name"
        )
    return begun


def _num_steps(config: Config) -> int:
    return build_experiment(config).num_steps


def _saved(run: RunFolder) -> list[int]:
    """Steps of the complete checkpoints, newest first."""
    from modlib.checkpointing.loading import complete_checkpoints

    return [one.step for one in complete_checkpoints(run.checkpoints_path)]


def _steps(steps: list[int]) -> str:
    return steps_text(steps) if len(steps) != 1 else f"step {steps[0]}"


def change_of(config: Config, run: RunFolder, source: RunFolder | None, step: int | None) -> Change | None:
    """What a start does to the length of a run; None for nothing. The configuration is the active one afterwards."""
    try:
        change = None if source is None else branch_from(config, run, source, step)
        return change or extension(config, run)
    finally:
        config.activate()


def source_of(word: str, runs_dir: Path) -> RunFolder:
    """The run that --branch_from means."""
    from modlib.cli.watch.runs import find_run

    return find_run(word, runs_dir)
