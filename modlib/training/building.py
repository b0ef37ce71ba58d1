"""A configured component is called in one place: what it refuses is told with where it was set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gin

from modlib.components import CATALOGUE, component_name
from modlib.config import Config
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.training.experiment import Experiment


def build(config: Config, choice: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a configured component; a wrong value in it becomes an error that says where the value was set.

    Raises:
        ConfigError: The component refused its parameters.
        ModlibError: Another error of its own.
    """
    name = component_name(choice)
    with explained(config, name):
        try:
            return choice(*args, **kwargs)
        except (ValueError, TypeError) as error:
            if isinstance(error, ModlibError):
                raise
            raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error


def build_experiment(config: Config) -> Experiment:
    """The settings of the run that a configuration describes; the configuration becomes the active one.

    Raises:
        ConfigError: A setting is wrong; with where it was set.
    """
    config.activate()
    experiment: Experiment = build(config, gin.get_configurable("train"))
    return experiment


@contextmanager
def explained(config: Config, *names: str) -> Iterator[None]:
    """An error inside says where the parameters of these components that it names were set."""
    try:
        yield
    except ModlibError as error:
        raised = _as_raised(error)
        problems = raised.problems if isinstance(raised, ConfigError) else [str(raised)]
        told = [_told(config, names, problem) for problem in problems]
        raise type(raised)(told if isinstance(raised, ConfigError) else told[0]) from error  # type: ignore[arg-type]


def _told(config: Config, names: Sequence[str], problem: str) -> str:
    """A problem with the origin of what it names of these components, each line once."""
    lines = [problem]
    for name in names:
        lines += config.explain(_culprit(problem) or name, problem).removeprefix(problem).splitlines()[1:]
    return "\n".join(dict.fromkeys(lines))


def _as_raised(error: ModlibError) -> ModlibError:
    """The error itself: gin raises one of a subclass in its place, whose text ends with the class's path and scope."""
    inner = error.__context__
    while isinstance(inner, ModlibError) and type(inner) is not type(error) and isinstance(error, type(inner)):
        error, inner = inner, inner.__context__
    return error


def _culprit(problem: str) -> str | None:
    """The component that a problem begins with: one that was called for a value of the one being built."""
    name = problem.partition(":")[0]
    return name if name in CATALOGUE else None
