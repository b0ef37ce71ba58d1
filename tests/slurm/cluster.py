"""The real test cluster (slurm/testcluster), as tests use it: submit, wait, disturb, read what was left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import SESSION_VARIABLE
from tests.launching_command import ROOT, command, metrics

TESTCLUSTER = ROOT / "slurm" / "testcluster"
NODES = ("node1", "node2", "node3", "node4")
WAIT_S = 150.0


def wait_for(what: str, holds: Callable[[], Any], timeout_s: float = WAIT_S, log: Callable[[], str] = str) -> Any:
    """Poll until `holds()` is true; returns what it gave."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come within {timeout_s} s\n{log()}")


def ask(*words: str) -> str:
    """A SLURM command's output."""
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout


def testcluster(*words: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name != SESSION_VARIABLE}  # a daemon stays
    subprocess.run([str(TESTCLUSTER), *words], check=True, capture_output=True, timeout=60, env=clean)


class Submitted:
    """A run that was submitted: its folder, its job, its log.

    Args:
        path: The run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def state(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "run.json").read_text())
        except (OSError, ValueError):
            return {}

    @property
    def job_ids(self) -> list[str]:
        return self.state.get("slurm", {}).get("job_ids", [])

    @property
    def job_id(self) -> str:
        return self.job_ids[-1]

    @property
    def attempts(self) -> int:
        return len(list((self.path / "attempts").glob("*"))) if self.path.is_dir() else 0

    def log(self) -> str:
        """What the jobs printed, in order."""
        logs = sorted(self.path.glob("submitit/*_0_log.out"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text(errors="replace") for path in logs)

    def slurm_state(self, job_id: str | None = None) -> str:
        """The job's state; once it is over, the final one."""
        said = ask("scontrol", "--oneliner", "show", "job", job_id or self.job_id)
        found = re.search(r"JobState=(\S+)", said)
        return found[1] if found else ""

    def wait_for_step(self, step: int, timeout_s: float = WAIT_S) -> int:
        def reached() -> int:
            return max((line["step"] for line in metrics(self.path)), default=0)

        wait_for(f"step {step}", lambda: reached() >= step, timeout_s, self.log)
        return reached()

    def wait_for_status(self, *statuses: str, timeout_s: float = WAIT_S) -> str:
        return wait_for(f"status {statuses}", lambda: self.state.get("status") in statuses, timeout_s, self.log)

    def wait_until_over(self, job_id: str | None = None, timeout_s: float = WAIT_S) -> str:
        """Until SLURM says that the job has ended for good; returns how."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_for("the job's end", lambda: self.slurm_state(job_id) in over, timeout_s, self.log)
        return self.slurm_state(job_id)


def submit(
    gin_files: str | Sequence[str],
    params: Sequence[str] = (),
    *flags: str,
    runs_dir: Path,
    name: str,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> Submitted:
    """`launch.py --executor slurm`, which must succeed."""
    done = launch_slurm(gin_files, params, *flags, runs_dir=runs_dir, name=name, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return Submitted(runs_dir / name)


def launch_slurm(
    gin_files: str | Sequence[str],
    params: Sequence[str] = (),
    *flags: str,
    runs_dir: Path,
    name: str,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
    root: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """`launch.py --executor slurm` on the test cluster's profile, to its end."""
    first, *others = [gin_files] if isinstance(gin_files, str) else gin_files
    words = command(first, params, *flags, "--runs_dir", str(runs_dir), "--name", name)
    words[1] = str(root / "launch.py")
    for other in (*others, "testcluster.gin"):
        words += ["--gin_file", other]
    return subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
