"""Sizes of a run from one another: samples, tokens, steps. Exact integers; what does not divide is reported.

Each is a component that a gin file calls for a number: `train.num_steps = @num_steps_from_num_tokens()`.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from modlib.components import component
from modlib.runtime.errors import CheckpointError, ConfigError, require_choices

logger = logging.getLogger("modlib")

Leftover = Literal["report", "error"]
_Conversion = TypeVar("_Conversion", bound=Callable[..., Any])
_reported: set[str] = set()  # a number is computed wherever a config names it, and its leftover is told once

PARAMETERS = {
    "num_samples": "Samples over all ranks, at least 0.",
    "num_tokens": "Tokens over all ranks, at least 0.",
    "num_steps": "Optimizer steps, at least 0.",
    "seq_len": "Tokens per sequence.",
    "world_size": "Data-parallel ranks.",
    "micro_batch_size": "Sequences per rank per forward.",
    "grad_accum_steps": "Micro-batches per rank per optimizer step.",
    "num_epochs": "Epochs, at least 1.",
    "path": "A packed file, or the embedded corpus ('stdlib:train'), which is made if it is not there yet.",
    "reuse_last_target": "As of the `PackedDataset` that the run trains on.",
    "checkpoint_path": "A checkpoint's own folder (`step-...`).",
    "leftover": '"report" logs a warning with what is left over; "error" refuses it.',
}
"""What each parameter means, in every conversion that has it."""


def described(conversion: _Conversion) -> _Conversion:
    """Put the meaning of its parameters into a conversion's docstring."""
    text, raises, errors = inspect.cleandoc(conversion.__doc__ or "").partition("Raises:")
    lines = [f"    {name}: {PARAMETERS[name]}" for name in inspect.signature(conversion).parameters]
    conversion.__doc__ = "\n".join([text.rstrip(), "", "Args:", *lines, "", raises + errors])
    return conversion


@component("number_conversion", "local_num_batches_from_num_samples", not_science=("leftover",))
@described
def local_num_batches_from_num_samples(
    *, num_samples: int, world_size: int, micro_batch_size: int, leftover: Leftover = "report"
) -> int:
    """Whole micro-batches that each rank gets out of a number of samples.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "local_num_batches_from_num_samples"
    per_batch = _size(name, {"num_samples": num_samples}, world_size=world_size, micro_batch_size=micro_batch_size)
    return _whole(name, "num_samples", num_samples, per_batch, "batches per rank", leftover)


@component("number_conversion", "local_num_batches_from_num_tokens", not_science=("leftover",))
@described
def local_num_batches_from_num_tokens(
    *, num_tokens: int, seq_len: int, world_size: int, micro_batch_size: int, leftover: Leftover = "report"
) -> int:
    """Whole micro-batches that each rank gets out of a number of tokens.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "local_num_batches_from_num_tokens"
    sizes = {"seq_len": seq_len, "world_size": world_size, "micro_batch_size": micro_batch_size}
    per_batch = _size(name, {"num_tokens": num_tokens}, **sizes)
    return _whole(name, "num_tokens", num_tokens, per_batch, "batches per rank", leftover)


@component("number_conversion", "num_samples_from_num_tokens", not_science=("leftover",))
@described
def num_samples_from_num_tokens(*, num_tokens: int, seq_len: int, leftover: Leftover = "report") -> int:
    """Whole sequences in a number of tokens.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "num_samples_from_num_tokens"
    return _whole(
        name, "num_tokens", num_tokens, _size(name, {"num_tokens": num_tokens}, seq_len=seq_len), "samples", leftover
    )


@component("number_conversion", "num_steps_from_num_samples", not_science=("leftover",))
@described
def num_steps_from_num_samples(
    *,
    num_samples: int,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    leftover: Leftover = "report",
) -> int:
    """Whole optimizer steps in a number of samples.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "num_steps_from_num_samples"
    batch = _batch(world_size, micro_batch_size, grad_accum_steps)
    per_step = _size(name, {"num_samples": num_samples}, **batch)
    return _whole(name, "num_samples", num_samples, per_step, "steps", leftover)


