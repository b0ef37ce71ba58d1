"""Each test finds the test cluster whole and leaves no job behind."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import NODES, ask, wait_for


@pytest.fixture(autouse=True)
def _clean_cluster() -> Iterator[None]:
    _settle()
    yield
    _settle()


def _settle() -> None:
    """Cancel every job, bring every node back, wait until all are idle."""
    for number in ("", "--signal=KILL"):  # the second for what takes its time to save
        if ids := ask("squeue", "-h", "-o", "%i").split():
            subprocess.run(["scancel", *filter(None, [number]), *ids], capture_output=True, timeout=60)
            time.sleep(0.5)
    wait_for("an empty queue", lambda: not ask("squeue", "-h", "-o", "%i").split(), 90)
    for node in NODES:
        if "idle" not in ask("sinfo", "-h", "-n", node, "-o", "%T"):
            with_state = ask("sinfo", "-h", "-n", node, "-o", "%T")
            if "down" in with_state or "drain" in with_state:
                ask("scontrol", "update", f"nodename={node}", "state=resume")
    wait_for("idle nodes", lambda: set(ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) == set(NODES), 60)
