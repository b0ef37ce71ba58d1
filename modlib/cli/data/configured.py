"""The commands that make data, by gin files: a tokenization is an experiment too.

A command's parameters are bound under its name, `pack.workers = 4`, by --gin_file and --gin_param; what the command
line says itself wins. What it came to in the end is kept beside the output: `OUT.config.gin`, a gin file of every
parameter, and `OUT.config.json`, where each was set.
"""

from __future__ import annotations

import functools
import inspect
import json
import keyword
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modlib.cli.completion import complete_data_gin_file
from modlib.cli.report import reported
from modlib.runtime.errors import DataError

if TYPE_CHECKING:
    from modlib.config import Config

_GinFile = Annotated[
    list[str] | None,
    typer.Option(
        "--gin_file",
        help="Gin file with parameters of this command, by name or path; repeatable.",
        autocompletion=complete_data_gin_file,
    ),
]
_GinParam = Annotated[
    list[str] | None, typer.Option("--gin_param", metavar="NAME=VALUE", help="One such parameter; repeatable.")
]
_NOT_SCIENCE = ("engine", "memory_mib", "overwrite", "resume", "workers")  # change no byte of what is made
_OWN = {"ctx": typer.Context, "gin_file": _GinFile, "gin_param": _GinParam}


def configured(name: str, command: Callable[..., Path], *, optional: bool) -> Callable[..., None]:
    """A command that takes its parameters from gin files as well, and keeps its configuration beside what it made.

    Args:
        name: What its parameters are bound under.
        command: Its parameters are annotated for typer; returns the path of what it made.
        optional: Whether nothing is required on the command line, because gin files may have it.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    declared = inspect.signature(command).parameters
    options = {one: _option_name(one, hints[one]) for one in declared}

    @functools.wraps(command)
    def run(ctx: typer.Context, gin_file: Any, gin_param: Any, **values: Any) -> None:
        given = {one: value for one, value in values.items() if _is_given(ctx, one, value)}
        with reported():
            flags = [(_flag(options[one], hints[one]), options[one], value) for one, value in given.items()]
            config = _resolved(name, command, options, hints, gin_file or [], gin_param or [], flags)
            for one in declared:
                values[one] = _native(config.resolved[f"{name}.{options[one]}"], hints[one])
        made = command(**values)
        with reported():
            store(config, made)

    parameters = [one.replace(annotation=hints[one.name]) for one in declared.values()]
    if optional:
        parameters = [one if one.default is not one.empty else one.replace(default=None) for one in parameters]
    own = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    ends = [
        inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_OWN[one])
        for one in ("gin_file", "gin_param")
    ]
    keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    del run.__wrapped__  # type: ignore[attr-defined]  # the signature is this one
    run.__signature__ = inspect.Signature([*own, *keyword_only, *ends])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*own, *keyword_only, *ends)}
    return run


def store(config: Config, made: Path) -> None:
    """Put the configuration beside what was made by it.

    Raises:
        DataError: It cannot be written.
    """
    from modlib.runtime.durable import atomic_write_text

    for end, text in (("json", json.dumps(config.record(), indent=1, ensure_ascii=False) + "\n"), ("gin", config.text)):
        path = made.with_name(f"{made.name}.config.{end}")
        try:
            atomic_write_text(path, text)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}; free space") from error


def _resolved(
    name: str,
    command: Callable[..., Any],
    options: Mapping[str, str],
    hints: Mapping[str, Any],
    gin_files: list[str],
    gin_params: list[str],
    flags: list[tuple[str, str, Any]],
) -> Config:
    from modlib.components import Component
    from modlib.config import load
    from modlib.config.values import format_value

    def target(**parameters: Any) -> None:
        """What the gin files configure: the command's options under their own names."""

    target.__annotations__ = {options[one]: hints[one] for one in options}
    target.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(options[one.name], one.KEYWORD_ONLY, default=_plain(one.default))
            for one in inspect.signature(command).parameters.values()
        ]
    )
    not_science = tuple(one for one in _NOT_SCIENCE if one in target.__annotations__)
    component = Component("run", name, name, target, not_science=not_science, module=command.__module__)
    written = [(flag, f"{name}.{option} = {format_value(_plain(value))}") for flag, option, value in flags]
    return load(gin_files, gin_params, written, command=component)


def _option_name(parameter: str, annotation: Any) -> str:
    """What a parameter is called on the command line: `go_to` is `to`; `--from`, a word of Python, is `from_`."""
    for information in typing.get_args(annotation)[1:]:
        # within Annotated, typer takes what would be the default for the first name
        names = (getattr(information, "default", None), *(getattr(information, "param_decls", None) or ()))
        for one in names:
            if isinstance(one, str) and one.startswith("--"):
                name = one.removeprefix("--")
                return f"{name}_" if keyword.iskeyword(name) else name
    return parameter


def _flag(option: str, annotation: Any) -> str:
    """Where a value of the command line comes from, for the provenance."""
    is_argument = any(isinstance(one, type(typer.Argument())) for one in typing.get_args(annotation)[1:])
    return option.upper() if is_argument else f"--{option.removesuffix('_')}"


def _is_given(ctx: typer.Context, parameter: str, value: Any) -> bool:
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE" and value not in (None, (), [])


def _plain(value: Any) -> Any:
    """A value as a gin file writes it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _native(value: Any, annotation: Any) -> Any:
    """A gin value as the command's function expects it."""
    from modlib.config.matching import native

    kind = typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    if isinstance(value, list | tuple):
        return [_native(one, typing.get_args(kind)[0]) for one in value]
    return native(value, kind)
