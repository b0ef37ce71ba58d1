"""What makes a run this run: its name, and the global batch that belongs to its configuration."""

from __future__ import annotations

import re
from pathlib import Path

from modlib.checkpointing.run_checkpoints import known_hashes, newest_saved
from modlib.config import Config, load
from modlib.config.hashing import GLOBAL_BATCH
from modlib.config.length import other_differences
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder, check_name

MICRO_BATCH, ACCUMULATION = "train.micro_batch_size", "train.grad_accum_steps"


def identify(
    config: Config, ranks: int, *, runs_dir: Path, name: str | None = None, source: RunFolder | None = None
) -> tuple[Config, str]:
    """The configuration with its global batch as a number, and the name of the run.

    A new run gets micro-batch x accumulation x ranks, where it does not say how large its global batch is. A run that
    exists keeps its number on whatever number of ranks.

    Args:
        config: As it was read.
        ranks: Data-parallel ranks that the run is planned for.
        runs_dir: Where run folders live.
        name: The run's; None: that of the run whose own config.gin is given, else the default name.
        source: A run that it branches from, and whose global batch it has.

    Raises:
        ConfigError: The name is no name, or the global batch of the run cannot be divided over these ranks.
    """
    if source is not None:
        config = with_batch_of(config, source)
    own = own_run(config)
    if name is None and own is None:
        planned = with_planned_batch(config, ranks)
        return planned, default_name(planned, runs_dir)
    assert own is not None or name is not None
    name = check_name(own.name if name is None and own is not None else str(name))
    for run in (RunFolder(Path(runs_dir) / name), *([own] if own is not None and own.name == name else [])):
        if (kept := _kept(config, run, ranks)) is not None:
            return kept, name
    return with_planned_batch(config, ranks), name


def default_name(config: Config, runs_dir: Path | None = None) -> str:
    """`<stem of the run's gin file>-<first 8 digits of the config's hash>`; a run's own config.gin names that run.

    Args:
        config: With its global batch.
        runs_dir: Where a run of this configuration may be that was named by an earlier rule; it keeps its name.
    """
    if (own := own_run(config)) is not None:
        return own.name
    name = f"{stem_of(config.run_file)}-{config.hash[:8]}"
    if runs_dir is not None and not (Path(runs_dir) / name).exists():
        stem = stem_of(config.files[0] if config.files else None)
        for digits in sorted(config.first_hashes):
            run = RunFolder(Path(runs_dir) / f"{stem}-{digits[:8]}")
            if run.config_path.is_file() and global_batch_of(run) in (None, config.resolved.get(GLOBAL_BATCH)):
                return run.name
    return name


def stem_of(file: Path | str | None, most: int = 50) -> str:
    """What a gin file contributes to a name."""
    stem = re.sub("[^A-Za-z0-9._-]+", "-", Path(file).stem).lstrip("._-") if file is not None else ""
    return stem[:most] or "run"


def own_run(config: Config) -> RunFolder | None:
    """The run whose config.gin the configuration was read from, with nothing changed that changes its numbers."""
    file = config.run_file
    run = None if file is None else RunFolder(file.parent)
    if run is None or file != run.config_path:
        return None
    stored = run.read().get("config_hash")
    return run if isinstance(stored, str) and with_batch_of(config, run).is_of(stored) else None


def with_planned_batch(config: Config, ranks: int) -> Config:
    """The configuration with the global batch that it has on so many ranks, where it does not give the number."""
    if not _left_open(config):
        return config
    micro, accumulation = config.resolved[MICRO_BATCH], config.resolved[ACCUMULATION]
    origin = f"micro_batch_size {micro} x grad_accum_steps {accumulation} x {_processes(ranks)}"
    return config.with_value(GLOBAL_BATCH, micro * accumulation * ranks, origin)


def global_batch_of(run: RunFolder) -> int | None:
    """The global batch of a run that exists: its checkpoint's, else its config's, else that of its last world.

    None where it was not decided yet: a run of an earlier modlib that has never begun.
    """
    if (saved := newest_saved(run)) is not None and isinstance(saved.extra.get("global_batch_size"), int):
        return int(saved.extra["global_batch_size"])
    if not run.config_path.is_file():
        return None
    try:
        config = load([run.config_path])
    except ConfigError:  # which is said when the run is to be continued
        return None
    ranks = run.read().get("world_size")
    if _left_open(config):
        config = with_planned_batch(config, ranks) if isinstance(ranks, int) else config
    return config.resolved.get(GLOBAL_BATCH)


def _kept(config: Config, run: RunFolder, ranks: int) -> Config | None:
    """The configuration with the global batch of a run that exists; None where it is not that run's."""
    candidate = with_batch_of(config, run)
    if _left_open(candidate) or not _is_of_run(candidate, run):
        return None
    if GLOBAL_BATCH not in candidate.resolved:
        return candidate
    number, micro = candidate.resolved[GLOBAL_BATCH], candidate.resolved[MICRO_BATCH]
    if number % micro == 0 and number % (micro * ranks):
        fitting = [count for count in range(1, number // micro + 1) if number // micro % count == 0]
        raise ConfigError(
            f"global_batch_size ({number}) of run '{run.name}' must be a multiple of micro_batch_size ({micro}) x "
            f"{_processes(ranks)} = {micro * ranks}; continue it on {_or(fitting)}, or start a new run with another "
            "--name"
        )
    return candidate


def with_batch_of(config: Config, run: RunFolder) -> Config:
    """The configuration with the global batch of a run that exists, where it does not give the number."""
    number = global_batch_of(run) if _left_open(config) else None
    return config if number is None else config.with_value(GLOBAL_BATCH, number, f"of run {run.name}")


def _is_of_run(config: Config, run: RunFolder) -> bool:
    saved = newest_saved(run)
    stored = set() if saved is None else {saved.extra.get("config_hash", "")}
    if any(config.is_of(one) for one in known_hashes(run) | stored):
        return True
    if not run.config_path.is_file():
        return False
    try:
        before = load([run.config_path])
    except ConfigError:
        return False
    before = with_batch_of(before, run)
    return before.hash == config.hash or not other_differences(before, config)  # the same, or to be made longer


def _left_open(config: Config) -> bool:
    return GLOBAL_BATCH in config.resolved and config.resolved[GLOBAL_BATCH] is None


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _or(counts: list[int]) -> str:
    *most, last = counts
    return f"{', '.join(map(str, most))} or {_processes(last)}" if most else _processes(last)
