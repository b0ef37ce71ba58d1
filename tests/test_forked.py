"""tests.forked: what is forked is like a process that was started, and nothing else is forked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked

SEEN = """
import atexit, json, os, sys
atexit.register(print, "at exit")
seen = dict(argv=sys.argv, folder=os.getcwd(), set=os.environ.get("ONE"), parent=os.getppid(), name=__name__,
            leads=os.getsid(0) == os.getpid(), descriptors=os.listdir("/proc/self/fd"), torch="torch" in sys.modules,
            first=sys.path[0], stdin=sys.stdin.read())
print(json.dumps(seen))
sys.exit(5)
"""


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return forked.run([sys.executable, *words], capture_output=True, text=True, timeout=60, **options)


def test_it_sees_what_a_started_process_sees(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SEEN)
    for words, name, first in ((["-c", SEEN], "-c", ""), ([str(tmp_path / "script.py")], None, str(tmp_path))):
        done = python(*words, "a", "b", cwd=tmp_path, env={**os.environ, "ONE": "1"}, input="typed")
        assert (done.returncode, done.stderr) == (5, "")
        line, end = done.stdout.splitlines()
        seen = json.loads(line)
        assert end == "at exit"
        assert seen["argv"] == [name or words[0], "a", "b"]
        assert (seen["folder"], seen["set"], seen["stdin"]) == (str(tmp_path), "1", "typed")
        assert (seen["parent"], seen["leads"], seen["name"]) == (os.getpid(), True, "__main__")
        assert (seen["first"], seen["torch"]) == (first, True)
        assert len(seen["descriptors"]) <= 5, "the three, the one that lists them, and the one for further forks"


def test_its_streams_are_those_it_was_given(tmp_path: Path) -> None:
    code = (
        "import sys; sys.stdout.reconfigure(errors='replace'); print(sys.stdout.isatty(), sys.stdout.seekable());"
        "print('said', file=sys.stderr)"
    )
    assert python("-c", code).stdout == "False False\n"
    with open(tmp_path / "out", "w+") as file:
        assert forked.run([sys.executable, "-c", code], stdout=file, stderr=subprocess.STDOUT).returncode == 0
        assert sorted((tmp_path / "out").read_text().splitlines()) == ["False True", "said"]


def test_how_it_ends() -> None:
    assert python("-c", "pass").returncode == 0
    failed = python("-c", "raise ValueError('this')")
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, "ValueError: this")
    told = python("-c", "import sys; sys.exit('told')")
    assert (told.returncode, told.stderr) == (1, "told\n")
    assert python("-c", "import os; os.kill(os.getpid(), 15)").returncode == -signal.SIGTERM
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    with forked.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert process.poll() is None
        process.kill()
        assert process.wait(10) == -signal.SIGKILL


def test_descriptors_are_passed_under_their_numbers() -> None:
    reader, writer = os.pipe()
    with forked.Popen([sys.executable, "-c", f"import os; os.write({writer}, b'through')"], pass_fds=[writer]) as one:
        assert one.wait(60) == 0
    os.close(writer)
    assert os.read(reader, 100) == b"through"
    assert os.read(reader, 100) == b"", "nobody else holds the other end"
    os.close(reader)


HAS_TORCH = "import sys; print('torch' in sys.modules)"


def test_what_it_starts_is_forked_too_but_not_what_a_library_starts(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(HAS_TORCH)
    code = "import subprocess, sys; [subprocess.run([sys.executable, *words.split('@')]) for words in sys.argv[1:]]"
    assert python("-c", code, str(script), f"-c@{HAS_TORCH}").stdout == "True\nFalse\n"


def test_another_modlib_or_hash_seed_is_not_forked(tmp_path: Path) -> None:
    (tmp_path / "modlib").mkdir()
    assert python("-c", HAS_TORCH, env={**os.environ, "PYTHONPATH": str(tmp_path)}).stdout == "False\n"
    assert python("-c", HAS_TORCH, env={**os.environ, "PYTHONHASHSEED": "5"}).stdout == "False\n"
    assert python("-c", HAS_TORCH).stdout == "True\n"
