"""The process that talks to W&B, seen from the run: start it, hand it messages, notice that it is gone, end it."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from modlib.runtime.json_files import parse_json
from modlib.runtime.signals import ignored_in_children

logger = logging.getLogger("modlib")

PROCESS = (sys.executable, "-m", "modlib.tracking.wandb_process")
COULD_NOT_START = 3  # its exit status then; another one would fare no better
STALLED_S = 60.0  # a process that reads nothing for so long is taken for dead


class ChildGone(OSError):
    """The process has ended, or reads nothing any more."""


class Child:
    """A process of W&B.

    Args:
        log_path: Gets whatever wandb itself prints.
        options: What the process is told first.
    """

    def __init__(self, log_path: Path, options: Mapping[str, Any]) -> None:
        self.mode = ""  # "online" or "offline" once it has begun to record
        self.began = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "WANDB_DIR")}
        # Ctrl-C reaches it too: until it ignores that itself, nobody may stop what is to record how the run ended
        with open(log_path, "ab") as log, ignored_in_children():
            self.process = subprocess.Popen(
                PROCESS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        atexit.register(self.end)  # where the broker gave up on the subscriber, its process must not survive
        self._listener = threading.Thread(
            target=self._listen, args=(self.process.stdout,), name="modlib WandB listener", daemon=True
        )
        self._listener.start()
        self.send("start", options)

    def send(self, kind: str, content: Mapping[str, Any]) -> None:
        """Hand it a message.

        Raises:
            ChildGone: It has ended, or has not read for STALLED_S.
        """
        assert self.process.stdin is not None
        data = memoryview(json.dumps([kind, content]).encode() + b"\n")
        deadline = time.monotonic() + STALLED_S
        while data:
            if self.process.poll() is not None:
                raise ChildGone("it has ended")
            if not select.select([], [self.process.stdin], [], 0.5)[1]:
                if time.monotonic() > deadline:
                    raise ChildGone(f"it has read nothing for {STALLED_S:g} s")
                continue
            try:
                data = data[os.write(self.process.stdin.fileno(), data) :]
                deadline = time.monotonic() + STALLED_S
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise ChildGone("it has ended") from error

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None when it has not ended within this time."""
        try:
            status = self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        self._listener.join(1.0)
        return status

    def end(self) -> None:
        """Leave nothing behind: neither the process nor what it started."""
        atexit.unregister(self.end)
        if self.process.poll() is None:
            kill_with_children(self.process.pid)
            self.process.wait()
        self._listener.join(1.0)
        with contextlib.suppress(OSError):  # what was not written yet has no reader any more
            self.process.stdin.close()  # type: ignore[union-attr]

    def _listen(self, said: IO[bytes]) -> None:
        """Note and log what the process has to say, until it ends."""
        for line in said:
            with contextlib.suppress(ValueError):
                level, text = parse_json(line, list[str])
                if level == "began":
                    self.mode = text
                else:
                    logger.log(logging.WARNING if level == "warning" else logging.INFO, "W&B: %s", text)


def kill_with_children(pid: int) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):  # itself first, or it says that they are gone
            with contextlib.suppress(psutil.Error):
                each.kill()
