"""The end of a process that makes no progress: real processes that hang, are suspended, or are merely slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modlib.runtime.errors import EXIT_HANG
from modlib.runtime.watchdog import UNHURRIED, Watchdog, hang_error

SCRIPT = """\
import sys, threading, time
from pathlib import Path
from modlib.runtime.watchdog import Watchdog

folder = Path(sys.argv[1])

def stuck_here():
    threading.Event().wait()

def ended(error):
    (folder / "error").write_text(str(error))

with Watchdog({limit}, stacks_path=lambda rank: folder / f"{{rank}}.txt", ended=ended) as watchdog:
{body}
"""


@contextmanager
def process(folder: Path, limit: float | None, body: str) -> Iterator[subprocess.Popen[str]]:
    code = SCRIPT.format(limit=limit, body="".join(f"    {line}\n" for line in body.splitlines()))
    command = [sys.executable, "-c", code, str(folder)]
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for stream in (started.stdin, started.stdout):
            if stream is not None:
                stream.close()


def test_a_hang_ends_with_stacks_and_the_error(tmp_path: Path) -> None:
    with process(tmp_path, 0.5, "watchdog.doing('waiting')\nstuck_here()") as started:
        assert started.wait(60) == EXIT_HANG
    stacks = (tmp_path / "0.txt").read_text()
    assert stacks.startswith("rank 0 on  was waiting for 0.5 s\n")
    assert "in stuck_here" in stacks
    assert (tmp_path / "error").read_text() == (
        f"no progress for 0.5 s: rank 0 was waiting. Stacks: {tmp_path}. If this may take so long, raise "
        "train.hang_limit_s"
    )


@pytest.mark.slow
def test_the_stacks_are_written_also_where_the_error_cannot_be(tmp_path: Path) -> None:
    body = "watchdog._ended = lambda error: stuck_here()\nwatchdog.doing('waiting')\nstuck_here()"
    before = time.monotonic()
    with process(tmp_path, 0.5, body) as started:
        assert started.wait(60) == EXIT_HANG
    assert time.monotonic() - before > 10  # the time that last words have
    assert (tmp_path / "0.txt").exists()


def test_the_start_and_what_is_no_step_may_take_longer(tmp_path: Path) -> None:
    assert UNHURRIED > 3
    slow = "time.sleep(1)\nfor n in range(4):\n    watchdog.doing('a step')\n    time.sleep(0.1)\n"
    slow += f"watchdog.doing('saving', {UNHURRIED})\ntime.sleep(1)"
    with process(tmp_path, 0.5, slow) as started:
        assert started.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


def test_signs_of_life_begin_the_limit_anew(tmp_path: Path) -> None:
    with process(
        tmp_path, 0.5, "watchdog.doing('a')\nfor n in range(8):\n    time.sleep(0.2)\n    watchdog.alive()"
    ) as one:
        assert one.wait(60) == 0


def test_the_error_is_told_also_where_stacks_cannot_be_written(tmp_path: Path) -> None:
    body = "watchdog._stacks_path = lambda rank: folder / 'a_file' / 'rank'\nwatchdog.doing('waiting')\nstuck_here()"
    (tmp_path / "a_file").touch()
    with process(tmp_path, 0.5, body) as started:
        assert started.wait(60) == EXIT_HANG
    assert "rank 0 was waiting. Stacks:" in (tmp_path / "error").read_text()


def test_a_rank_with_another_limit_writes_its_stacks_when_one_hangs(tmp_path: Path) -> None:
    hosts = ("a", "b")
    script = SCRIPT.replace("ended=ended", f"ended=ended, hosts={hosts}, rank=RANK").replace('"error"', '"error-RANK"')
    bodies = ["watchdog.doing('saving', 1000)\n    stuck_here()", "watchdog.doing('computing')\n    stuck_here()"]
    ranks = [
        subprocess.Popen([sys.executable, "-c", code.replace("RANK", str(rank)), str(tmp_path)])
        for rank, body in enumerate(bodies)
        for code in [script.format(limit=1.0, body=f"    {body}\n")]
    ]
    try:
        assert ranks[1].wait(60) == EXIT_HANG
        assert ranks[0].poll() is None
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert (
        (tmp_path / "error-1")
        .read_text()
        .startswith("no progress for 1 s: rank 0 (a) was saving; rank 1 (b) was computing. Stacks:")
    )
    assert not (tmp_path / "error-0").exists()
    assert "in stuck_here" in (tmp_path / "0.txt").read_text()


def test_without_a_limit_nothing_is_watched(tmp_path: Path) -> None:
    with process(tmp_path, None, "watchdog.doing('a step')\nprint(threading.active_count())") as started:
        assert started.communicate(timeout=60)[0] == "1\n"


def test_time_during_which_the_process_was_stopped_does_not_count(tmp_path: Path) -> None:
    body = "watchdog.doing('a step')\nprint('begun', flush=True)\ntime.sleep(0.5)\nwatchdog.doing('ending', 9)\ninput()"
    with process(tmp_path, 2.0, body) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        os.kill(started.pid, signal.SIGSTOP)
        time.sleep(3)  # longer than the limit
        os.kill(started.pid, signal.SIGCONT)
        started.communicate("\n", timeout=60)
        assert started.returncode == 0


def test_time_in_a_debugger_does_not_count(tmp_path: Path) -> None:
    body = "watchdog.doing('a step')\nbreakpoint()\ntime.sleep(0.2)\nprint('went on')"
    with process(tmp_path, 0.5, body) as started:
        assert started.stdout is not None
        assert started.stdout.read(6) == "> <str"
        time.sleep(1.5)  # longer than the limit
        out, _ = started.communicate("c\n", timeout=60)
        assert out.endswith("went on\n")
        assert started.returncode == 0


def test_an_error_within_the_block_is_raised_and_ends_the_watching(tmp_path: Path) -> None:
    watchdog = Watchdog(60.0, stacks_path=lambda rank: tmp_path / str(rank))
    with pytest.raises(ValueError, match="wrong"), watchdog:
        raise ValueError("wrong")
    assert not watchdog._thread.is_alive()


HOSTS = ("a", "a", "b", "b", "c", "c")


@pytest.mark.parametrize(
    ("found", "said", "blamed"),
    [
        (
            {0: "computing step 4", 1: "computing step 4", 2: "loading", 3: "computing step 4", 4: "x", 5: "x"},
            "rank 2 (b) was loading; rank 4, 5 (c) were x; rank 0, 1, 3 (a, b) were computing step 4",
            (),
        ),
        (
            {0: "x", 1: "x", 2: "x", 3: "x"},
            "rank 4, 5 (c) wrote no stacks, as if frozen or gone; rank 0, 1, 2, 3 (a, b) were x",
            ("c",),
        ),
        (  # the process, not its host
            {0: "x", 1: "x", 2: "x", 3: "x", 4: "x"},
            "rank 5 (c) wrote no stacks, as if frozen or gone; rank 0, 1, 2, 3, 4 (a, b, c) were x",
            (),
        ),
        (  # as likely the host that finds no other
            {0: "x", 1: "x"},
            "rank 2, 3, 4, 5 (b, c) wrote no stacks, as if frozen or gone; rank 0, 1 (a) were x",
            (),
        ),
    ],
)
def test_who_is_named_and_which_host_is_blamed(
    found: dict[int, str], said: str, blamed: tuple[str, ...], tmp_path: Path
) -> None:
    error = hang_error(found, HOSTS, 600.0, tmp_path)
    assert str(error) == (
        f"no progress for 600 s: {said}. Stacks: {tmp_path}. If this may take so long, raise train.hang_limit_s"
    )
    assert error.hosts == blamed
