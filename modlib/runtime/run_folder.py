"""The run folder: one run, one folder, across restarts, requeues and machines."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from modlib.runtime import bookkeeping, durable, run_lock
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.json_files import JSONError, read_json
from modlib.runtime.secrets import mask, masked, why_secret

SWEEP_FILE = "sweep.json"  # in the folder of a sweep, beside the folders of its points
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WRITE_TEST = ".write-test-"
# what `create` and `durable.atomic_write_text` leave when they are killed
LEFTOVER = re.compile(rf"\.(.+\.[0-9a-f]{{8}}\.tmp|{re.escape(WRITE_TEST[1:])}\d+)")
OLD_S = 60.0  # such files live for milliseconds


def check_name(name: str) -> str:
    """Return a run name that is safe as a folder, a W&B id and a job name.

    Raises:
        ConfigError: It has a path, a space or a shell character in it, or is longer than 64.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"name ({name!r}) must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; "
            "it is a name, not a path: choose the place with --runs_dir"
        )
    if why := why_secret("", name):
        raise ConfigError(f"name ({mask(name)}) must not hold {why}: it is written everywhere; choose another --name")
    return name


class JobRecord(TypedDict, total=False):
    """What run.json keeps of a submission to SLURM."""

    job_ids: list[str]
    config_sha256: str
    attempts_before: int


class DataRecord(TypedDict, total=False):
    """What run.json keeps of a dataset."""

    use: str
    name: str
    fingerprint: str
    files: list[dict[str, str]]


class RunRecord(TypedDict, total=False):
    """The fields of run.json that modlib reads, beside others that it only writes."""

    name: str
    status: str | None
    step: int
    num_steps: int
    attempts: int
    host: str
    pid: int
    started: float | None
    inode: int
    lost_steps: int
    world_size: int
    executor: str | None
    exit_code: int | None
    checkpoint_bytes: int
    config_hash: str
    sample: str | None
    lost_metrics: int
    sweep: str
    slurm: JobRecord
    excluded_hosts: list[str]
    data: list[DataRecord]
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None
    working_directory: str
    device: str
    num_threads: int
    reproduces: str | None
    wandb_url: str | None
    log_every: Any  # [[first step, steps between two lines of training], ...]
    metrics_missing: Any  # [[first, last step], ...] of lines that were lost


class EndingRecord(TypedDict, total=False):
    """The fields of exit.json."""

    reason: str
    step: int | None
    exit_code: int | None
    time: float


@dataclass(frozen=True)
class Attempt:
    """One start of a run: a folder of its own for logs, stacks and how it ended.

    Args:
        number: From 1.
        path: `attempts/0001`.
    """

    number: int
    path: Path

    @property
    def logs_path(self) -> Path:
        """Folder of the ranks' logs."""
        return self.path / "logs"

    def log_path(self, rank: int) -> Path:
        """Log file of one rank."""
        return self.logs_path / f"rank-{rank}.out"

    @property
    def job_log_path(self) -> Path:
        """Link to what a cluster's job printed; not there for attempts on this machine."""
        return self.logs_path / "job.out"

    def error_path(self, rank: int) -> Path:
        """Where a failing rank records its error for the launcher."""
        return self.logs_path / f"rank-{rank}.error.json"

    def stacks_path(self, rank: int) -> Path:
        """Where a rank writes its stacks when it must end hard."""
        return self.path / "stacks" / f"rank-{rank}.txt"

    @property
    def exit_path(self) -> Path:
        """How it ended; not there while it runs, nor after SIGKILL until the next attempt begins."""
        return self.path / "exit.json"

    def finish(self, reason: str, step: int | None, exit_code: int | None) -> None:
        """Record how the attempt ended, or warn.

        Args:
            reason: "finished", "stopped", "failed" or "died".
            step: Optimizer steps done; None when unknown.
            exit_code: None when nobody was left to see it.
        """
        ending = {"reason": mask(reason), "step": step, "exit_code": exit_code, "time": time.time()}
        with bookkeeping.write_or_warn("exit.json"):
            durable.atomic_write_text(self.exit_path, json.dumps(ending, indent=1) + "\n")

    def ending(self) -> dict[str, Any]:
        """What `finish` recorded; empty before."""
        return dict(_read_json(self.exit_path, EndingRecord))


