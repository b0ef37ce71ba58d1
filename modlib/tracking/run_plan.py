"""What a run is going to do, known before it does it: shown by the start banner and by --dry_run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of one run for one world size. All bytes and counts are plain numbers.

    Args:
        run_name: Name of the run folder.
        config_hash: Hash of what changes numbers in the configuration.
        resolved: The complete configuration, dotted name -> value.
        num_steps: Optimizer steps in the whole run.
        tokens_per_step: Tokens over all ranks and micro-batches.
        world_size: Ranks.
        global_batch_size: Sequences per optimizer step over all ranks.
        micro_batch_size: Sequences per rank and forward.
        grad_accum_steps: Micro-batches per rank and optimizer step.
        seq_len: Tokens per sequence.
        parameters: "total", "trainable", "non_embedding".
        parameter_table: (part of the model, parameters), in order of computation.
        flops_per_token: Forward and backward.
        memory_per_rank_bytes: Estimates of "parameters", "gradients", "optimizer", "activations", and
            "frozen" where an objective has models that are not trained.
        checkpoint_bytes: Of one checkpoint, all ranks together.
        learning_rates: The schedule, sampled evenly from the first step to the last.
        roles: What trained parameters are for and how the optimizer treats them, a line each.
        dataset: What is known of the training data: "path", "num_tokens", "num_documents", "note", and
            "padding", the share of the windows' tokens that is none.
        start_step: Steps already done by earlier attempts.
        precision: Dtype of the computation.
        device: "cpu", or the GPU's name.
        num_threads: CPU threads per rank.
        peak_flops: FLOP/s of one rank's device that count as 100 %; None when unknown.
        peak_source: Where that number comes from; without one, why there is none.
        assumed_mfu: Share of the peak at which the time is estimated.
        flops_convention: How attention is counted in flops_per_token.
        outputs: What is written -> where.
        disk_free_bytes: Free space where the run folder is or will be.
        versions: Package -> version.
        notes: Sentences worth a line of their own.
    """

    config_hash: str
    num_steps: int
    tokens_per_step: int
    world_size: int
    global_batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    seq_len: int
    parameters: Mapping[str, int]
    flops_per_token: float
    memory_per_rank_bytes: Mapping[str, int]
    checkpoint_bytes: int
    run_name: str = ""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    parameter_table: Sequence[tuple[str, int]] = ()
    learning_rates: Sequence[float] = ()
    roles: Sequence[str] = ()
    dataset: Mapping[str, Any] = field(default_factory=dict)
    start_step: int = 0
    precision: str = "float32"
    device: str = "cpu"
    num_threads: int | None = None
    peak_flops: float | None = None
    peak_source: str = ""
    assumed_mfu: float = 0.4
    flops_convention: str = "palm"
    outputs: Mapping[str, str | Path] = field(default_factory=dict)
    disk_free_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in the whole run."""
        return self.num_steps * self.tokens_per_step

    @property
    def num_flops(self) -> float:
        """Floating-point operations in the whole run, all ranks together."""
        return self.flops_per_token * self.num_tokens

    @property
    def flops_per_rank(self) -> float:
        """Floating-point operations of one rank in the whole run."""
        return self.num_flops / self.world_size

    @property
    def num_epochs(self) -> float | None:
        """Passes over the training data; None when its size is not known."""
        tokens = self.dataset.get("num_tokens")
        return self.num_tokens / tokens if tokens else None

    @property
    def estimated_seconds(self) -> float | None:
        """Training time at `assumed_mfu` of the peak of all ranks; None when either is not known."""
        if not self.peak_flops or not self.num_flops:
            return None
        return self.flops_per_rank / (self.peak_flops * self.assumed_mfu)

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation at this speed of all ranks; None without a peak, and above it, which cannot be."""
        if not self.peak_flops or not self.flops_per_token:
            return None
        mfu = self.flops_per_token * tokens_per_s / (self.peak_flops * self.world_size)
        return mfu if mfu <= 1.0 else None

    def to_json(self) -> dict[str, Any]:
        """Every field and what follows from them, in types that `json` can write."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        seconds = self.estimated_seconds
        derived = {
            "num_tokens": self.num_tokens,
            "num_flops": self.num_flops,
            "num_epochs": self.num_epochs,
            "estimated_seconds": seconds,
            "device_hours": None if seconds is None else seconds * self.world_size / 3600,
        }
        return _as_json({**values, **derived})


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _as_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
