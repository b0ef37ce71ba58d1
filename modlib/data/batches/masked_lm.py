"""Hidden tokens to be guessed: what a masked language model is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from modlib.components import component
from modlib.data.batches.batch import Batch
from modlib.data.datasets.windows import Windows, as_windows
from modlib.runtime.errors import ConfigError, DataError


@component("collate_fn", "masked_lm_collator")
class MaskedLMCollator:
    """Some tokens are chosen as targets; of these most are hidden, a few replaced by any token, a few left.

    Inputs are a window without its last token (which is there for shifted targets), targets the same positions,
    ignore_index where nothing is to be guessed. The choice is a function of (seed, tokens of the window): a batch can
    be made again, on any rank, and a window is masked alike in every epoch, as in BERT's own training.

    Args:
        mask_id: What a hidden token is replaced by.
        vocab_size: Replacements are drawn below it; the mask may be one more token of the model.
        share: Of the tokens that are targets, in (0, 1).
        hidden: Of the targets that become mask_id.
        random: Of the targets that become any token; the rest stays as it is. hidden + random is at most 1.
        seed: At least 0; another one is another choice.
        special_ids: Tokens that are never targets, such as separators.
        attention_mask: Whether inputs are {"input_ids", "attention_mask"}, for padded data.
        ignore_index: Written where nothing is to be guessed; the loss's.

    Raises:
        ConfigError: A value out of range, all of them at once.

    Source: Devlin et al. 2019, BERT, section 3.1 (15 %, of which 80 % hidden, 10 % random, 10 % unchanged).
    """

    def __init__(
        self,
        *,
        mask_id: int,
        vocab_size: int,
        share: float = 0.15,
        hidden: float = 0.8,
        random: float = 0.1,
        seed: int = 0,
        special_ids: Sequence[int] = (),
        attention_mask: bool = False,
        ignore_index: int = -100,
    ) -> None:
        problems = []
        if vocab_size < 1:
            problems.append(f"vocab_size ({vocab_size}) must be at least 1; set it to the model's")
        if mask_id < 0:
            problems.append(f"mask_id ({mask_id}) must be at least 0; ask the tokenizer")
        if not 0 < share < 1:
            problems.append(f"share ({share}) must be in (0, 1); BERT's is 0.15")
        if not (hidden >= 0 and random >= 0 and hidden + random <= 1):
            problems.append(f"hidden ({hidden}) and random ({random}) must be at least 0 and at most 1 together")
        if seed < 0:
            problems.append(f"seed ({seed}) must be at least 0; choose another seed")
        if problems:
            raise ConfigError(problems)
        self.mask_id, self.vocab_size = mask_id, vocab_size
        self.share, self.hidden, self.random = share, hidden, random
        self.seed, self.special_ids = seed, tuple(special_ids)
        self.attention_mask, self.ignore_index = attention_mask, ignore_index

    def __call__(self, samples: npt.ArrayLike | Windows) -> Batch:
        """Collate one batch.

        Args:
            samples: As of LMCollator.

        Returns:
            inputs (B, T), alone or named, and targets (B, T), int64.

        Raises:
            ConfigError: The dataset keeps documents apart, which is not done here.
            DataError: samples are not (B, T + 1) with T at least 1.
        """
        windows = as_windows(samples)
        if windows.document_ids is not None:
            raise ConfigError(
                "intra_document_masking (True) must be False with MaskedLMCollator, which does not keep documents apart"
            )
        if windows.ids.ndim != 2 or windows.ids.shape[1] < 2:
            raise DataError(f"shape of the windows {windows.ids.shape} must be (B, T + 1) with T >= 1")
        ids = windows.ids[:, :-1].astype(np.int64)
        allowed = windows.present[:, :-1] & windows.trained[:, :-1] & ~np.isin(ids, self.special_ids)
        inputs, targets = ids.copy(), np.full_like(ids, self.ignore_index)
        for row, tokens in enumerate(ids):
            draws, replacements = self._draw(tokens)
            chosen = allowed[row] & (draws[0] < self.share)
            targets[row, chosen] = tokens[chosen]
            inputs[row, chosen & (draws[1] < self.hidden)] = self.mask_id
            other = chosen & (draws[1] >= self.hidden) & (draws[1] < self.hidden + self.random)
            inputs[row, other] = replacements[other]
        if self.attention_mask:
            present = torch.from_numpy(windows.present[:, :-1].astype(np.int64))
            return {"input_ids": torch.from_numpy(inputs), "attention_mask": present}, torch.from_numpy(targets)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _draw(self, tokens: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        key = hashlib.blake2b(tokens.tobytes(), digest_size=16, key=str(self.seed).encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        return generator.random((2, len(tokens))), generator.integers(0, self.vocab_size, len(tokens))
