"""The logger "modlib": what goes to the terminal, what goes to the rank's file, and what must go nowhere."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TypedDict

from modlib.runtime import bookkeeping
from modlib.runtime.durable import atomic_write_text
from modlib.runtime.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, ModlibError, Preempted, StoppedEarly
from modlib.runtime.limits import as_limit
from modlib.runtime.secrets import mask

logger = logging.getLogger("modlib")


class _Formatter(logging.Formatter):
    """One line per record, without secrets; tracebacks of expected errors only where asked for."""

    def __init__(self, line: str, *, tracebacks: bool) -> None:
        super().__init__(line, datefmt="%Y-%m-%d %H:%M:%S")
        self.tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        if not self.tracebacks and record.exc_info and isinstance(record.exc_info[1], ModlibError):
            record = logging.makeLogRecord(record.__dict__ | {"exc_info": None, "exc_text": None})
        record.exc_text = None  # formatted anew: another handler may have cached its own
        return mask(super().format(record))


class _TerminalFormatter(_Formatter):
    """The bare message; warnings and errors say so, in colour on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        word = record.levelname.lower()
        if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
            return f"{word}: {text}"
        return f"\x1b[{31 if record.levelno >= logging.ERROR else 33}m{word}:\x1b[0m {text}"


class _StderrHandler(logging.StreamHandler):
    """Writes to what sys.stderr is now: a progress line replaces it while it is drawn."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(lambda record: not getattr(record, "file_only", False))

    @property
    def stream(self):  # type: ignore[override]
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        """A closed or full terminal does not disturb training."""


class _FileHandler(logging.FileHandler):
    """Appends to the rank's file; a full disk does not disturb training."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002  logging's name
        """Count it; the terminal has the message too."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            bookkeeping.note("the log file", error)

    def close(self) -> None:
        """Close the file, whether or not it takes what is left to write."""
        with bookkeeping.write_or_warn("the log file"):
            super().close()


def start_logging(
    *, rank: int = 0, world_size: int = 1, log_file: Path | None = None, level: int = logging.INFO
) -> None:
    """Send the logger "modlib" to stderr and, when given, to this rank's file. A second call replaces the first.

    Where stderr already is the log file (as for ranks above 0 of a local run) only the file's form is written.

    Args:
        rank: Put before each line when the world is larger than one.
        world_size: Number of processes of the run.
        log_file: Appended to, with times and full tracebacks; its folder must exist.
        level: The least level written.
    """
    stop_logging()
    unopened: OSError | None = None
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    handlers: list[logging.Handler] = []
    if log_file is not None:
        try:
            file_handler = _FileHandler(log_file, encoding="utf-8")
        except OSError as error:  # the terminal has every message too
            unopened, log_file = error, None
        else:
            file_handler.setFormatter(_Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", tracebacks=True))
            handlers.append(file_handler)
    if log_file is None or not _is_stderr(log_file):
        terminal = _StderrHandler()
        terminal.setFormatter(_TerminalFormatter(f"{prefix}%(message)s", tracebacks=False))
        handlers.append(terminal)
    for handler in handlers:
        handler.set_name("modlib")
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    if unopened is not None:
        bookkeeping.note("the log file", unopened)


def stop_logging() -> None:
    """Close what `start_logging` opened and leave the logger as Python made it."""
    for handler in [handler for handler in logger.handlers if handler.get_name() == "modlib"]:
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def _is_stderr(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(2), path.stat())
    except OSError:
        return False


def exit_code_of(error: BaseException) -> int:
    """The exit code of an error's class; 1 for what modlib did not expect."""
    if isinstance(error, (ModlibError, StoppedEarly)):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def report_error(error: BaseException, *, record_path: Path | None = None, rank: int = 0) -> int:
    """Tell the user what went wrong and return the exit code of its class.

    A ModlibError is shown as its text alone, with the traceback in the log file only; anything else with its
    traceback. A rank of several passes `record_path`: its error then goes to its log file and to that record, and the
    launcher shows the first failing rank's, last.

    Args:
        error: What was raised.
        record_path: JSON file to write for the launcher, usually `attempt.error_path(rank)`.
        rank: The failing rank, for the record.
    """
    if (met := as_limit(error)) is not None:
        met.__cause__ = error  # whose traceback the log file shows
        error = met
    code = exit_code_of(error)
    if code == EXIT_PREEMPTED and isinstance(error, Preempted):
        logger.warning("%s", error)
    elif isinstance(error, StoppedEarly):
        logger.warning("%s; %s", error, error.kept)
    elif not isinstance(error, (SystemExit, KeyboardInterrupt)):
        text = error if isinstance(error, ModlibError) else "unexpected error"
        # with a record the terminal stays silent: it would show several ranks' errors, in no order
        logger.error("%s", text, exc_info=error, extra={"file_only": record_path is not None})
    if record_path is not None:
        _write_record(record_path, error, code, rank)
    return code


class ErrorRecord(TypedDict, total=False):
    """What a failing rank leaves for the launcher."""

    rank: int
    host: str
    pid: int
    time: float
    type: str
    message: str
    traceback: str
    exit_code: int
    hosts: list[str]


def _write_record(path: Path, error: BaseException, code: int, rank: int) -> None:
    expected = isinstance(error, ModlibError)
    record = {
        "rank": rank,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "type": type(error).__name__,
        "message": mask(str(error)),
        "traceback": "" if expected else mask("".join(traceback.format_exception(error))),
        "exit_code": code,
        "hosts": list(getattr(error, "hosts", ())),  # that an error of the cluster blames
    }
    with bookkeeping.write_or_warn(f"the record of this error ({path})"):
        atomic_write_text(path, json.dumps(record, indent=1))
