"""Several ranks on this machine: started together, ended together, the first error last."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
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
from modlib.launching.ending import RankEnd, ending
from modlib.runtime.errors import EXIT_OK, EXIT_PREEMPTED, ConfigError
from modlib.runtime.hardware import num_cores
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.signals import stop_signals

LEAKING = re.compile(
    "(GROUP_|LOCAL_|NODE_|ROLE_)?(RANK|WORLD_SIZE)|(GROUP|ROLE)_NAME|MASTER_(ADDR|PORT)|WANDB_SERVICE"
    "|MODLIB_(RENDEZVOUS|RENDEZVOUS_TOKEN|HOSTS|MEET_TIMEOUT_S|PARENT_PIPE|RUN|ATTEMPT|CODE|SUBMITIT|SCRIPT|EXCLUDE)"
    "|MODLIB_(GRACE_S|LEAD_S|END_TIME)|(SLURM|SLURMD|SRUN|SUBMITIT|PMI|PMIX|OMPI|MPI|TORCHELASTIC)_.*"
)
PARENT_PIPE = "MODLIB_PARENT_PIPE"
STOP_GRACE_S = 30.0  # a rank told to stop saves first; it ends itself some seconds earlier
PEER_GRACE_S = 5.0  # ranks notice a dead peer by themselves; those that do not are ended
POLL_S = 0.02
RENDEZVOUS_PREFIX = "modlib-rendezvous-"


@component("launch", "local", name="Local")
class Local:
    """This machine as a place to run.

    Args:
        num_processes: Ranks, one process each. None: one per visible GPU, or one.
        threads_per_process: CPU threads of each rank. None: OMP_NUM_THREADS, or this process's cores shared out evenly.
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
        self.threads_per_process = threads_per_process or _user_threads() or max(1, num_cores() // self.num_processes)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.num_processes

    def environment(self, rank: int, rendezvous: str) -> dict[str, str]:
        """The environment of one rank: this one's without what another launcher left, plus its place and threads."""
        clean = clean_environment()
        source = Path(__file__).parents[2]
        paths = [] if source.name in ("site-packages", "dist-packages") else [str(source)]
        return clean | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.num_processes),
            "LOCAL_WORLD_SIZE": str(self.num_processes),
            "MODLIB_RENDEZVOUS": rendezvous,
            "OMP_NUM_THREADS": str(self.threads_per_process),
            "GLOO_SOCKET_IFNAME": clean.get("GLOO_SOCKET_IFNAME", "lo"),
            # the ranks run the same modlib as this process, whatever lies in the working directory
            "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [clean.get("PYTHONPATH")])]),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",  # what a rank printed before it was killed is in its log
        }


def clean_environment() -> dict[str, str]:
    """This process's environment without what a job or another launcher left in it."""
    return {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not LEAKING.fullmatch(name)}


def _user_threads() -> int | None:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


