"""Limits of machine and process, met for real in a process of their own, and as libraries word them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.limits import LimitError, as_limit


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free some space, then the same command continues"),
        (errno.EDQUOT, "Disk quota exceeded; free some of your quota, then"),
        (errno.EROFS, "Read-only file system; have the file system mounted for writing, then"),
        (errno.EFBIG, r"File too large; raise the limit of a file's size \(ulimit -f\), then"),
    ],
)
def test_a_disk_that_takes_nothing_is_an_error_of_the_run_folder(number: int, remedy: str) -> None:
    met = as_limit(OSError(number, os.strerror(number), "runs/run/config.gin"))
    assert isinstance(met, RunFolderError)
    assert met.exit_code == 4
    with pytest.raises(RunFolderError, match=rf"disk \(runs/run/config.gin\) must take what a run writes: {remedy}"):
        raise met


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "memory (limit of the process "),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "memory (limit",
        ),
        (ImportError("libtorch.so: failed to map segment from shared object"), "memory (limit of the process "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory (limit of the process "),
        (RuntimeError("can't start new thread"), "threads and processes (limit "),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "threads and processes (limit "),
        (OSError(errno.EMFILE, "Too many open files"), "open files (limit "),
        (ImportError("libc10.so: cannot open shared object file: Too many open files"), "open files (limit "),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."),
            "memory of the GPU must suffice for the run: CUDA",
        ),
    ],
)
def test_what_ran_out_is_named(error: Exception, text: str) -> None:
    met = as_limit(error)
    assert isinstance(met, LimitError)
    assert str(met).startswith(text)
    assert met.exit_code == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes differ"), BrokenPipeError(errno.EPIPE, "x"), ConfigError("memory"), KeyboardInterrupt()],
)
def test_other_errors_are_left_alone(error: BaseException) -> None:
    assert as_limit(error) is None


CODE = """
import resource, sys, threading
import typer
from modlib.cli.report import reported
which, limit = sys.argv[1], int(sys.argv[2])
app = typer.Typer(pretty_exceptions_enable=False)

@app.command()
def meet(rest: list[str]):
  with reported():
    resource.setrlimit(getattr(resource, which), (limit, limit))
    if which == "RLIMIT_FSIZE":
        from modlib.runtime.durable import atomic_write_text
        atomic_write_text(sys.argv[3], "x" * 100_000)
    elif which == "RLIMIT_NOFILE":
        files = [open("/dev/null") for _ in range(100)]
    elif sys.argv[3] == "threads":
        for _ in range(1000):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
    else:
        data = bytearray(4 << 30)

app()
"""


@pytest.mark.parametrize(
    ("which", "limit", "word", "code", "text"),
    [
        ("RLIMIT_FSIZE", 20 << 10, "", 4, "must take what a run writes: File too large"),
        ("RLIMIT_NOFILE", 16, "x", 1, "open files (limit 16) must suffice for the run; raise it (ulimit -n 4096)"),
        ("RLIMIT_AS", 1 << 30, "memory", 1, ") must suffice for the run; raise it with ulimit -v, or"),
        ("RLIMIT_AS", 1 << 30, "threads", 1, "threads and processes (limit "),
    ],
)
def test_a_limit_that_is_met(tmp_path, which: str, limit: int, word: str, code: int, text: str) -> None:  # type: ignore[no-untyped-def]
    words = [sys.executable, "-c", CODE, which, str(limit), word or str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert text in done.stderr
