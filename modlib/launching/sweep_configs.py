"""The configurations of a sweep's points: read, planned for their ranks, one for those that mean the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from modlib.config import Config, load
from modlib.launching.continuing import PLACING
from modlib.launching.identity import identify, with_planned_batch
from modlib.launching.sweep_points import Params, grouped, label
from modlib.runtime.errors import ConfigError


class Loaded(NamedTuple):
    """The configuration of a point: as it was read, and with the global batch of the ranks that it is planned for."""

    params: Params
    config: Config
    ranks: int
    planned: Config


def load_points(
    cells: Sequence[Params],
    origins: dict[str, str],
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    ranks_of: Callable[[Config], int],
) -> tuple[list[Loaded], list[str]]:
    """The configuration of each point, one for those that mean the same run; and what to say about them.

    Raises:
        ConfigError: The problems of all points.
    """
    loaded: list[Loaded] = []
    wrong: list[tuple[str, list[str]]] = []
    for params in cells:
        try:
            config = load(gin_files, gin_params, [(origins[key], f"{key}={text}") for key, text in params])
            ranks = ranks_of(config)
            loaded.append(Loaded(params, config, ranks, with_planned_batch(config, ranks)))
        except ConfigError as error:
            wrong.append((label(params), error.problems))
    if wrong:
        raise ConfigError(grouped(wrong, len(cells)))
    return _merged(loaded)


def _merged(loaded: Sequence[Loaded]) -> tuple[list[Loaded], list[str]]:
    """One point for those that mean the same run, and a line about each that is left out."""
    kept, notes = [], []
    by_hash: dict[str, list[Loaded]] = {}
    for one in loaded:
        alike = by_hash.setdefault(one.planned.hash, [])
        same = next((other for other in alike if other.planned.resolved == one.planned.resolved), None)
        if same is not None:
            notes.append(f"{label(one.params)} means the same run as {label(same.params)}: one point")
            continue
        if alike:
            notes.append(_unlike(one, alike[0]))
        alike.append(one)
        kept.append(one)
    return kept, notes


def _unlike(one: Loaded, other: Loaded) -> str:
    """How two points of one hash differ."""
    here, there = one.planned.resolved, other.planned.resolved
    both = f"{label(one.params)} and {label(other.params)}"
    if any(here.get(name) != there.get(name) for name in PLACING):
        return f"{both} train on the same batches; rounding, and dropout where there is any, may differ"
    return f"{both} differ in settings that change no number"


def kept_configs(folder: Path, names: Sequence[str], loaded: Sequence[Loaded]) -> dict[str, Config]:
    """The configurations by the points' names; a point that exists keeps its global batch.

    Raises:
        ConfigError: The global batch of a point cannot be divided over its ranks.
    """
    configs: dict[str, Config] = {}
    wrong: list[tuple[str, list[str]]] = []
    for name, one in zip(names, loaded):
        try:
            exists = (folder / name).is_dir()
            configs[name] = identify(one.config, one.ranks, runs_dir=folder, name=name)[0] if exists else one.planned
        except ConfigError as error:
            wrong.append((name, error.problems))
    if wrong:
        raise ConfigError(grouped(wrong, len(names)))
    return configs
