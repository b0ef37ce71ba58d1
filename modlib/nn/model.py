"""What training asks of a model, beside being a module: two sizes, and methods that it may have.

The protocols with one method are told apart by `isinstance`, which looks for methods of the class: a submodule, such as
`blocks`, is not found that way in every Python, so those stay attributes with a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


class Model(Protocol):
    """Tokens (B, T) to logits (B, T, vocab_size); or a dict of named tensors to a dict of them."""

    vocab_size: int
    """Number of token ids."""
    seq_len: int
    """Longest sequence, in tokens."""

    def __call__(self, inputs: Any) -> Any: ...


@runtime_checkable
class CountsFlops(Protocol):
    """Counts the operations of forward and backward per token; else six per parameter that is multiplied."""

    def flops_per_token(self, seq_len: int) -> float: ...


@runtime_checkable
class EstimatesActivations(Protocol):
    """Estimates the bytes kept for the backward pass of one micro-batch; else the plan's memory is without them."""

    def activation_bytes(self, micro_batch_size: int, seq_len: int, bytes_per_value: int) -> int: ...


@runtime_checkable
class ListsParameters(Protocol):
    """Rows for the banner: a name and a number of parameters each."""

    def parameter_table(self) -> list[tuple[str, int]]: ...


@runtime_checkable
class CountsParameters(Protocol):
    """Counts of its parameters by kind: total, trainable, non_embedding, and others."""

    def num_parameters(self) -> Mapping[str, int]: ...


@runtime_checkable
class HasPlanNotes(Protocol):
    """Says what a user should know before the run starts, a line each."""

    def plan_notes(self) -> list[str]: ...
