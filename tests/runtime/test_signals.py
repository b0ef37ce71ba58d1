"""Signals really sent to real processes: seen at once, once, by the right process, and with a last deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modlib.runtime.signals import STOP_SIGNALS, StopRequest, ignored_in_children

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
def test_each_signal_is_recorded_with_its_time(number: signal.Signals):
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
        f"stop = StopRequest(grace_s=1, stacks_path=Path({str(stacks)!r}),"
        f" last_words=Path({str(words)!r}).write_text).install()\nblock_in_c()"
    )
    sent = time.monotonic()
    child.send(signal.SIGTERM)
    assert child.stderr_line() == "warning: SIGTERM: saving and stopping within 1 s\n"
    assert time.monotonic() - sent < 0.9, "the signal was seen only when the grace was over"
    code, _, err = child.end()
    assert code == 75
    assert "error: 1 s after SIGTERM the process had not stopped (exit code 75)" in err
    assert str(stacks) in err
    assert "in block_in_c" in stacks.read_text()
    assert words.read_text() == "1 s after SIGTERM the process had not stopped"


def test_last_words_that_hang_do_not_delay_the_exit():
    child = Child("StopRequest(grace_s=0.2, last_words=lambda reason: time.sleep(60)).install()\nblock_in_c()")
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


def test_a_grace_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"grace_s \(0\) must be greater than 0"):
        StopRequest(grace_s=0)


def test_two_installed_at_once_are_refused():
    with StopRequest(), pytest.raises(RuntimeError, match="another StopRequest is installed; uninstall it first"):
        StopRequest().install()