def visible_gpus() -> int:
    """GPUs that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not Path("/dev/nvidiactl").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def run_local(command: Sequence[str], local: Local, run: RunFolder, attempt: Attempt) -> int:
    """Run `command RUN_FOLDER` once per rank and wait for all; returns the exit code of the run.

    Rank 0 writes to this process's stderr, every other rank to its log file. A rank that fails ends the others, and
    its error is printed last. A signal to this process is passed on once as SIGTERM, upon which the ranks save; a
    second SIGINT ends them at once. When this process dies, however it dies, the ranks die with it.

    Args:
        command: Without the run folder.
        local: How many ranks, with how many threads.
        run: The run.
        attempt: Where logs go.
    """
    with tempfile.TemporaryDirectory(prefix=RENDEZVOUS_PREFIX) as folder:
        with Ranks([*command, str(run.path)], local, f"file://{folder}/store", attempt) as ranks:
            ranks.wait()
        ends = [end for end in ranks.ends if end is not None]
        code, text = ending(ends, attempt, ranks.stop_signal, interrupted=ranks.interrupts > 1)
    if text:
        with contextlib.suppress(OSError):  # a full or closed terminal does not change how the run ended
            print(text, file=sys.stderr, flush=True)
    return code


class Ranks:
    """The processes of one run, from their start until the last has ended.

    Args:
        command: What each rank runs.
        local: How many, in which environment.
        rendezvous: Where they meet, an init_method URL.
        attempt: Where their logs go.
    """

    def __init__(self, command: list[str], local: Local, rendezvous: str, attempt: Attempt) -> None:
        self.command, self.local, self.rendezvous, self.attempt = command, local, rendezvous, attempt
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ends: list[RankEnd | None] = [None] * local.num_processes
        self.stop_signal: signal.Signals | None = None
        self.interrupts = 0
        self._seen_alive = [time.time()] * local.num_processes
        self._signal: signal.Signals | None = None
        self._told = self._killed = False
        self._kill_at = math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Ranks:
        self._alive_reader, self._alive_writer = os.pipe()  # closes with this process: the ranks watch it
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._previous[number] = signal.signal(number, self._note)
            # where the parent of this process ignores SIGCHLD, how a rank ended would be lost
            self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for rank in range(self.local.num_processes):
                self.processes.append(self._start(rank))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for process in self.processes:
            process.wait()
        os.close(self._alive_reader)
        os.close(self._alive_writer)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def wait(self) -> None:
        """Wait until every rank has ended; end the others after a failure or a stop request."""
        failed = False
        while not self._poll():
            codes = [end.code for end in self.ends if end is not None]
            if self.interrupts > 1:
                self._kill()
            if not failed and any(code not in (EXIT_OK, EXIT_PREEMPTED) for code in codes):
                failed = True
                self._tell(PEER_GRACE_S)
            elif not failed and self.stop_signal is None and self._signal is not None:
                self.stop_signal = self._signal
                self._tell(STOP_GRACE_S)
            elif EXIT_PREEMPTED in codes and self._kill_at == math.inf:
                self._kill_at = time.monotonic() + STOP_GRACE_S  # told by somebody else: so are the others, or stuck
            if time.monotonic() > self._kill_at:
                self._kill()
            time.sleep(POLL_S)

    def _poll(self) -> bool:
        """Note who has ended; whether all have."""
        for rank, process in enumerate(self.processes):
            now = time.time()
            if self.ends[rank] is None:
                code = _exit_code(process.pid)
                if code is None:
                    self._seen_alive[rank] = now
                else:
                    ours = (code == -signal.SIGTERM and self._told) or (code == -signal.SIGKILL and self._killed)
                    self.ends[rank] = RankEnd(rank, code, self._seen_alive[rank], by_launcher=ours)
        return None not in self.ends

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = self.local.environment(rank, self.rendezvous) | {PARENT_PIPE: str(self._alive_reader)}
        with contextlib.ExitStack() as stack:
            log = None if rank == 0 else stack.enter_context(open(self.attempt.log_path(rank), "ab"))
            return subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._alive_reader,),
                start_new_session=True,  # Ctrl-C reaches this process alone, which tells the ranks once
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if self._signal is None:
            self._signal = signal.Signals(number)

    def _tell(self, grace_s: float) -> None:
        """Ask the ranks to end; those that have not by then are killed."""
        if not self._told:
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        self._told = True
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)

    def _kill(self) -> None:
        """End the ranks and all that they started."""
        for process in self.processes:
            # a rank that has ended is not waited for yet, so the number of its group is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self._killed = True


def _exit_code(pid: int) -> int | None:
    """How a child ended, minus the signal's number if by a signal; None while it runs. Leaves it to be waited for."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def die_with_parent() -> None:
    """In a rank: end this process, and all it started, when its launcher is gone; call once at the start."""
    descriptor = os.environ.pop(PARENT_PIPE, None)
    if descriptor is None:
        return
    rendezvous = Path(os.environ.get("MODLIB_RENDEZVOUS", "").removeprefix("file://")).parent

    def watch(number: int) -> None:
        os.read(number, 1)  # returns when the other end is closed
        if rendezvous.name.startswith(RENDEZVOUS_PREFIX):
            shutil.rmtree(rendezvous, ignore_errors=True)  # which the launcher can no longer do
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, args=(int(descriptor),), name="modlib-parent", daemon=True).start()
