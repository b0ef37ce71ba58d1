"""A launcher process with ranks that are small scripts, for tests: start, signal, read what it left, see all gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import forked

DEADLINE_S = 30.0

LAUNCHER = """
import sys
from pathlib import Path
from modlib.launching import local
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.streams import secure_streams
secure_streams()
run = RunFolder(Path(sys.argv[1]))
run.create()
local.STOP_GRACE_S = local.PEER_GRACE_S = float(sys.argv[3])
place = local.Local(num_processes=2, threads_per_process=1)
sys.exit(local.run_local([sys.executable, sys.argv[2]], place, run, run.begin_attempt()))
"""
# What a rank of modlib does: its error is logged and recorded, a stop request is seen, its parent is watched.
RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path
from modlib.launching.local import die_with_parent
from modlib.runtime.errors import DataError, Preempted
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.signals import STOP_SIGNALS, StopRequest
if "BLOCKED" not in os.environ:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
die_with_parent()
run = RunFolder(sys.argv[1])
attempt = run.current_attempt()
rank = int(os.environ["RANK"])
start_logging(rank=rank, world_size=2, log_file=attempt.log_path(rank))
def ready():
    (run.path / f"ready-{rank}.tmp").write_text(str(os.getpid()))
    (run.path / f"ready-{rank}.tmp").rename(run.path / f"ready-{rank}")
def wait_for(name):
    while not (run.path / name).exists():
        time.sleep(0.01)
try:
{body}
except BaseException as error:
    sys.exit(report_error(error, record_path=attempt.error_path(rank), rank=rank))
"""


class Launched:
    """A running launcher of two ranks."""

    def __init__(self, process: subprocess.Popen[str], run: Path) -> None:
        self.process, self.run = process, run
        self.pids: dict[int, int] = {}
        self.logs = run / "attempts" / "0001" / "logs"

    def wait_for_ranks(self, *ranks: int) -> None:
        """Until these ranks have called `ready()`."""
        for rank in ranks or (0, 1):
            wait_until(lambda rank=rank: (self.run / f"ready-{rank}").exists())  # type: ignore[misc]
            self.pids[rank] = int((self.run / f"ready-{rank}").read_text())

    def end(self, timeout_s: float = DEADLINE_S) -> tuple[int, str]:
        """(exit code, stderr) when the launcher has ended."""
        _, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, err

    def log(self, rank: int) -> str:
        return (self.logs / f"rank-{rank}.out").read_text()


@contextmanager
def launched(
    folder: Path,
    body: str,
    *,
    grace_s: float = 10.0,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    stderr: int | None = subprocess.PIPE,
    before_exec: Callable[[], object] | None = None,
) -> Iterator[Launched]:
    """Launch two ranks that run `body`; afterwards nothing of it may be left, or the test fails."""
    script = folder / "rank.py"
    script.write_text(RANK.replace("{body}", "\n".join(f"    {line}" for line in body.strip("\n").split("\n"))))
    run = folder / "run"
    (folder / "tmp").mkdir(exist_ok=True)
    process = forked.Popen(
        [sys.executable, "-c", LAUNCHER, str(run), str(script), str(grace_s)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=cwd or folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), **(environment or {})},
        start_new_session=True,
        preexec_fn=before_exec,
    )
    one = Launched(process, run)
    try:
        yield one
        if process.poll() is None:
            raise AssertionError("the test ended before the launcher did")
        wait_until(lambda: not alive(folder))
        wait_until(lambda: not list((folder / "tmp").glob("modlib-*")))
    finally:
        for number in [process.pid, *alive(folder)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


def alive(folder: Path) -> list[int]:
    """The living processes that a launch in this folder started, by their TMPDIR or working directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mark = f"\0TMPDIR={folder / 'tmp'}\0".encode()
            marked = mark in b"\0" + (path / "environ").read_bytes()
            if (marked or (path / "cwd").readlink() == folder) and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Poll until it holds; the deadline fails the test."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the deadline is over"
        time.sleep(0.01)
