"""Several ranks on this machine: started together, ended together, the first error last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from modlib.components import component
from modlib.runtime.errors import EXIT_PREEMPTED, ConfigError
from modlib.runtime.run_folder import Attempt, RunFolder

LEAKING = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MODLIB_RENDEZVOUS")
PARENT_PIPE = "MODLIB_PARENT_PIPE"
STOP_GRACE_S = 30.0  # a rank told to stop saves first
PEER_GRACE_S = 5.0  # ranks notice a dead peer by themselves; those that do not are ended
POLL_S = 0.05


@component("launch", "local", name="Local")
class Local:
    """This machine as a place to run.

    Args:
        num_processes: Ranks, one process each. None: one per visible GPU, or one.
        threads_per_process: CPU threads of each rank. None: this process's cores shared out evenly.
    """

    def __init__(self, num_processes: int | None = None, threads_per_process: int | None = None) -> None:
        problems = [
            f"Local.{name} ({value}) must be at least 1; set it to 1 or more"
            for name, value in (("num_processes", num_processes), ("threads_per_process", threads_per_process))
            if value is not None and value < 1
        ]
        if problems:
            raise ConfigError(problems)
        self.num_processes = num_processes if num_processes is not None else max(1, visible_gpus())
        self.threads_per_process = threads_per_process or max(1, num_cores() // self.num_processes)

    def environment(self, rank: int, rendezvous: str) -> dict[str, str]:
        """The environment of one rank: this one's without what another launcher left, plus its place and threads."""
        clean = {
            name: value for name, value in os.environ.items() if name not in LEAKING and not name.startswith("SLURM_")
        }
        return clean | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.num_processes),
            "LOCAL_WORLD_SIZE": str(self.num_processes),
            "MODLIB_RENDEZVOUS": rendezvous,
            "OMP_NUM_THREADS": str(self.threads_per_process),
            "GLOO_SOCKET_IFNAME": clean.get("GLOO_SOCKET_IFNAME", "lo"),
        }


def visible_gpus() -> int:
    """GPUs that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(command: Sequence[str], local: Local, run: RunFolder, attempt: Attempt) -> int:
    """Run `command RUN_FOLDER` once per rank and wait for all; returns the exit code of the run.

    Rank 0 writes to this process's stderr, every other rank to its log file. A rank that fails ends the others, and
    its error is printed last. A signal to this process is passed on once as SIGTERM, upon which the ranks save. When
    this process dies, however it dies, the ranks die with it.

    Args:
        command: Without the run folder.
        local: How many ranks, with how many threads.
        run: The run.
        attempt: Where logs go.
    """
    with tempfile.TemporaryDirectory(prefix="modlib-rendezvous-") as folder:
        ranks = _Ranks([*command, str(run.path)], local, f"file://{folder}/store", attempt)
        with ranks:
            code, failed = ranks.wait()
    if failed is not None:
        print(_failure_text(attempt, failed, code), file=sys.stderr, flush=True)
    return code


class _Ranks:
    """The processes of one run."""

    def __init__(self, command: list[str], local: Local, rendezvous: str, attempt: Attempt) -> None:
        self.command, self.local, self.rendezvous, self.attempt = command, local, rendezvous, attempt
        self.processes: list[subprocess.Popen[bytes]] = []
        self.previous: dict[int, Any] = {}
        self.stop_signal: int | None = None
        self.stopped_at: float | None = None

    def __enter__(self) -> _Ranks:
        self.alive_reader, self.alive_writer = os.pipe()  # its end closes with this process: the ranks watch it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            if threading.current_thread() is threading.main_thread():
                self.previous[number] = signal.signal(number, self._note)
        for rank in range(self.local.num_processes):
            self.processes.append(self._start(rank))
        os.close(self.alive_reader)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        os.close(self.alive_writer)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def wait(self) -> tuple[int, int | None]:
        """(exit code, failing rank or None) when every rank has ended."""
        first: tuple[int, int] | None = None
        while True:
            codes = [process.poll() for process in self.processes]
            if first is None:
                first = next(((rank, code) for rank, code in enumerate(codes) if code not in (None, 0)), None)
                if first is not None and first[1] != EXIT_PREEMPTED:
                    self._end(PEER_GRACE_S)
            if all(code is not None for code in codes):
                break
            if self.stop_signal is not None and self.stopped_at is None:
                self._end(STOP_GRACE_S)
            if self.stopped_at is not None and time.monotonic() > self.stopped_at:
                self._signal(signal.SIGKILL)
            time.sleep(POLL_S)
        if first is None:
            return 0, None
        rank = _first_failed(self.attempt, self.processes, first[0])
        code = self.processes[rank].returncode
        return (EXIT_PREEMPTED, None) if code == EXIT_PREEMPTED else (code if code > 0 else 1, rank)

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = self.local.environment(rank, self.rendezvous) | {PARENT_PIPE: str(self.alive_reader)}
        log = None if rank == 0 else open(self.attempt.log_path(rank), "ab")  # noqa: SIM115  closed below
        try:
            return subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self.alive_reader,),
                start_new_session=True,  # Ctrl-C reaches this process alone, which tells the ranks once
            )
        finally:
            if log is not None:
                log.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal is not None and number == signal.SIGINT:
            self._signal(signal.SIGKILL)
        self.stop_signal = number

    def _end(self, grace_s: float) -> None:
        self._signal(signal.SIGTERM)
        self.stopped_at = time.monotonic() + grace_s

    def _signal(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                try:
                    if number == signal.SIGKILL:
                        os.killpg(process.pid, number)  # with what the rank started
                    else:
                        process.send_signal(number)
                except ProcessLookupError:
                    continue


def die_with_parent() -> None:
    """In a rank: end this process when its launcher is gone; call once at the start."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return

    def watch(number: int) -> None:
        os.read(number, 1)  # returns when the other end is closed
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, args=(int(descriptor),), name="modlib-parent", daemon=True).start()


def _first_failed(attempt: Attempt, processes: Sequence[subprocess.Popen[bytes]], seen: int) -> int:
    """The rank whose error came first: by its own record, else one killed by a signal, else the one seen first."""
    times = {rank: _record(attempt, rank).get("time") for rank in range(len(processes))}
    recorded = [(when, rank) for rank, when in times.items() if when is not None and processes[rank].returncode != 0]
    killed = [
        rank for rank, process in enumerate(processes) if process.returncode in (-9, -11, -6, -7) and rank == seen
    ]
    if killed:
        return killed[0]
    return min(recorded)[1] if recorded else seen


def _record(attempt: Attempt, rank: int) -> dict[str, Any]:
    try:
        content = json.loads(attempt.error_path(rank).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _failure_text(attempt: Attempt, rank: int, code: int) -> str:
    record = _record(attempt, rank)
    log = attempt.log_path(rank)
    if not record:
        return f"rank {rank} ended with exit code {code} without a word; its log is {log}"
    text = record.get("traceback") or record.get("message", "")
    return f"rank {rank} on {record.get('host', '?')} failed first (log: {log})\n{text}"
