"""Tests have the same ids in every process: workers that collect different ones run no test at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import COLLECTED, IDS_VARIABLE, ROOT

DIFFERENT = "the clock, the order of a set, a temporary path or an object's address is in a parameter: give it an id"


@pytest.mark.slow
def test_two_processes_collect_the_same_ids(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ours = request.config.stash[COLLECTED]
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    with _collecting(tmp_path, hash_seed=1001) as process:
        if not files <= {name.partition("::")[0] for name in ours}:  # this session looks at a part of the tests
            time.sleep(1.1)  # the clocks in file formats tick once a second
            with _collecting(tmp_path, hash_seed=1002) as other:
                ours = _ids(other, tmp_path, hash_seed=1002)
        theirs = _ids(process, tmp_path, hash_seed=1001)
    assert sorted(set(ours) ^ set(theirs)) == [], DIFFERENT
    assert ours == theirs, "the ids come in another order; sort what they are made of"


def _collecting(folder: Path, hash_seed: int) -> subprocess.Popen[str]:
    """A new process that finds all tests, with other hashes and another folder for temporary files."""
    settings = "--strict-markers -p no:cacheprovider"  # without workers
    words = ["-m", "pytest", "--collect-only", "-qq", "--assert=plain", "-o", f"addopts={settings}", "tests"]
    own = {"PYTHONHASHSEED": str(hash_seed), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment | own | {IDS_VARIABLE: str(folder / f"ids-{hash_seed}.json")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ids(process: subprocess.Popen[str], folder: Path, hash_seed: int) -> list[str]:
    output, _ = process.communicate()
    assert process.returncode == 0, output[-2000:]
    return json.loads((folder / f"ids-{hash_seed}.json").read_text())
