"""Sizes of a run from one another: samples, tokens, steps. Exact integers; what does not divide is reported.

Each is a component that a gin file calls for a number: `train.num_steps = @num_steps_from_num_tokens()`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from modlib.components import component
from modlib.runtime.errors import CheckpointError, ConfigError

logger = logging.getLogger("modlib")

Leftover = Literal["report", "error"]
_reported: set[str] = set()  # a number is computed wherever a config names it, and its leftover is told once


@component("number_conversion", "local_num_batches_from_num_samples", not_science=("leftover",))
def local_num_batches_from_num_samples(
    *, num_samples: int, world_size: int, micro_batch_size: int, leftover: Leftover = "report"
) -> int:
    """Whole micro-batches that each rank gets out of so many samples.

    Args:
        num_samples: Samples over all ranks, at least 0.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        leftover: "report" logs a warning with what does not fill a micro-batch on every rank; "error" refuses it.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "local_num_batches_from_num_samples"
    _check(name, {"num_samples": num_samples}, {"world_size": world_size, "micro_batch_size": micro_batch_size})
    return _whole(name, "num_samples", num_samples, world_size * micro_batch_size, "batches per rank", leftover)


@component("number_conversion", "local_num_batches_from_num_tokens", not_science=("leftover",))
def local_num_batches_from_num_tokens(
    *, num_tokens: int, seq_len: int, world_size: int, micro_batch_size: int, leftover: Leftover = "report"
) -> int:
    """Whole micro-batches that each rank gets out of so many tokens.

    Args:
        num_tokens: Tokens over all ranks, at least 0.
        seq_len: Tokens per sequence.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        leftover: "report" logs a warning with what does not fill a micro-batch on every rank; "error" refuses it.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "local_num_batches_from_num_tokens"
    sizes = {"seq_len": seq_len, "world_size": world_size, "micro_batch_size": micro_batch_size}
    _check(name, {"num_tokens": num_tokens}, sizes)
    per_batch = seq_len * world_size * micro_batch_size
    return _whole(name, "num_tokens", num_tokens, per_batch, "batches per rank", leftover)


@component("number_conversion", "num_samples_from_num_tokens", not_science=("leftover",))
def num_samples_from_num_tokens(*, num_tokens: int, seq_len: int, leftover: Leftover = "report") -> int:
    """Whole sequences in so many tokens.

    Args:
        num_tokens: Tokens, at least 0.
        seq_len: Tokens per sequence.
        leftover: "report" logs a warning with what does not fill a sequence; "error" refuses it.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "num_samples_from_num_tokens"
    _check(name, {"num_tokens": num_tokens}, {"seq_len": seq_len})
    return _whole(name, "num_tokens", num_tokens, seq_len, "samples", leftover)


@component("number_conversion", "num_steps_from_num_samples", not_science=("leftover",))
def num_steps_from_num_samples(
    *,
    num_samples: int,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    leftover: Leftover = "report",
) -> int:
    """Whole optimizer steps in so many samples.

    Args:
        num_samples: Samples over all ranks, at least 0.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.
        leftover: "report" logs a warning with what does not fill a step; "error" refuses it.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "num_steps_from_num_samples"
    per_step = _global_batch_size(name, world_size, micro_batch_size, grad_accum_steps, num_samples=num_samples)
    return _whole(name, "num_samples", num_samples, per_step, "steps", leftover)


@component("number_conversion", "num_steps_from_num_tokens", not_science=("leftover",))
def num_steps_from_num_tokens(
    *,
    num_tokens: int,
    seq_len: int,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int = 1,
    leftover: Leftover = "report",
) -> int:
    """Whole optimizer steps in so many tokens.

    Args:
        num_tokens: Tokens over all ranks, at least 0.
        seq_len: Tokens per sequence.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.
        leftover: "report" logs a warning with what does not fill a step; "error" refuses it.

    Raises:
        ConfigError: A number is out of range, or something is left over that may not be.
    """
    name = "num_steps_from_num_tokens"
    sizes = {"seq_len": seq_len}
    per_step = _global_batch_size(name, world_size, micro_batch_size, grad_accum_steps, sizes, num_tokens=num_tokens)
    return _whole(name, "num_tokens", num_tokens, per_step * seq_len, "steps", leftover)


@component("number_conversion", "num_tokens_from_num_steps")
def num_tokens_from_num_steps(
    *, num_steps: int, seq_len: int, world_size: int, micro_batch_size: int, grad_accum_steps: int = 1
) -> int:
    """Tokens that so many optimizer steps consume over all ranks.

    Args:
        num_steps: Optimizer steps, at least 0.
        seq_len: Tokens per sequence.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.

    Raises:
        ConfigError: A number is out of range.
    """
    sizes = {"seq_len": seq_len}
    name = "num_tokens_from_num_steps"
    per_step = _global_batch_size(name, world_size, micro_batch_size, grad_accum_steps, sizes, num_steps=num_steps)
    return num_steps * per_step * seq_len


@component("number_conversion", "num_tokens_from_num_steps_callable")
def num_tokens_from_num_steps_callable(
    *, seq_len: int, world_size: int, micro_batch_size: int, grad_accum_steps: int = 1
) -> Callable[[int], int]:
    """A function from optimizer steps to the tokens that they consume over all ranks.

    Args:
        seq_len: Tokens per sequence.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.

    Raises:
        ConfigError: A number is out of range, here or when the function is called.
    """
    name = "num_tokens_from_num_steps_callable"
    per_step = _global_batch_size(name, world_size, micro_batch_size, grad_accum_steps, {"seq_len": seq_len}) * seq_len

    def num_tokens(num_steps: int) -> int:
        _check(name, {"num_steps": num_steps}, {})
        return num_steps * per_step

    return num_tokens


@component("number_conversion", "num_steps_from_packed_file", not_science=("leftover",))
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

    Args:
        path: A packed file, or the embedded corpus ('stdlib:train'), which is made if it is not there yet.
        seq_len: Tokens per sequence.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.
        num_epochs: Epochs, at least 1.
        reuse_last_target: As of the `PackedDataset` that the run trains on.
        leftover: "report" logs a warning with the windows that do not fill a step; "error" refuses them.

    Raises:
        ConfigError: A number is out of range, there is no such file, or windows are left over that may not be.
        DataError: The file is damaged, or shorter than one window.
    """
    name = "num_steps_from_packed_file"
    sizes = {"seq_len": seq_len, "num_epochs": num_epochs}
    per_step = _global_batch_size(name, world_size, micro_batch_size, grad_accum_steps, sizes)
    windows = _num_windows(name, path, seq_len, reuse_last_target) * num_epochs
    return _whole(name, f"windows of {path!r} in num_epochs ({num_epochs})", windows, per_step, "steps", leftover)


