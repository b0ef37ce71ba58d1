"""Every error a user can cause, each with the exit code of its class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, get_args

from modlib.runtime.hub_names import hub_hint

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_DATA = 3
EXIT_CHECKPOINT = 4
EXIT_NON_FINITE = 5
EXIT_HANG = 6
EXIT_STEPS_LOST = 7
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
STOPPED = (EXIT_PREEMPTED, EXIT_STEPS_LOST, EXIT_INTERRUPTED)
"""Codes of a process that was told to stop, and did."""


class ModlibError(Exception):
    """An error with a message for the user and an exit code for the shell."""

    exit_code = 1


class ConfigError(ModlibError, ValueError):
    """Something in the configuration is wrong; nothing was started or queued.

    Args:
        problems: One text per problem, or a single text. All are shown together.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self):  # the default would pass the joined text and lose the list
        return (type(self), (self.problems,))


class DataError(ModlibError, ValueError):
    """The data is wrong: truncated, changed, out of vocabulary, too short."""

    exit_code = EXIT_DATA


def choice_problems(**choices: tuple[object, object]) -> list[str]:
    """What is wrong with values that must be one of a Literal; gin's checks ask a file's, this asks a caller's.

    Args:
        choices: (value, Literal type) by the parameter's name.
    """
    problems = []
    for name, (value, kind) in choices.items():
        *others, last = map(repr, get_args(kind))
        if value not in get_args(kind):
            problems.append(f"{name} ({value!r}) must be {', '.join(others)} or {last}; choose one of them")
    return problems


def require_choices(**choices: tuple[object, object]) -> None:
    """Refuse values that are not of their Literal; see `choice_problems`.

    Raises:
        ConfigError: At least one is not.
    """
    if problems := choice_problems(**choices):
        raise ConfigError(problems)


def unreadable(text: str, error: OSError, hub: Literal["model", "dataset"] = "dataset") -> ConfigError | DataError:
    """The error for a file that was named and cannot be read: of the settings where no such file is there.

    Args:
        text: For the user; what to type is added where the name looks like one of the hub.
        error: What the system said.
        hub: What such a name would be there.
    """
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str | os.PathLike):
        text += hub_hint(error.filename, hub)
    wrong_name = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return ConfigError(text) if wrong_name else DataError(text)


class CheckpointError(ModlibError, RuntimeError):
    """A checkpoint cannot be written, found, verified or applied."""

    exit_code = EXIT_CHECKPOINT


class RunFolderError(CheckpointError):
    """The run folder cannot be used: another process holds it, or it cannot be written."""


class NonFiniteError(ModlibError, ArithmeticError):
    """NaN or Inf: in the loss or the gradients, then the parameters were not touched; or in what would be saved."""

    exit_code = EXIT_NON_FINITE


class HangError(ModlibError, RuntimeError):
    """No progress within the limit; stacks of all ranks are in the run folder.

    Args:
        text: For the user.
        hosts: The hosts that were waited for in vain, where they are known; the next attempt can leave them out.
    """

    exit_code = EXIT_HANG

    def __init__(self, text: str, hosts: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.hosts = tuple(hosts)


class ClusterError(ModlibError, RuntimeError):
    """Hosts cannot train together: one is wrong, or not like the others.

    Args:
        text: For the user.
        hosts: The hosts at fault, where they are known; the next attempt can leave them out.
    """

    def __init__(self, text: str, hosts: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.hosts = tuple(hosts)


class StoppedEarly(BaseException):
    """A stop signal before the first step: nothing that was done is lost. Raised wherever the main thread is.

    Args:
        signal: Its name.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(f"{signal}: stopped before training began")
        self.signal = signal
        self.kept = "the same command continues"
        """What there is, for the user."""

    @property
    def exit_code(self) -> int:
        """Of the process: a person's Ctrl-C is an interrupt, everything else comes back."""
        return EXIT_INTERRUPTED if self.signal == "SIGINT" else EXIT_PREEMPTED


class Preempted(ModlibError):
    """A signal or the time limit ended this attempt after a checkpoint was saved."""

    exit_code = EXIT_PREEMPTED
