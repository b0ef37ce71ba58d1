"""A sweep: one experiment at several points, each a run of its own in the sweep's folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modlib.checkpointing.names import step_folders
from modlib.checkpointing.run_checkpoints import known_hashes
from modlib.config import Config, diff, render_diff
from modlib.config.axes import read_axes
from modlib.config.hashing import GLOBAL_BATCH
from modlib.launching.command import typed_words
from modlib.launching.identity import global_batch_of, stem_of
from modlib.launching.sweep_configs import kept_configs, load_points
from modlib.launching.sweep_points import bindings, point_names, points_of, some_of
from modlib.runtime.durable import atomic_write_text
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.json_files import JSONError, read_json
from modlib.runtime.run_folder import SWEEP_FILE, RunFolder, check_name
from modlib.runtime.secrets import masked

logger = logging.getLogger("modlib")

FORMAT = 1


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Args:
        index: Its place among the points, from 0.
        name: Of the run: its folder in the sweep's.
        params: What the point changes, as bindings: "AdamW.lr=1e-4".
        config_hash: Of the whole configuration, as it is stored.
        run: Its run folder, which need not exist yet.
    """

    index: int
    name: str
    params: tuple[str, ...]
    config_hash: str
    run: RunFolder = field(compare=False)

    @property
    def values(self) -> dict[str, str]:
        """What the point changes: key -> gin text of the value."""
        return dict(param.split("=", 1) for param in self.params)