class RunFolder:
    """Paths and identity of one run.

    Args:
        path: The folder; its name is the run's.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self._pinned: int | None = None
        self._waiting: dict[str, Any] = {}  # for run.json

    @property
    def config_path(self) -> Path:
        """The complete resolved configuration."""
        return self.path / "config.gin"

    @property
    def provenance_path(self) -> Path:
        """Where each value of it was set."""
        return self.path / "provenance.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON line per logged step; the source of truth."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tb"

    @property
    def checkpoints_path(self) -> Path:
        """Committed checkpoints, `step-00000100` each."""
        return self.path / "checkpoints"

    @property
    def attempts_path(self) -> Path:
        """One folder per start."""
        return self.path / "attempts"

    @property
    def run_json_path(self) -> Path:
        """Identity and state."""
        return self.path / "run.json"

    @property
    def sweep(self) -> str | None:
        """Name of the sweep whose folder this run lies in; None for a run of its own."""
        parent = self.path.resolve().parent
        return parent.name if (parent / SWEEP_FILE).is_file() else None

    def read(self) -> dict[str, Any]:
        """run.json; empty when it is missing, torn, or not what modlib writes."""
        return dict(_read_json(self.run_json_path, RunRecord))

    def damage(self) -> str:
        """What keeps run.json from being read; "" where nothing does."""
        try:
            read_json(self.run_json_path, RunRecord)
        except JSONError as error:
            return "run.json is missing" if error.missing else f"run.json {error.problem}"
        return ""

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json, in one rename; processes that do so at once lose nothing.

        Raises:
            RunFolderError: Another folder, or none, is in the place of a pinned one.
        """
        self.require_in_place()
        with _exclusive(self.path):
            durable.atomic_write_text(
                self.run_json_path, json.dumps({**self.read(), **masked("", fields)}, indent=1) + "\n"
            )

    def note(self, **fields: Any) -> None:
        """Merge fields into run.json, or warn; what could not be written is written with the next ones.

        Raises:
            RunFolderError: Another folder, or none, is in the place of a pinned one.
        """
        self._waiting |= fields
        with bookkeeping.write_or_warn("run.json"):
            self.update(**self._waiting)
            self._waiting = {}
            bookkeeping.made_good("run.json")

    def create(self) -> None:
        """Make the folder and what every run has in it.

        Raises:
            RunFolderError: It cannot be written.
        """
        try:
            for folder in (self.path, self.checkpoints_path, self.attempts_path):
                folder.mkdir(parents=True, exist_ok=True)
            with _exclusive(self.path):  # else another process would take the test for a leftover
                test = self.path / f"{WRITE_TEST}{os.getpid()}"  # another process may be testing too
                durable.atomic_write_text(test, "written, waited for and renamed\n")
                test.unlink()
        except OSError as error:
            raise RunFolderError(run_lock.unwritable("runs_dir", self.path.parent, error)) from error

    def begin_attempt(self) -> Attempt:
        """Start the next attempt and say in run.json that the run is running here."""
        self.close_attempts()
        self._remove_leftovers()
        number = self.num_attempts + 1
        attempt = self.attempt(number)
        attempt.logs_path.mkdir(parents=True)
        inode = self.path.stat().st_ino  # a copy of the folder is told by it
        process = run_lock.this_process()
        self.update(status="running", attempts=number, lost_steps=0, inode=inode, **process, versions=versions())
        return attempt

    def close_attempts(self) -> None:
        """Record the end of a last attempt that was killed before it could; for who holds the run's lock."""
        last = self.attempt(self.num_attempts)
        if last.path.is_dir() and not last.exit_path.exists():
            last.finish("died", self.read().get("step"), None)

    def _remove_leftovers(self) -> None:
        """Remove what processes left that were killed while they wrote; for who holds the run's lock."""
        last = self.attempt(self.num_attempts)
        with _exclusive(self.path) as alone:
            for folder in (self.path, last.path, last.logs_path):
                for path in folder.glob(".*") if folder.is_dir() else ():
                    if LEFTOVER.fullmatch(path.name) and (alone or time.time() - path.stat().st_mtime > OLD_S):
                        with contextlib.suppress(OSError):
                            path.unlink()

    def current_attempt(self) -> Attempt:
        """The newest attempt, as a worker of it sees it."""
        return self.attempt(self.num_attempts)

    @property
    def num_attempts(self) -> int:
        """Attempts so far, read from disk."""
        if not self.attempts_path.is_dir():
            return 0
        return max((int(path.name) for path in self.attempts_path.iterdir() if path.name.isdecimal()), default=0)

    def attempt(self, number: int) -> Attempt:
        """One attempt by its number, whether or not it exists."""
        return Attempt(number, self.attempts_path / f"{number:04d}")

    @contextmanager
    def lock(self, *, lost: run_lock.Lost | None = None) -> Iterator[None]:
        """Hold the run for this process: nobody else may train into the folder meanwhile; pins it.

        Where the folder or the lease in it is moved, removed or replaced, this process ends with exit code 4.

        Args:
            lost: Called by another thread right before that end, with the error; None logs it.

        Raises:
            RunFolderError: Another process holds it, or the folder cannot be written.
        """
        with run_lock.held(self.path, last_trainer=self._last_trainer, lost=lost):
            self.pin()
            try:
                yield
            finally:
                self._unpin()

    def pin(self) -> None:
        """From here on `update` and `require_in_place` refuse another folder at the path, or none."""
        self._unpin()
        self._pinned = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _unpin(self) -> None:
        if self._pinned is not None:
            os.close(self._pinned)
            self._pinned = None

    def require_in_place(self) -> None:
        """See that the path still leads to the pinned folder; ask before writing by path.

        Raises:
            RunFolderError: It was moved, removed or replaced.
        """
        if self._pinned is None:
            return
        try:
            in_place = os.path.samestat(self.path.stat(), os.fstat(self._pinned))
        except (FileNotFoundError, NotADirectoryError):
            in_place = False
        except OSError:  # the disk has a bad moment; who writes will see
            return
        if not in_place:
            raise RunFolderError(
                f"run folder ({self.path}) must stay in its place while a run trains, but was moved, removed or "
                "replaced; nothing more is written there"
            )

    def _last_trainer(self) -> dict[str, Any]:
        """Who began an attempt in this folder and has not said that it ended; empty for nobody."""
        state = self.read()
        if state.get("status") != "running" or state.get("inode", -1) != self.path.stat().st_ino:
            return {}
        return state

    def holder(self) -> dict[str, Any] | None:
        """Who trains into the folder now, as far as one look tells; neither takes nor disturbs the lock.

        Returns host, pid, started and since, and as `renewed` the Unix time at which the holder last showed itself.
        None when nobody holds it, when the process is of this host and gone, and when it is of another host and has
        not renewed its lease for longer than clocks may differ.
        """
        return run_lock.holder(self.path)


def versions() -> dict[str, str]:
    """The versions that decide what a run computes; imports none of the packages."""
    found = {"python": platform.python_version()}
    for package in ("modlib", "torch", "numpy", "gin-config"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _exclusive(folder: Path) -> Iterator[bool]:
    """Let one process at a time change a file of the folder; yields False where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _read_json(path: Path, schema: Any) -> dict[str, Any]:
    """The object in a JSON file; empty when it is missing or damaged."""
    try:
        return read_json(path, schema)  # type: ignore[no-any-return]
    except JSONError:
        return {}