@component("number_conversion", "num_tokens_from_packed_file", not_science=("leftover",))
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

    Args:
        path: A packed file, or the embedded corpus ('stdlib:train'), which is made if it is not there yet.
        seq_len: Tokens per sequence.
        world_size: Data-parallel ranks.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.
        num_epochs: Epochs, at least 1.
        reuse_last_target: As of the `PackedDataset` that the run trains on.
        leftover: "report" logs a warning with the windows that do not fill a step; "error" refuses them.

    Raises:
        ConfigError: A number is out of range, there is no such file, or windows are left over that may not be.
        DataError: The file is damaged, or shorter than one window.
    """
    name = "num_tokens_from_packed_file"
    sizes = {"seq_len": seq_len, "num_epochs": num_epochs}
    per_step = _global_batch_size(name, world_size, micro_batch_size, grad_accum_steps, sizes)
    windows = _num_windows(name, path, seq_len, reuse_last_target) * num_epochs
    what = f"windows of {path!r} in num_epochs ({num_epochs})"
    return _whole(name, what, windows, per_step, "steps", leftover) * per_step * seq_len


@component("number_conversion", "num_steps_from_checkpoint")
def num_steps_from_checkpoint(*, checkpoint_path: str) -> int:
    """Optimizer steps done when a checkpoint was saved, as it says itself.

    Args:
        checkpoint_path: A checkpoint's own folder (`step-...`).

    Raises:
        CheckpointError: There is no complete checkpoint, or it does not say.
    """
    return _from_checkpoint(checkpoint_path, "step")


@component("number_conversion", "num_tokens_from_checkpoint")
def num_tokens_from_checkpoint(*, checkpoint_path: str) -> int:
    """Tokens consumed over all ranks when a checkpoint was saved, as it says itself.

    Args:
        checkpoint_path: A checkpoint's own folder (`step-...`).

    Raises:
        CheckpointError: There is no complete checkpoint, or it does not say.
    """
    return _from_checkpoint(checkpoint_path, "tokens")


def _check(name: str, from_zero: dict[str, int], from_one: dict[str, int]) -> None:
    """Refuse numbers that are too small. A problem begins with the conversion's name, which tells where it was set."""
    least = {**dict.fromkeys(from_zero, 0), **dict.fromkeys(from_one, 1)}
    problems = [
        f"{name}: {key} ({value}) must be at least {least[key]}; set it to {least[key]} or more"
        for key, value in {**from_zero, **from_one}.items()
        if value < least[key]
    ]
    if problems:
        raise ConfigError(problems)


def _global_batch_size(
    name: str,
    world_size: int,
    micro_batch_size: int,
    grad_accum_steps: int,
    sizes: dict[str, int] | None = None,
    **from_zero: int,
) -> int:
    """Samples per optimizer step over all ranks, once these and the other numbers are checked."""
    shares = {"world_size": world_size, "micro_batch_size": micro_batch_size, "grad_accum_steps": grad_accum_steps}
    _check(name, from_zero, {**(sizes or {}), **shares})
    return world_size * micro_batch_size * grad_accum_steps


def _whole(name: str, what: str, amount: int, size: int, results: str, leftover: Leftover) -> int:
    """How often size goes into amount; what is left is logged, or refused."""
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
    from modlib.data.packed_dataset import PackedDataset

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
