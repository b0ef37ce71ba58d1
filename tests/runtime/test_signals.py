"""Signals really sent to real processes: seen at once, once, by the right process, and with a last deadline."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from modlib.runtime.errors import StoppedEarly
from modlib.runtime.signals import STOP_SIGNALS, StopRequest, handled_by, ignored_in_children

DEADLINE_S = 15.0
PREAMBLE = """
import ctypes, os, signal, subprocess, sys, threading, time
from pathlib import Path
from modlib.runtime.logs import start_logging
from modlib.runtime.signals import StopRequest, ignored_in_children
start_logging()
def block_in_c():  # like a collective whose peer is gone: no signal handler of Python's can run
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


class Child:
    """A Python process that prints "ready"; its stderr is read as it comes."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stderr_line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_is_recorded_with_its_time(number: signal.Signals, request: pytest.FixtureRequest):
    # under nohup SIGHUP is ignored, by this process too
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))
    with StopRequest() as stop:
        assert stop.signal is None
        assert not stop.requested
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.requested)
        assert stop.signal == number.name
        assert stop.time == pytest.approx(time.time(), abs=5)


def wait_until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_main_thread_blocked_in_c_is_logged_at_once_and_ended_by_the_grace_clock(tmp_path: Path):
    stacks = tmp_path / "stacks" / "rank-0.txt"
    words = tmp_path / "words"
    child = Child(
        f"words = Path({str(words)!r})\n"
        f"stop = StopRequest(grace_s=1, stacks_path=Path({str(stacks)!r}),"
        " last_words=lambda code: words.write_text(str(code))).install()\nblock_in_c()"
    )
    sent = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.stderr_line() == "warning: SIGTERM: saving and stopping within 1 s\n"
    assert time.monotonic() - sent < 0.9, "the signal was seen only when the grace was over"
    code, _, err = child.end()
    assert code == 75
    assert "error: 1 s after SIGTERM the process had not stopped; no step was done yet (exit code 75)" in err
    assert str(stacks) in err
    assert "in block_in_c" in stacks.read_text()
    assert words.read_text() == "75"


def test_last_words_that_hang_do_not_delay_the_exit():
    child = Child("StopRequest(grace_s=0.2, last_words=lambda *_: time.sleep(60)).install()\nblock_in_c()")
    child.send(signal.SIGUSR2)
    code, _, err = child.end()
    assert code == 75
    assert "in block_in_c" in err


def test_ctrl_c_saves_and_again_ends_at_once():
    child = Child("StopRequest(grace_s=50).install()\nblock_in_c()")
    child.send(signal.SIGINT)
    assert child.stderr_line() == "warning: SIGINT: saving and stopping within 50 s; Ctrl-C again stops now\n"
    child.send(signal.SIGINT)
    code, _, err = child.end()
    assert code == 130
    assert "interrupted twice: stopping now, without saving" in err


def test_later_signals_are_logged_and_the_first_one_counts():
    child = Child("stop = StopRequest(grace_s=50).install()\nprint('ready', flush=True)\ninput()\nprint(stop.signal)")
    child.send(signal.SIGUSR2)
    assert child.stderr_line().startswith("warning: SIGUSR2: saving")
    child.send(signal.SIGTERM)
    assert child.stderr_line() == "warning: SIGTERM: already stopping because of SIGUSR2\n"
    child.process.kill()
    child.end()


def test_uninstall_gives_everything_back_and_stops_the_clock():
    def own(number: int, frame: object) -> None: ...

    previous = signal.signal(signal.SIGUSR2, own)
    try:
        with StopRequest(grace_s=0.2) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: stop.requested)
        assert signal.getsignal(signal.SIGUSR2) is own
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
        assert not [thread for thread in threading.enumerate() if thread.name == "modlib-signals"]
        with StopRequest():  # can be installed again
            pass
    finally:
        signal.signal(signal.SIGUSR2, previous)


def test_a_request_without_a_signal_starts_the_grace_clock():
    child = Child("stop = StopRequest(grace_s=0.2).install()\nstop.request('time limit')\nblock_in_c()")
    code, _, err = child.end()
    assert code == 75
    assert "time limit: saving and stopping within 0.2 s" in err


def test_on_another_thread_nothing_is_installed_and_the_reason_is_given(caplog: pytest.LogCaptureFixture):
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    thread = threading.Thread(target=stop.install)
    thread.start()
    thread.join()
    assert stop.not_installed == "signals can be handled on the main thread only"
    assert "stop signals are not handled: signals can be handled on the main thread only" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    stop.uninstall()
    stop.request("time limit")
    assert stop.signal == "time limit"


def test_a_forked_childs_signal_does_not_stop_the_parent():
    with StopRequest() as stop:
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"1")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGUSR2)  # the parent's own handling is as before
        wait_until(lambda: stop.requested)


@pytest.mark.parametrize("how", ["exec", "fork"])
def test_helpers_started_under_ignored_in_children_survive_and_the_parent_still_sees(how: str):
    with StopRequest() as stop:
        with ignored_in_children():
            if how == "exec":
                helper = subprocess.Popen(["sleep", "60"]).pid
            elif (helper := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGTERM)  # not lost, although blocked in this thread
            wait_until(lambda: stop.requested)
        for number in STOP_SIGNALS:
            os.kill(helper, number)
        time.sleep(0.1)
        assert os.waitpid(helper, os.WNOHANG) == (0, 0), "the helper died from a stop signal"
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)


def test_without_a_grace_a_step_may_take_its_time_and_is_named():
    child = Child(
        "stop = StopRequest().install()\nstop.begins(30)\nstop.step_begins(31)\ntime.sleep(0.2)\nstop.step_ends(31)\n"
        "stop.step_begins(32)\nblock_in_c()"
    )
    child.send(signal.SIGINT)
    line = child.stderr_line()
    assert re.fullmatch(
        r"warning: SIGINT: saving and stopping after step 32 \(a step takes 0\.\d\ds\); Ctrl-C again stops now\n", line
    )
    time.sleep(0.5)
    assert child.process.poll() is None
    child.send(signal.SIGINT)
    code, _, err = child.end()
    assert code == 130
    assert "interrupted twice: stopping now, without saving; step 30 is saved; step 31 is lost (exit code 130)" in err


def test_a_hard_end_that_costs_steps_has_a_code_of_its_own():
    steps = "stop.begins(4)\nfor step in (5, 6): stop.step_begins(step); stop.step_ends(step)\n"
    child = Child(f"stop = StopRequest(grace_s=0.2).install()\n{steps}stop.step_begins(7)\nblock_in_c()")
    child.send(signal.SIGTERM)
    assert "saving and stopping within 0.2 s, after step 7 (a step takes 0.00s)" in child.stderr_line()
    code, _, err = child.end()
    assert code == 7
    assert (
        "error: 0.2 s after SIGTERM the process had not stopped; step 4 is saved; steps 5 to 6 are lost (exit code 7)"
        in err
    )


def test_after_a_save_nothing_is_lost():
    child = Child(
        "stop = StopRequest(grace_s=0.2).install()\nstop.begins(4)\nstop.step_begins(5)\nstop.step_ends(5)\n"
        "stop.is_saved()\nblock_in_c()"
    )
    child.send(signal.SIGTERM)
    code, _, err = child.end()
    assert code == 75
    assert "step 5 is saved (exit code 75)" in err


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_training_a_signal_interrupts_what_is_done_and_is_named(number: signal.Signals):
    child = Child(
        "from modlib.runtime.signals import answered\nwith answered():\n    print('ready')\n    time.sleep(60)"
    )
    child.send(number)
    code, _, err = child.end()
    assert code == (130 if number == signal.SIGINT else 75)
    assert err == f"{number.name}: stopped before training began; nothing was changed\n"


def test_before_training_a_main_thread_that_does_not_come_back_is_ended():
    child = Child(
        "from modlib.runtime import signals\nsignals.EARLY_END_S = 0.2\nwith signals.answered():\n    block_in_c()"
    )
    time.sleep(1)  # it says that it is ready just before it blocks
    child.send(signal.SIGHUP)
    code, _, err = child.end()
    assert code == 75
    assert err == "error: SIGHUP: stopped before training began (exit code 75)\n"


def test_the_time_limit_before_training_interrupts_too():
    child = Child(
        "from modlib.runtime.errors import StoppedEarly\ntry:\n"
        "    with StopRequest(stop_at=time.time() + 0.3, starting=True):\n"
        "        print('ready', flush=True)\n        time.sleep(60)\n"
        "except StoppedEarly as early:\n    print(early)"
    )
    code, out, _ = child.end()
    assert (code, out) == (0, "time limit: stopped before training began\n")


def test_signals_that_were_blocked_come_when_somebody_answers():
    child = Child(
        "from modlib.runtime.signals import STOP_SIGNALS, answered\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)\nprint('ready', flush=True)\ninput()\n"
        "with answered():\n    time.sleep(60)"
    )
    child.send(signal.SIGTERM)
    assert child.process.stdin is not None
    child.process.stdin.write("\n")
    code, _, err = child.end()
    assert (code, err) == (75, "SIGTERM: stopped before training began; nothing was changed\n")


def test_inside_a_block_another_handles_the_signals_and_nothing_else_happens():
    noted: list[int] = []
    with StopRequest(starting=True) as stop:
        with handled_by(lambda number, frame: noted.append(number)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
            wait_until(lambda: len(noted) == 2)
            time.sleep(0.05)
        assert not stop.requested
        with pytest.raises(StoppedEarly, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    with handled_by(lambda number, frame: noted.append(number)):  # where nobody has installed anything
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: len(noted) == 3)
    assert sorted(noted) == [signal.SIGHUP, signal.SIGHUP, signal.SIGINT]


def test_a_hard_end_gives_the_terminal_back():
    ours, theirs = pty.openpty()
    code = "stop = StopRequest().install()\nos.write(2, b'\\x1b[?25lstep 3')\nblock_in_c()"
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code], stdout=subprocess.PIPE, stderr=theirs, text=True
        )
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        process.stdout.close()
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose other side is closed
            while piece := terminal.read(4096):
                shown += piece
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert shown.endswith(b"\n")


def test_a_grace_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"grace_s \(0\) must be greater than 0"):
        StopRequest(grace_s=0)


def test_two_installed_at_once_are_refused():
    with StopRequest(), pytest.raises(RuntimeError, match="another StopRequest is installed; uninstall it first"):
        StopRequest().install()


def test_a_request_keeps_the_step_that_it_stops_after() -> None:
    """Another thread names it a moment later, when training may have said what is next."""
    with StopRequest(grace_s=60) as stop:
        stop.begins(0)
        stop.step_begins(1)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.step_ends(1)
        stop.waits_for(2)
        stop.step_begins(2)
        assert stop._last_step == 1
        stop.over()