@dataclass(frozen=True)
class Sweep:
    """All points of a sweep.

    Args:
        folder: Holds sweep.json and one run folder per point; its name is the sweep's.
        gin_files: Of the experiment, as the user gave them.
        gin_params: That all points have in common.
        axes: In normal form: "LR=[1e-4, 3e-4]; WARMUP_STEPS=[10, 30]".
        num_samples: Random points per cell of the grid; None where nothing is drawn.
        seed: Of the draws.
        points: In the order in which they run.
        configs: The checked configurations by point; empty where the sweep was read from its folder.
        notes: What the user should know about the points, a line each.
    """

    folder: Path
    gin_files: tuple[str, ...]
    gin_params: tuple[str, ...]
    axes: tuple[str, ...]
    num_samples: int | None
    seed: int
    points: tuple[Point, ...]
    configs: dict[str, Config] = field(default_factory=dict, repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """Identity of the sweep, and group of its runs in W&B."""
        return self.folder.name

    def write(self) -> None:
        """Write sweep.json, whole or not at all, into the folder, which is made where it is missing.

        Raises:
            RunFolderError: It cannot be written.
        """
        content = {
            "format": FORMAT,
            "name": self.name,
            "gin_files": self.gin_files,
            "gin_params": self.gin_params,
            "axes": self.axes,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "points": [
                {"name": point.name, "params": point.params, "config_hash": point.config_hash} for point in self.points
            ],
        }
        self.make_folder()
        try:
            atomic_write_text(
                self.folder / SWEEP_FILE, json.dumps(masked("", content), indent=1, ensure_ascii=False) + "\n"
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def make_folder(self) -> None:
        """Create the folder, with nothing in it.

        Raises:
            RunFolderError: It cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            f"runs_dir ({self.folder.parent}) must be a folder that can be written: {error.strerror or error}; "
            "choose another with --runs_dir"
        )


def pending_points(sweep: Sweep) -> list[Point]:
    """The points whose runs are not finished: missing, failed, stopped, or running elsewhere."""
    return [point for point in sweep.points if point.run.read().get("status") != "finished"]


def without_checkpoints(sweep: Sweep) -> list[str]:
    """Names of points that are finished and whose checkpoints are gone: of these only the metrics are left."""
    finished = (point for point in sweep.points if point.run.read().get("status") == "finished")
    return [point.name for point in finished if not step_folders(point.run.checkpoints_path)]


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / SWEEP_FILE).is_file()


def read_sweep(folder: Path) -> Sweep:
    """The sweep that a folder holds, as it was last started.

    Raises:
        RunFolderError: It holds none.
    """
    path = folder / SWEEP_FILE
    try:
        content = read_json(path, dict[str, Any])
        if content["format"] != FORMAT:
            raise RunFolderError(
                f"format of {path} ({content['format']}) must be {FORMAT}; use the modlib that wrote it"
            )
        folder = folder.resolve() if not folder.name else folder  # "."
        points = tuple(
            Point(index, one["name"], tuple(one["params"]), one["config_hash"], RunFolder(folder / one["name"]))
            for index, one in enumerate(content["points"])
        )
        files, params, axes = (tuple(content[name]) for name in ("gin_files", "gin_params", "axes"))
        return Sweep(folder, files, params, axes, content["num_samples"], content["seed"], points)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, JSONError) and error.missing:
            there = ", ".join(sorted(str(found.parent) for found in folder.glob(f"*/{SWEEP_FILE}")))
            hint = f"; there are {there}" if there else ""
            raise RunFolderError(
                f"sweep ({folder}) must be the folder of a sweep, with a {SWEEP_FILE} in it{hint}"
            ) from None
        raise RunFolderError(
            f"sweep ({folder}) must have a {SWEEP_FILE} that can be read ({type(error).__name__}: {error}); repair or "
            "remove it: the same --sweep command writes it again"
        ) from error


def plan_sweep(
    flags: Sequence[str],
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    *,
    runs_dir: Path,
    name: str | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    ranks_of: Callable[[Config], int],
) -> Sweep:
    """Read the axes, and load and check the configuration of every point; writes nothing.

    A sweep of this name that exists goes on: its points keep their names, new points are added.

    Args:
        flags: The --sweep flags.
        gin_files: As for `load`.
        gin_params: As for `load`; what an axis sets counts more.
        runs_dir: Where run folders live.
        name: The sweep's; None: `<first file>-sweep-<hash of the experiment and the axes>`.
        num_samples: Random points per cell of the grid.
        seed: Of the draws.
        ranks_of: Data-parallel ranks that a configuration is planned for; a new point's global batch depends on them.

    Raises:
        ConfigError: With everything that is wrong at any point, or what contradicts the sweep that exists.
    """
    if name is not None:
        check_name(name)
    axes = read_axes(flags)
    cells = points_of(axes, num_samples, seed)
    origins = {swept.key: axis.origin for axis in axes for swept in axis.swept}
    loaded, notes = load_points(cells, origins, gin_files, gin_params, ranks_of)
    texts = tuple(map(str, axes))
    drawn = num_samples is not None
    folder = Path(runs_dir) / (name or _default_name(Path(runs_dir), texts, seed if drawn else 0, loaded[0].planned))
    if (folder / "run.json").is_file():
        raise ConfigError(f"name ({folder.name}) must be a sweep's, but {folder} is a run; choose another --name")
    before = read_sweep(folder) if is_sweep(folder) else None
    known = {frozenset(point.params): point.name for point in before.points} if before else {}
    names = point_names([one.params for one in loaded], known)
    points, configs = [], kept_configs(folder, names, loaded)
    for index, (called, one) in enumerate(zip(names, loaded)):
        identity = configs[called].identity
        points.append(Point(index, called, bindings(one.params), identity, RunFolder(folder / called)))
    sweep = Sweep(folder, tuple(map(str, gin_files)), tuple(gin_params), texts, num_samples, seed, tuple(points))
    sweep = replace(sweep, configs=configs)
    if before is not None:
        notes += _continued(before, sweep)
    return replace(sweep, notes=tuple(notes))


def _default_name(runs_dir: Path, axes: Sequence[str], seed: int, first: Config) -> str:
    """Of the experiment and the axes; the number of samples has no part in it, so that more of them continue.

    A sweep that exists under the name that an earlier rule gave it keeps that.
    """

    def named(file: Path | None, digits: str) -> str:
        identity = "\n".join([digits, *axes, str(seed)])
        return f"{stem_of(file, 49)}-sweep-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    name = named(first.run_file, first.hash)
    if not (runs_dir / name).exists():
        for digits in sorted(first.first_hashes):
            old = runs_dir / named(first.files[0] if first.files else None, digits)
            if is_sweep(old) and _has_batch(read_sweep(old), first.resolved.get(GLOBAL_BATCH)):
                return old.name
    return name


def _has_batch(sweep: Sweep, number: int | None) -> bool:
    """Whether a sweep's first point has this global batch, or has not begun."""
    return global_batch_of(sweep.points[0].run) in (None, number)


def _continued(before: Sweep, sweep: Sweep) -> list[str]:
    """What has changed since the sweep was last started.

    Raises:
        ConfigError: A point that has begun would be lost, or be another run.
    """
    new = {point.name: point for point in sweep.points}
    gone = [point for point in before.points if point.name not in new]
    lost = [point.name for point in gone if point.run.run_json_path.is_file()]
    if lost:
        was, now = (" ".join(f'--sweep "{axis}"' for axis in one.axes) + _samples(one) for one in (before, sweep))
        raise ConfigError(
            f"sweep '{sweep.name}' exists with other points ({sweep.folder / SWEEP_FILE}):\n"
            f"    was {was}\n    now {now}\n"
            f"    begun and not in it any more: {some_of(lost)}\n"
            "    keep their values and add new ones, remove their run folders, or choose another --name"
        )
    changed = []
    for point in before.points:
        if point.name in new and point.run.config_path.is_file() and not _same(point, sweep.configs[point.name]):
            changed.append(point)
    if changed:
        point = changed[0]
        shown = render_diff(diff(point.run.path, sweep.configs[point.name])).replace("\n", "\n    ")
        raise ConfigError(
            f"sweep '{sweep.name}' exists with a different config (at {some_of([each.name for each in changed])}):\n"
            f"    {shown}\n"
            "    start it as a new sweep with another --name, or set these values back to continue this one"
        )
    old = {point.name for point in before.points}
    added = [point.name for point in sweep.points if point.name not in old]
    notes = [f"new in the sweep: {some_of(added)}"] if added else []
    return notes + ([f"not in the sweep any more: {some_of([point.name for point in gone])}"] if gone else [])


def _same(point: Point, config: Config) -> bool:
    """Whether a point that exists is of this configuration, by whichever rule its hash was computed."""
    return config.is_of(point.config_hash) or config.identity in known_hashes(point.run)


def _samples(sweep: Sweep) -> str:
    return "" if sweep.num_samples is None else f" --sweep_samples {sweep.num_samples} --sweep_seed {sweep.seed}"


def sweep_command(sweep: Sweep) -> list[str]:
    """The words of the command that continues a sweep."""
    words = typed_words()
    for flag, values in (("--gin_file", sweep.gin_files), ("--gin_param", sweep.gin_params), ("--sweep", sweep.axes)):
        words += [word for value in values for word in (flag, value)]
    words += _samples(sweep).split()
    return [*words, "--name", sweep.name, "--runs_dir", str(sweep.folder.parent)]


def point_command(point: Point) -> list[str]:
    """The flags that start or continue one point alone, from its own config.gin."""
    return [
        *("--gin_file", _explicit(point.run.config_path)),
        *("--name", point.name),
        *("--runs_dir", str(point.run.path.parent)),
    ]


def _explicit(path: Path) -> str:
    """A path that is looked for nowhere but where it says."""
    return str(path) if path.is_absolute() else f"./{path}"
