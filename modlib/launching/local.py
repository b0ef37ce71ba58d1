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

from modlib.components import component
from modlib.launching.ending import RankEnd, ending, lost_steps
from modlib.runtime.errors import EXIT_OK, STOPPED, ConfigError
from modlib.runtime.hardware import num_cores
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.signals import handled_by, ignored_in_children, installed

LEAKING = re.compile(
    "(GROUP_|LOCAL_|NODE_|ROLE_)?(RANK|WORLD_SIZE)|(GROUP|ROLE)_NAME|MASTER_(ADDR|PORT)|WANDB_SERVICE"
    "|MODLIB_(RENDEZVOUS|RENDEZVOUS_TOKEN|HOSTS|MEET_TIMEOUT_S|PARENT_PIPE|OUTCOME|RUN|ATTEMPT|CODE|SUBMITIT|SCRIPT|EXCLUDE)"
    "|MODLIB_(GRACE_S|LEAD_S|END_TIME)|(SLURM|SLURMD|SRUN|SUBMITIT|PMI|PMIX|OMPI|MPI|TORCHELASTIC)_.*"
)
PARENT_PIPE = "MODLIB_PARENT_PIPE"
OUTCOME = "MODLIB_OUTCOME"
STOP_GRACE_S = 30.0  # when one rank has stopped, the others have nothing left to do but to end
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


def run_local(
    command: Sequence[str], local: Local, run: RunFolder, attempt: Attempt, *, outcome: int | None = None
) -> int:
    """Run `command RUN_FOLDER` once per rank and wait for all; returns the exit code of the run.

    Rank 0 writes to this process's stderr, every other rank to its log file. A rank that fails ends the others, and
    its error is printed last. A signal to this process is passed on once, upon which the ranks save, however long that
    takes; a second SIGINT ends them at once. When this process dies, however it dies, the ranks die with it.

    Args:
        command: Without the run folder.
        local: How many ranks, with how many threads.
        run: The run.
        attempt: Where logs go.
        outcome: A file into which the first rank writes what came of it.
    """
    with tempfile.TemporaryDirectory(prefix=RENDEZVOUS_PREFIX) as folder:
        with Ranks([*command, str(run.path)], local, f"file://{folder}/store", attempt, outcome) as ranks:
            ranks.wait()
            if (stop := installed()) is not None:
                stop.over()  # a signal to this process comes too late from here on
        ends = [end for end in ranks.ends if end is not None]
        lost = lost_steps(run, attempt)
        code, text = ending(ends, attempt, ranks.stop_signal, lost=lost, interrupted=ranks.interrupts > 1)
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
        outcome: A descriptor for the first rank alone.
    """

    def __init__(
        self, command: list[str], local: Local, rendezvous: str, attempt: Attempt, outcome: int | None = None
    ) -> None:
        self.command, self.local, self.rendezvous, self.attempt = command, local, rendezvous, attempt
        self.outcome = outcome
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ends: list[RankEnd | None] = [None] * local.num_processes
        self.stop_signal: signal.Signals | None = None
        self.interrupts = 0
        self._seen_alive = [time.time()] * local.num_processes
        self._signal: signal.Signals | None = None
        self._told: signal.Signals | None = None
        self._killed = False
        self._kill_at = math.inf

    def __enter__(self) -> Ranks:
        self._alive_reader, self._alive_writer = os.pipe()  # closes with this process: the ranks watch it
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(handled_by(self._note))
        if threading.current_thread() is threading.main_thread():
            # where the parent of this process ignores SIGCHLD, how a rank ended would be lost
            before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._stack.callback(signal.signal, signal.SIGCHLD, signal.SIG_DFL if before is None else before)
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
        self._stack.close()

    def wait(self) -> None:
        """Wait until every rank has ended; end the others after a failure or a stop request."""
        failed = False
        while not self._poll():
            codes = [end.code for end in self.ends if end is not None]
            if self.interrupts > 1:
                self._kill()
            if not failed and any(code != EXIT_OK and code not in STOPPED for code in codes):
                failed = True
                self._tell(signal.SIGTERM, PEER_GRACE_S)
            elif not failed and self.stop_signal is None and self._signal is not None:
                self.stop_signal = self._signal
                self._tell(self._signal, math.inf)  # nobody else waits for them
            elif any(code in STOPPED for code in codes) and self._kill_at == math.inf:
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
                    ours = code == -(self._told or 0) or (code == -signal.SIGKILL and self._killed)
                    self.ends[rank] = RankEnd(rank, code, self._seen_alive[rank], by_launcher=ours and code < 0)
        return None not in self.ends

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        environment = self.local.environment(rank, self.rendezvous) | {PARENT_PIPE: str(self._alive_reader)}
        shared = [self._alive_reader]
        if rank == 0 and self.outcome is not None:
            environment[OUTCOME] = str(self.outcome)
            shared.append(self.outcome)
        # a signal that comes before a rank has its handlers waits for them
        with ignored_in_children(), contextlib.ExitStack() as stack:
            log = None if rank == 0 else stack.enter_context(open(self.attempt.log_path(rank), "ab"))
            return subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=shared,
                start_new_session=True,  # Ctrl-C reaches this process alone, which tells the ranks once
            )

    def _note(self, number: int, _: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if self._signal is None:
            self._signal = signal.Signals(number)

    def _tell(self, number: signal.Signals, grace_s: float) -> None:
        """Ask the ranks to end; those that have not by then are killed."""
        if self._told is None:
            self._told = number
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
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


def tell_launcher(outcome: str) -> None:
    """In the first rank: leave what came of the run for the launcher, where it wants to know."""
    descriptor = os.environ.pop(OUTCOME, None)
    if descriptor is not None:
        os.pwrite(int(descriptor), outcome.encode(), 0)


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
