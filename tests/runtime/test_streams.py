"""Processes whose standard streams are closed, full or broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys
from modlib.runtime.streams import secure_streams
secure_streams()
with open(sys.argv[1], "w") as file:  # a checkpoint, say
    assert file.fileno() > 2, file.fileno()
    os.write(2, b"from C") if sys.argv[2] == "closed" else None
    for number in range(3):
        print(f"line {number} \\udc80", file=sys.stderr)
    print("x" * 100_000, file=sys.stderr, flush=True)
    file.write(f"written, {sys.stderr.isatty()} {sys.stderr.fileno()}")
"""


@pytest.mark.parametrize(
    ("redirection", "kind"),
    [("0<&- >&- 2>&-", "closed"), ("2>&-", "closed"), ("2>/dev/full", "full"), ("2>&1 | true", "broken")],
)
def test_nothing_that_is_printed_disturbs_the_process_or_its_files(tmp_path: Path, redirection: str, kind: str) -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'set -o pipefail; "$@" {redirection}',
            "bash",
            sys.executable,
            "-c",
            CODE,
            tmp_path / "f",
            kind,
        ],
        timeout=30,
    )
    assert done.returncode == 0
    assert (tmp_path / "f").read_text() == "written, False 2"


def test_stderr_is_otherwise_as_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, tmp_path / "f", "open"], capture_output=True, timeout=30)
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "line 0 \\udc80"
    assert lines[-1] == "x" * 100_000


def test_no_secret_passes_whoever_writes(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading; from modlib.runtime.streams import secure_streams; secure_streams()\n"
        "os.environ['MY_PAT'] = 'canary' + '-value'\n"
        "print('see', os.environ['MY_PAT'], file=sys.stderr)\n"
        "def fail(): raise ValueError('thread ' + os.environ['MY_PAT'])\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "raise KeyError('at the end ' + os.environ['MY_PAT'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "canary-value" not in done.stderr
    assert done.stderr.startswith("see ***\n")
    assert "ValueError: thread ***\n" in done.stderr
    assert done.stderr.endswith("KeyError: 'at the end ***'\n")
