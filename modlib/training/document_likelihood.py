"""Evaluation: bits per byte of whole documents, as lm-eval measures them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Batch, Inputs
from modlib.data.datasets.dataset import packed_files
from modlib.data.datasets.rolling_windows import RollingWindows, Row
from modlib.nn.losses import FromHidden
from modlib.runtime.errors import ConfigError
from modlib.training.held_out import HeldOut, evaluating
from modlib.training.parts import Parts, sum_over_ranks


@component("evaluator", "document_likelihood", not_science=("every",))
class DocumentLikelihood(HeldOut):
    """lm-eval's bits per byte: each document by itself, every token of its text predicted once.

    Logged as `val/<name>/lm_eval_bits_per_byte`: the negative log-likelihood of all documents in bits, over the UTF-8
    bytes of their text, which lm-eval's `loglikelihood_rolling` tasks call bits_per_byte. Evaluator's bits_per_byte is
    another number: there documents are predicted from what is before them in the window, their ends count in bits, and
    tokens that are no targets are as likely as the mean.

    Here a document is read after one prefix token and its own end does not count. One of more than max_length tokens is
    cut as lm-eval cuts it. All documents of the data are read, however the dataset makes windows of them, and those of
    a file with a loss mask are read whole.

    Args:
        name: Middle of the metric's name.
        dataset: Returns the held-out data, made of packed files that know the bytes of their text.
        every: Steps between evaluations; the last step is always evaluated.
        max_length: Most tokens the model reads at once, lm-eval's max_length; None takes the model's seq_len.
        prefix_id: The token before each document, which lm-eval takes from the tokenizer: its bos_token, else its
            eos_token. None takes the data's end-of-document token.
        micro_batch_size: Windows per rank per forward; None takes the run's.

    Raises:
        ConfigError: A number out of its range, a name that metrics cannot have, or data without documents of known
            size.

    Source: Gao et al., lm-evaluation-harness, lm_eval/utils.py and lm_eval/api/metrics.py (bits_per_byte).
    """

    def __init__(
        self,
        *,
        name: str = "documents",
        dataset: Callable[[], Any],
        every: int,
        max_length: int | None = None,
        prefix_id: int | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__(name, dataset, every, ("max_length", max_length, "positions"), micro_batch_size)
        self.max_length, self.most = max_length, None
        self.files = list(packed_files(self.dataset))
        problems = []
        if not self.files or not all(packed.num_bytes_of_text for packed in self.files):
            problems.append(
                f"dataset ({type(self.dataset).__name__}) must be made of packed files that know the bytes of their "
                "text; pack the text with modlib data pack"
            )
        ends = {packed.header.end_of_document_id for packed in self.files}
        if prefix_id is None and problems == [] and (len(ends) > 1 or None in ends):
            problems.append(
                "prefix_id (None) must be given for data without an end-of-document token of its own; set it to the "
                "id of the token that begins a text"
            )
        if prefix_id is not None and prefix_id < 0:
            problems.append(f"prefix_id ({prefix_id}) must be at least 0; it is a token's id")
        if problems:
            raise ConfigError(problems)
        self.prefix_id: int = prefix_id if prefix_id is not None else int(next(iter(ends)) or 0)

    def check_model(self, model: Any) -> None:
        """See HeldOut.

        Raises:
            ConfigError: The model predicts masked tokens, is shorter than max_length, or has no such prefix.
        """
        problems = []
        if getattr(model, "model_type", "") == "AutoModelForMaskedLM":
            problems.append("model_type ('AutoModelForMaskedLM') must be 'AutoModelForCausalLM' for DocumentLikelihood")
        if self.max_length is not None and self.max_length > model.seq_len:
            problems.append(
                f"max_length ({self.max_length}) must be at most the model's seq_len ({model.seq_len}); leave it out"
            )
        if self.prefix_id >= model.vocab_size:
            problems.append(
                f"prefix_id ({self.prefix_id}) must be below the model's vocab_size ({model.vocab_size}); set it to "
                "the id of a token"
            )
        if problems:
            raise ConfigError(problems)

    @torch.no_grad()
    def evaluate(self, parts: Parts, collate: Callable[..., Any], micro_batch_size: int) -> dict[str, float]:
        """The metric over all documents and ranks; a collective call. Dropout is off, and training mode is restored.

        Args:
            parts: The model, and the loss for its ignore_index.
            collate: Not used: rows are padded here.
            micro_batch_size: The run's, used when this evaluator has none of its own.
        """
        del collate
        longest = self.max_length or int(parts.model.seq_len)  # type: ignore[arg-type]
        rows = RollingWindows(self.files, longest, self.prefix_id)
        padded = partial(_padded, longest=longest, ignore_index=parts.loss.ignore_index, fixed=parts.compiled)
        nats = torch.zeros((), dtype=torch.float64, device=parts.world.device)
        with evaluating(parts.model):
            for inputs, targets in self.batches(parts, padded, micro_batch_size, rows):
                nats += _nats(parts, inputs, targets)
        total = sum_over_ranks(nats, parts.world).item()
        num_bytes = sum(packed.num_bytes_of_text for packed in self.files)
        return {f"val/{self.name}/lm_eval_bits_per_byte": total / math.log(2) / num_bytes}


def _padded(rows: Sequence[Row], *, longest: int, ignore_index: int, fixed: bool) -> Batch:
    """Inputs and targets (B, T), filled up on the right, where a causal model does not see it.

    T is a power of two or `longest`, so that there are few shapes; with `fixed` always `longest`.
    """
    needed = max(len(ids) - 1 for ids, _ in rows)
    width = longest if fixed else min(longest, 1 << (needed - 1).bit_length())
    inputs = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width), ignore_index, np.int64)
    for row, (ids, predicted) in enumerate(rows):
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(ids) - 1 - predicted : len(ids) - 1] = ids[-predicted:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _nats(parts: Parts, inputs: Inputs, targets: Tensor) -> Tensor:
    """The summed negative log-likelihood of the targets, float64; of any loss, since none is asked."""
    loss = parts.loss

    def summed(logits: Sequence[Tensor]) -> Tensor:
        sums = [
            F.cross_entropy(
                each.flatten(0, -2).float(), wanted.flatten(), ignore_index=loss.ignore_index, reduction="none"
            )
            for each, wanted in zip(logits, targets, strict=True)
        ]
        return torch.stack(sums).double().sum()

    with parts.in_precision():
        if isinstance(loss, FromHidden):  # the logits of one sequence at a time
            total: Tensor = parts.model(
                inputs, head=lambda hidden, weight: summed([F.linear(states, weight) for states in hidden])
            )
            return total
        outputs = parts.model(inputs)
        logits = outputs if isinstance(outputs, Tensor) else outputs[getattr(loss, "prediction_key", "logits")]
        return summed(list(logits))
