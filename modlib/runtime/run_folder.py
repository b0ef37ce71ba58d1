"""The run folder: one run, one folder, across restarts, requeues and machines."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import socket
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

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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

    def error_path(self, rank: int) -> Path:
        """Where a failing rank records its error for the launcher."""
        return self.logs_path / f"rank-{rank}.error.json"

    def stacks_path(self, rank: int) -> Path:
        """Where a rank writes its stacks when it must end hard."""
        return self.path / "stacks" / f"rank-{rank}.txt"

    def finish(self, reason: str, step: int | None, exit_code: int) -> None:
        """Record how the attempt ended."""
        ending = {"reason": reason, "step": step, "exit_code": exit_code, "time": time.time()}
        durable.atomic_write_text(self.path / "exit.json", json.dumps(ending, indent=1) + "\n")


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

    def read(self) -> dict[str, Any]:
        """run.json; empty when it is missing or torn."""
        try:
            content = json.loads(self.run_json_path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json, in one rename."""
        durable.atomic_write_text(self.run_json_path, json.dumps({**self.read(), **fields}, indent=1) + "\n")

    def create(self) -> None:
        """Make the folder and what every run has in it.

        Raises:
            RunFolderError: It cannot be written.
        """
        try:
            for folder in (self.path, self.checkpoints_path, self.attempts_path):
                folder.mkdir(parents=True, exist_ok=True)
            durable.atomic_write_text(self.path / ".write-test", "written, waited for and renamed\n")
            (self.path / ".write-test").unlink()
        except OSError as error:
            raise RunFolderError(
                f"runs_dir ({self.path.parent}) must be a folder that can be written: {error.strerror or error}; "
                "choose another with --runs_dir"
            ) from error

    def begin_attempt(self) -> Attempt:
        """Start the next attempt and say in run.json that the run is running here."""
        number = self.num_attempts + 1
        attempt = self._attempt(number)
        attempt.logs_path.mkdir(parents=True)
        self.update(status="running", attempts=number, host=socket.gethostname(), pid=os.getpid(), versions=versions())
        return attempt

    def current_attempt(self) -> Attempt:
        """The newest attempt, as a worker of it sees it."""
        return self._attempt(self.num_attempts)

    @property
    def num_attempts(self) -> int:
        """Attempts so far, read from disk."""
        if not self.attempts_path.is_dir():
            return 0
        return max((int(path.name) for path in self.attempts_path.iterdir() if path.name.isdecimal()), default=0)

    def _attempt(self, number: int) -> Attempt:
        return Attempt(number, self.attempts_path / f"{number:04d}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process: nobody else may train into the folder meanwhile.

        The lease names host, pid and start time. A lease of a process that is gone from this host is taken over; one
        from another host is respected unless that host's lock on the file is gone.

        Raises:
            RunFolderError: Another process holds it.
        """
        path = self.path / "lease.json"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            holder = _lease(path)
            if not _locked(descriptor) or _alive_elsewhere(holder):
                raise RunFolderError(self._held_by(holder))
            if holder:
                logger.info("taking over from process %s on %s, which is gone", holder.get("pid"), holder.get("host"))
            lease = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": _start_time(os.getpid()),
                "since": time.time(),
            }
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(lease).encode(), 0)
            os.fsync(descriptor)
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

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


def _locked(descriptor: int) -> bool:
    """Take the file's lock; True too where the file system has no locks, since the lease then decides."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _lease(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive_elsewhere(holder: dict[str, Any]) -> bool:
    """Whether the lease names another process of this host that still runs (for file systems without locks)."""
    if holder.get("host") != socket.gethostname() or holder.get("pid") == os.getpid():
        return False
    started = _start_time(int(holder.get("pid", 0)))
    return started is not None and abs(started - float(holder.get("started") or 0)) < 1.0


def _start_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, ValueError):
        return None
