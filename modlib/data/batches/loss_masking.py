"""Train only on what stands between two markers, such as the answers in a chat."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Batch, Inputs
from modlib.data.datasets.windows import Windows
from modlib.runtime.errors import ConfigError, DataError, require_choices

logger = logging.getLogger("modlib")

OnBadRow = Literal["raise", "skip"]
Mask = npt.NDArray[np.bool_]


@component("collate_fn", "mask_loss_collator")
class LossMaskingCollator:
    """Masks every target that is not between a begin marker and the next end marker, row by row.

    The begin marker itself is never trained, the end marker is, so that the model learns to stop. A row without
    markers is masked whole; a batch of such rows has loss 0. A row is bad when a span begins within a span, ends
    before it begins, or does not end: then its spans cannot be told. That happens when windows are cut without regard
    to documents; use a dataset that keeps them whole (JSONLDataset, PackedDocuments). Padding and targets that the
    dataset masked stay masked, and are no markers.

    Args:
        collate: Returns the collator that makes (inputs, targets); its inputs are a tensor, or named with "input_ids".
        tokenizer: Returns the tokenizer of the data.
        begin_token: The token that begins a span; one token of the tokenizer.
        end_token: The token that ends it; another one.
        train_end: Whether the end marker is trained.
        on_bad_row: "raise" names the row; "skip" masks the whole row, warns once and counts in `num_bad_rows`.
        ignore_index: Value of a masked target; the loss's.

    Raises:
        ConfigError: The two markers are the same token.
        DataError: A marker is not one token of the tokenizer.

    Source: Touvron et al. 2023, Llama 2, section 3.1 (loss on answers only).
    """

    def __init__(
        self,
        *,
        collate: Callable[[], Any],
        tokenizer: Callable[[], Any],
        begin_token: str,
        end_token: str,
        train_end: bool = True,
        on_bad_row: OnBadRow = "raise",
        ignore_index: int = -100,
    ) -> None:
        require_choices(on_bad_row=(on_bad_row, OnBadRow))
        if begin_token == end_token:
            raise ConfigError(
                f"begin_token ({begin_token!r}) must differ from end_token ({end_token!r}); a span that ends as it "
                "begins cannot be told from what is between two spans"
            )
        self.collate = collate()
        loaded = tokenizer()
        self.begin_token, self.end_token = begin_token, end_token
        self.begin_id = int(loaded.token_id(begin_token))
        self.end_id = int(loaded.token_id(end_token))
        self.train_end = train_end
        self.on_bad_row = on_bad_row
        self.ignore_index = ignore_index
        self.hands_on_document_ids: bool = getattr(self.collate, "hands_on_document_ids", False)
        self.num_bad_rows = 0
        """Rows masked so far because they were bad, by this process."""

    def __call__(self, samples: Any) -> Batch:
        """Collate one batch and mask its targets.

        Args:
            samples: As `collate` takes them.

        Returns:
            inputs as `collate` gives them, and targets (B, T) with ignore_index outside spans.

        Raises:
            DataError: A row is bad and on_bad_row is "raise".
        """
        inputs, targets = self.collate(samples)
        tokens = _window(inputs, targets)
        kept, problems = spans(tokens, self.begin_id, self.end_id, self.train_end)
        if problems:
            self._report(problems, samples)
            kept[list(problems)] = False
        return inputs, targets.masked_fill(~torch.from_numpy(kept), self.ignore_index)

    def _report(self, problems: dict[int, str], samples: Any) -> None:
        row, problem = next(iter(problems.items()))
        index = samples.index if isinstance(samples, Windows) else None
        place = f"row {row} of a batch" if index is None else f"row {row} of a batch (sample {int(index[row])})"
        text = f"{place}: {problem.format(begin=repr(self.begin_token), end=repr(self.end_token))}"
        if self.on_bad_row == "raise":
            raise DataError(
                f"{text}; correct the data, keep documents whole (JSONLDataset, PackedDocuments), or set "
                "LossMaskingCollator.on_bad_row = 'skip'"
            )
        if not self.num_bad_rows:
            logger.warning("%s; such rows are masked whole, and counted without another warning", text)
        self.num_bad_rows += len(problems)


def spans(
    tokens: npt.NDArray[np.int64], begin_id: int, end_id: int, train_end: bool = True
) -> tuple[Mask, dict[int, str]]:
    """Which targets are between markers, row by row.

    Args:
        tokens: (B, T + 1); negative where there is none. Target t is token t + 1.
        begin_id: Opens a span.
        end_id: Closes it.
        train_end: Whether the closing token is within.

    Returns:
        (B, T), True where a target is trained, and what is wrong with each bad row; the mask of a bad row means
        nothing.
    """
    begins, ends = tokens == begin_id, tokens == end_id
    # +1 at a begin, -1 at an end: inside where the sum is 1, which in a good row it alternates with 0
    depth = np.cumsum(begins.astype(np.int64) - ends, axis=1)
    inside = depth == 1
    kept = inside & ~begins
    if train_end:
        kept |= ends
    bad = np.flatnonzero((depth < 0).any(axis=1) | (depth > 1).any(axis=1) | (depth[:, -1] != 0))
    return kept[:, 1:], {row: _problem(depth[row]) for row in bad.tolist()}


def _problem(depth: npt.NDArray[np.int64]) -> str:
    wrong = np.flatnonzero((depth < 0) | (depth > 1))
    if not wrong.size:
        return (
            f"{{begin}} at token {int(np.flatnonzero(depth == 0)[-1]) + 1 if (depth == 0).any() else 0} has no {{end}}"
        )
    place = int(wrong[0])
    if depth[place] < 0:
        return f"{{end}} at token {place} has no {{begin}} before it"
    return f"{{begin}} at token {place} stands within a span that has not ended"


def _window(inputs: Inputs, targets: Tensor) -> npt.NDArray[np.int64]:
    """The windows that were collated, (B, T + 1), as far as their targets count."""
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
    if ids is None:
        raise ConfigError(
            f"inputs of LossMaskingCollator.collate ({', '.join(inputs)}) must be one tensor or have 'input_ids'; "
            "use another collator"
        )
    window = torch.cat([ids[:, :1], targets], dim=1)
    documents = inputs.get("document_ids") if isinstance(inputs, dict) else None
    if documents is not None:  # the first token of a document is no target, but may be a marker
        begins = documents[:, 1:] != documents[:, :-1]
        window[:, 1:-1] = torch.where(begins, ids[:, 1:], window[:, 1:-1])
    return window.numpy()
