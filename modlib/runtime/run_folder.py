"""The run folder: one run, one folder, across restarts, requeues and machines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, RunFolderError

logger = logging.getLogger("modlib")

SWEEP_FILE = "sweep.json"  # in the folder of a sweep, beside the folders of its points
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LEASE_RENEWED_S = 8.0
LEASE_LASTS_S = 25.0  # three renewals
CLOCKS_DIFFER_S = 60.0  # hosts and file servers agree on the time to within this
SETTLE_S = 0.3


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
    return name


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
        """Record how the attempt ended.

        Args:
            reason: "finished", "stopped", "failed" or "died".
            step: Optimizer steps done; None when unknown.
            exit_code: None when nobody was left to see it.
        """
        ending = {"reason": reason, "step": step, "exit_code": exit_code, "time": time.time()}
        durable.atomic_write_text(self.exit_path, json.dumps(ending, indent=1) + "\n")

    def ending(self) -> dict[str, Any]:
        """What `finish` recorded; empty before."""
        return _read_json(self.exit_path)


class RunFolder:
    """Paths and identity of one run.

    Args:
        path: The folder; its name is the run's.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.name

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
        """run.json; empty when it is missing or torn."""
        return _read_json(self.run_json_path)

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json, in one rename; processes that do so at once lose nothing."""
        with _exclusive(self.path):
            durable.atomic_write_text(self.run_json_path, json.dumps({**self.read(), **fields}, indent=1) + "\n")

    def create(self) -> None:
        """Make the folder and what every run has in it.

        Raises:
            RunFolderError: It cannot be written.
        """
        try:
            for folder in (self.path, self.checkpoints_path, self.attempts_path):
                folder.mkdir(parents=True, exist_ok=True)
            test = self.path / f".write-test-{os.getpid()}"  # another process may be testing too
            durable.atomic_write_text(test, "written, waited for and renamed\n")
            test.unlink()
        except OSError as error:
            raise RunFolderError(_unwritable("runs_dir", self.path.parent, error)) from error

    def begin_attempt(self) -> Attempt:
        """Start the next attempt and say in run.json that the run is running here."""
        self.close_attempts()
        number = self.num_attempts + 1
        attempt = self.attempt(number)
        attempt.logs_path.mkdir(parents=True)
        self.update(status="running", attempts=number, host=socket.gethostname(), pid=os.getpid(), versions=versions())
        return attempt

    def close_attempts(self) -> None:
        """Record the end of a last attempt that was killed before it could; for who holds the run's lock."""
        last = self.attempt(self.num_attempts)
        if last.path.is_dir() and not last.exit_path.exists():
            last.finish("died", self.read().get("step"), None)

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
    def lock(self) -> Iterator[None]:
        """Hold the run for this process: nobody else may train into the folder meanwhile.

        A file lock decides where the file system has locks that all hosts see. The lease decides elsewhere, and names
        host, pid and start time. A lease of this host counts while its process lives; one of another host counts while
        it is renewed, which is watched for LEASE_LASTS_S where it looks fresh.

        Raises:
            RunFolderError: Another process holds it, or the folder cannot be written.
        """
        path = self.path / "lease.json"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunFolderError(_unwritable("run folder", self.path, error)) from error
        _leases_held.add(descriptor)
        try:
            holder = _read_json(path)
            locked = _lock_file(descriptor)
            if locked is False or _holds(path, holder):
                raise RunFolderError(self._held_by(holder))
            if holder:
                logger.info("taking over from process %s on %s, which is gone", holder.get("pid"), holder.get("host"))
            lease = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": _start_time(os.getpid()),
                "since": time.time(),
            }
            data = json.dumps(lease).encode()
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
            if locked is None:
                time.sleep(SETTLE_S)  # of two that saw the folder free, the one that wrote last has it
                if (winner := _read_json(path)) != lease:
                    raise RunFolderError(self._held_by(winner))
            try:
                with _renewing(descriptor):
                    yield
            finally:
                os.ftruncate(descriptor, 0)
        finally:
            _leases_held.discard(descriptor)
            os.close(descriptor)

    def holder(self) -> dict[str, Any] | None:
        """Who trains into the folder now, as far as one look tells; neither takes nor disturbs the lock.

        Returns host, pid, started and since, and as `renewed` the Unix time at which the holder last showed itself.
        None when nobody holds it, when the process is of this host and gone, and when it is of another host and has
        not renewed its lease for longer than clocks may differ.
        """
        path = self.path / "lease.json"
        holder = _read_json(path)
        try:
            renewed = path.stat().st_mtime
        except OSError:
            return None
        if not holder:
            return None
        if holder.get("host") == socket.gethostname():
            alive = _lives_here(holder)
        else:
            alive = time.time() - renewed <= LEASE_LASTS_S + CLOCKS_DIFFER_S
        return {**holder, "renewed": renewed} if alive else None

    def _held_by(self, holder: dict[str, Any]) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"])) if "since" in holder else "unknown"
        return (
            f"run folder ({self.path}) must have one trainer at a time: process {holder.get('pid', '?')} on "
            f"{holder.get('host', '?')} holds it since {since}; wait for it, stop it, or choose another --name"
        )


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
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time change a file of the folder; without effect where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unwritable(name: str, folder: Path, error: OSError) -> str:
    return (
        f"{name} ({folder}) must be a folder that can be written: {error.strerror or error}; "
        "choose another with --runs_dir"
    )


def _lock_file(descriptor: int) -> bool | None:
    """Take the file's lock: whether it was free, or None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when it is missing or torn."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _holds(path: Path, holder: dict[str, Any]) -> bool:
    """Whether a lease still counts, for file systems whose locks are missing or seen by one host only."""
    if not holder:
        return False
    if holder.get("host") == socket.gethostname():
        return _lives_here(holder)
    return _is_renewed(path, holder)


def _lives_here(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote a lease on this host still lives."""
    try:
        pid, since = int(holder.get("pid", 0)), float(holder.get("started") or 0)
    except (TypeError, ValueError):
        return False
    started = _start_time(pid)
    return started is not None and abs(started - since) < 1.0


def _is_renewed(path: Path, holder: dict[str, Any]) -> bool:
    """Watch the lease of another host for as long as it may take to be renewed. Needs no clock in common with it."""
    before = path.stat().st_mtime_ns
    if time.time() - before / 1e9 > LEASE_LASTS_S + CLOCKS_DIFFER_S:
        return False
    logger.info(
        "watching for %g s whether process %s on %s still renews its lease",
        LEASE_LASTS_S,
        holder.get("pid"),
        holder.get("host"),
    )
    deadline = time.monotonic() + LEASE_LASTS_S
    while time.monotonic() < deadline:
        if path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.1)
    return False


@contextmanager
def _renewing(descriptor: int) -> Iterator[None]:
    """Touch the lease now and then, so that other hosts see that its holder lives."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_RENEWED_S):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=renew, name="modlib-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _start_time(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


_leases_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked data worker that outlives its trainer must not keep the run locked."""
    while _leases_held:
        with contextlib.suppress(OSError):
            os.close(_leases_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