@component("number_conversion", "num_steps_from_num_tokens", not_science=("leftover",))
@described
def num_steps_from_num_tokens(
    *,
    num_tokens: int,
    seq_len: int,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    leftover: Leftover = "report",
) -> int:
    """Whole optimizer steps in a number of tokens.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "num_steps_from_num_tokens"
    batch = _batch(world_size, micro_batch_size, grad_accum_steps)
    per_step = _size(name, {"num_tokens": num_tokens}, seq_len=seq_len, **batch)
    return _whole(name, "num_tokens", num_tokens, per_step, "steps", leftover)


@component("number_conversion", "num_tokens_from_num_steps")
@described
def num_tokens_from_num_steps(
    *, num_steps: int, seq_len: int, world_size: int, micro_batch_size: int, grad_accum_steps: int = 1
) -> int:
    """Tokens that a number of optimizer steps consumes over all ranks.

    Raises:
        ConfigError: A number is out of range.
    """
    batch = _batch(world_size, micro_batch_size, grad_accum_steps)
    return num_steps * _size("num_tokens_from_num_steps", {"num_steps": num_steps}, seq_len=seq_len, **batch)


@component("number_conversion", "num_tokens_from_num_steps_callable")
@described
def num_tokens_from_num_steps_callable(
    *, seq_len: int, world_size: int, micro_batch_size: int, grad_accum_steps: int = 1
) -> Callable[[int], int]:
    """A function from optimizer steps to the tokens that they consume over all ranks.

    Raises:
        ConfigError: A number is out of range, here or when the function is called.
    """
    name = "num_tokens_from_num_steps_callable"
    per_step = _size(name, {}, seq_len=seq_len, **_batch(world_size, micro_batch_size, grad_accum_steps))
    return lambda num_steps: num_steps * per_step * _size(name, {"num_steps": num_steps})


@component("number_conversion", "num_steps_from_packed_file", not_science=("leftover",))
@described
def num_steps_from_packed_file(
    *,
    path: str,
    seq_len: int,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    num_epochs: int = 1,
    reuse_last_target: bool = True,
    leftover: Leftover = "report",
) -> int:
    """Whole optimizer steps in some epochs over a packed file, whose batches are carried from epoch to epoch.

    Raises:
        ConfigError: A number is out of range, there is no such file, or windows are left over that may not be.
        DataError: The file is damaged, or shorter than one window.
    """
    batch = _batch(world_size, micro_batch_size, grad_accum_steps)
    return _steps_of_file("num_steps_from_packed_file", path, seq_len, batch, num_epochs, reuse_last_target, leftover)


@component("number_conversion", "num_tokens_from_packed_file", not_science=("leftover",))
@described
def num_tokens_from_packed_file(
    *,
    path: str,
    seq_len: int,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    num_epochs: int = 1,
    reuse_last_target: bool = True,
    leftover: Leftover = "report",
) -> int:
    """Tokens consumed by the whole optimizer steps in some epochs over a packed file.

    Raises:
        ConfigError: A number is out of range, there is no such file, or windows are left over that may not be.
        DataError: The file is damaged, or shorter than one window.
    """
    name = "num_tokens_from_packed_file"
    batch = _batch(world_size, micro_batch_size, grad_accum_steps)
    steps = _steps_of_file(name, path, seq_len, batch, num_epochs, reuse_last_target, leftover)
    return steps * seq_len * math.prod(batch.values())


@component("number_conversion", "num_steps_from_checkpoint")
@described
def num_steps_from_checkpoint(*, checkpoint_path: str) -> int:
    """Optimizer steps done when a checkpoint was saved, as it says itself.

    Raises:
        CheckpointError: There is no complete checkpoint, or it does not say.
    """
    return _from_checkpoint(checkpoint_path, "step")


@component("number_conversion", "num_tokens_from_checkpoint")
@described
def num_tokens_from_checkpoint(*, checkpoint_path: str) -> int:
    """Tokens consumed over all ranks when a checkpoint was saved, as it says itself.

    Raises:
        CheckpointError: There is no complete checkpoint, or it does not say.
    """
    return _from_checkpoint(checkpoint_path, "tokens")


def _batch(world_size: int, micro_batch_size: int, grad_accum_steps: int) -> dict[str, int]:
    """The factors of a global batch by name."""
    return {"world_size": world_size, "micro_batch_size": micro_batch_size, "grad_accum_steps": grad_accum_steps}


def _size(name: str, amounts: dict[str, int], **sizes: int) -> int:
    """The product of sizes of at least 1, once they and the amounts, of at least 0, are checked.

    A problem begins with the conversion's name, which tells where the number was set.
    """
    least = {**dict.fromkeys(amounts, 0), **dict.fromkeys(sizes, 1)}
    problems = [
        f"{name}: {key} ({value}) must be at least {least[key]}; set it to {least[key]} or more"
        for key, value in {**amounts, **sizes}.items()
        if value < least[key]
    ]
    if problems:
        raise ConfigError(problems)
    return math.prod(sizes.values())


def _steps_of_file(
    name: str,
    path: str,
    seq_len: int,
    batch: dict[str, int],
    num_epochs: int,
    reuse_last_target: bool,
    leftover: Leftover,
) -> int:
    _size(name, {}, seq_len=seq_len, num_epochs=num_epochs, **batch)
    windows = _num_windows(name, path, seq_len, reuse_last_target) * num_epochs
    what = f"windows of {path!r} in num_epochs ({num_epochs})"
    return _whole(name, what, windows, math.prod(batch.values()), "steps", leftover)


def _whole(name: str, what: str, amount: int, size: int, results: str, leftover: Leftover) -> int:
    """How often size goes into amount; what is left is logged, or refused."""
    require_choices(leftover=(leftover, Leftover))
    whole, left = divmod(amount, size)
    if not left:
        return whole
    if leftover == "error":
        nearest = f"{whole * size} or {(whole + 1) * size}" if whole else f"{size}"
        raise ConfigError(
            f"{name}: {what} ({amount}) must be a multiple of {size}, since leftover ('error') allows no rest; "
            f"nearest valid: {nearest}"
        )
    text = f"{name}: {what} ({amount}) is {whole} {results} of {size}; {left} are left over and not counted"
    if text not in _reported:
        _reported.add(text)
        logger.warning(text)
    return whole


def _num_windows(name: str, path: str, seq_len: int, reuse_last_target: bool) -> int:
    from modlib.data.datasets.packed_dataset import PackedDataset

    try:
        return len(PackedDataset(path=path, seq_len=seq_len, reuse_last_target=reuse_last_target))
    except ConfigError as error:
        raise ConfigError([f"{name}: {problem}" for problem in error.problems]) from error


def _from_checkpoint(checkpoint_path: str, key: str) -> int:
    from modlib.checkpointing.loading import open_checkpoint

    extra: Any = open_checkpoint(Path(checkpoint_path)).extra
    value = extra.get(key) if isinstance(extra, dict) else None
    if type(value) is not int:
        raise CheckpointError(
            f"{key} ({value!r}) in the manifest of checkpoint_path ({checkpoint_path!r}) must be an integer; "
            "choose a checkpoint that a training run saved"
        )
    return value
