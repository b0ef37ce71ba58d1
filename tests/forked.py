"""Python processes that need not import torch: forked from one that has it, otherwise as `subprocess` starts them.

`Popen` and `run` take what those of `subprocess` take. A command of this Python with a script, `-m` or `-c` becomes a
fork of a process that has torch and modlib in memory; everything else is started as ever. The new process is the
caller's child and one of its own for all purposes: its group, descriptors, working directory, environment, signals,
exit code, and what its Python does at exit. Only its modules are imported already. What it starts in its turn by
`subprocess.Popen`, a rank or a point of a sweep, is forked in the same way.

A process to fork from has one thread, serves one process, and ends with it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import os
import pickle
import pkgutil
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LONGEST_REQUEST = 1 << 20
SubprocessPopen = subprocess.Popen
CLONE = {"x86_64": 56, "aarch64": 220}  # numbers of the system call
CLONE_PARENT = 0x8000  # the new process is a child of the caller's parent
ABOVE = 900  # no descriptor of a process to fork from has such a number
# What a run imports sooner or later, so that forked ones need not: this and all of modlib.
PRELOADED = ("torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard")

_process: subprocess.Popen[bytes] | None = None  # the process that this one's children are forked from
_parent: socket.socket | None = None  # the connection to it
_is_forked = False


def run(
    args: list[Any], *, input: str | bytes | None = None, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, forked where that can be."""
    check = options.pop("check", False)
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class Popen(SubprocessPopen):
    """`subprocess.Popen`, forked where that can be."""

    def _execute_child(  # type: ignore[override]
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, *rest: Any
    ) -> None:
        cwd, env, _, _, shell, stdin, _, _, stdout, _, stderr, *_ = rest
        words = [args] if isinstance(args, str | bytes | os.PathLike) else [os.fsdecode(word) for word in args]
        environment = dict(os.environ if env is None else env)
        folder = os.path.abspath(cwd or ".")
        if shell or executable or preexec_fn or not close_fds or not _can_be_forked(words, folder, environment):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, *rest)  # type: ignore[misc]
            return
        standard = [own if given == -1 else given for own, given in enumerate((stdin, stdout, stderr))]
        blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        self.pid = _fork((words[1:], folder, environment, list(pass_fds), blocked), [*standard, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(*rest[5:11])  # type: ignore[attr-defined]


def _can_be_forked(words: list[str], folder: str, environment: dict[str, str]) -> bool:
    """Whether this is a command of this Python that would import this modlib."""
    if words[0] != sys.executable or len(words) < 2 or platform.machine() not in CLONE:
        return False
    if words[1].startswith("-") and (words[1] not in ("-c", "-m") or len(words) < 3):
        return False
    of_a_library = "site-packages" in words[1] or (words[1] in ("-c", "-m") and not words[2].startswith("modlib."))
    if _is_forked and of_a_library:
        return False
    fixed_at_start = ["HASHSEED", "HOME", "WARNINGS", "IOENCODING", "PYCACHEPREFIX"]
    if any(environment.get(f"PYTHON{name}") != os.environ.get(f"PYTHON{name}") for name in fixed_at_start):
        return False
    if not environment.get("OMP_NUM_THREADS", "").isdigit():  # otherwise torch looks at the machine
        return False
    places = [_first_place(words[1:], folder), *environment.get("PYTHONPATH", "").split(":")]
    with_modlib = [place for place in places if place and os.path.isdir(os.path.join(place, "modlib"))]
    return not with_modlib or os.path.realpath(with_modlib[0]) == str(ROOT)


def _first_place(words: list[str], folder: str) -> str:
    """The first entry of the new process's sys.path."""
    if words[0] == "-c":
        return ""
    return folder if words[0] == "-m" else os.path.dirname(os.path.realpath(os.path.join(folder, words[0])))


def _fork(request: tuple[Any, ...], descriptors: list[int]) -> int:
    global _parent, _process
    if _parent is None:
        _parent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            _process = SubprocessPopen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
    socket.send_fds(_parent, [pickle.dumps(request)], descriptors)
    answer = _parent.recv(100)
    if not answer:
        raise ChildProcessError("the process to fork from has ended; see above")
    return pickle.loads(answer)


def stop() -> None:
    """End the process to fork from, if there is one."""
    global _parent
    if _parent is not None:
        _parent.close()
        _parent = None
        if _process is not None:
            _process.wait()


# ---------------------------------------------------------------------------------------- the process to fork from


def _serve(connection: socket.socket) -> list[str]:
    """Make a process for each request; return in it, with the words of its command."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a new process begins with what its caller blocks
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 100)
        if not message:
            os._exit(0)
        pid = _sibling()
        if pid == 0:
            connection.close()
            return _become(*pickle.loads(message), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(pickle.dumps(pid))


def _sibling() -> int:
    """os.fork(), but the new process is a child of this one's parent, which can wait for it."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = ctypes.PyDLL(None).syscall(CLONE[platform.machine()], CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
        assert pid > 0, "clone failed"
    return pid


def _become(
    words: list[str],
    folder: str,
    environment: dict[str, str],
    numbers: list[int],
    blocked: list[int],
    descriptors: list[int],
) -> list[str]:
    """Make this process look as if it had just been started by the one that made the request."""
    global _parent, _process, _is_forked
    _process = None
    os.setsid()
    kept = [os.dup2(descriptor, ABOVE + place) for place, descriptor in enumerate(descriptors)]
    os.closerange(3, ABOVE)
    for number, descriptor in zip([0, 1, 2, *numbers], kept, strict=True):
        os.dup2(descriptor, number)
    os.closerange(ABOVE, ABOVE + len(kept))
    if "RANK" not in environment:  # a rank starts no others
        _parent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            _parent.close()
            for number in {0, 1, 2, *numbers}:
                os.dup2(os.open(os.devnull, os.O_RDWR), number) if number < 3 else os.close(number)
            os.setsid()
            return _serve(theirs)
        theirs.close()
        subprocess.Popen, _is_forked = Popen, True  # type: ignore[misc]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whether the tests run under nohup or not
    for number, name in enumerate(("stdin", "stdout", "stderr")):  # made anew: what they knew was of another file
        old, mode = getattr(sys, name), "wb" if number else "rb"
        raw = open(number, mode, 0 if number and environment.get("PYTHONUNBUFFERED") else -1, closefd=False)  # noqa: SIM115
        new = io.TextIOWrapper(raw, old.encoding, old.errors, None, number == 2 or raw.isatty(), old.write_through)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.chdir(folder)
    had = os.environ.get("PYTHONPATH", "").split(":")
    installed = [place for place in sys.path[1:] if place not in had]
    os.environ.clear()
    os.environ.update(environment)
    first = [] if environment.get("PYTHONSAFEPATH") else [_first_place(words, folder)]
    sys.path[:] = [*first, *filter(None, environment.get("PYTHONPATH", "").split(":")), *installed]
    importlib.invalidate_caches()
    if environment["OMP_NUM_THREADS"] != "1":
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return words


def _run_as_main(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        code = compile(words[1], "<string>", "exec")
    else:
        sys.argv = words
        main.__file__ = words[0]
        code = compile(Path(words[0]).read_bytes(), words[0], "exec")
    exec(code, main.__dict__)


def _leave(code: object) -> None:
    """End as Python does, but leave it to the system to free the memory of all modules."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit((code or 0) & 0xFF)


def main() -> None:
    """Import what runs need, then serve; a process that is forked runs its command here."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    import modlib

    for name in (*PRELOADED, *(module.name for module in pkgutil.walk_packages(modlib.__path__, "modlib."))):
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a module started a thread, which a fork would lack"
    gc.collect()
    gc.freeze()
    words = _serve(connection)
    try:
        _run_as_main(words)
    except SystemExit as error:
        _leave(error.code)
    _leave(0)


if __name__ == "__main__":
    from tests import forked  # by its real name, so that the children's Popen is everyone's

    forked.main()
