"""From images and captions to what CoCa is trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modlib.components import component
from modlib.runtime.errors import ConfigError, DataError

logger = logging.getLogger("modlib")


@component("collate_fn", "coca_collator")
class CoCaCollator:
    """Images as normalised float32, captions shifted by one and padded, padding masked.

    A sample is a mapping with "image", (C, H, W) of uint8 in 0 to 255 or of floats in 0 to 1, and "tokens", the ids of
    its caption with what starts and ends it; "index", where there is one, is what an error names.

    Args:
        seq_len: T, targets per sample; a caption has at most T + 1 tokens.
        pad_id: The id that fills up inputs.
        ignore_index: The target that does not count.
        mean: Of each channel, in 0 to 1; subtracted. One number serves all channels.
        std: Of each channel; divides.
        skip_bad_samples: Replace a sample that cannot be used by a black image and a caption that is masked whole,
            with a warning; else it is an error.

    Raises:
        ConfigError: A number out of its range.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        pad_id: int = 0,
        ignore_index: int = -100,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        skip_bad_samples: bool = False,
    ) -> None:
        problems = [f"seq_len ({seq_len}) must be at least 1; set SEQ_LEN"] if seq_len < 1 else []
        if not np.all(np.asarray(std) > 0):
            problems.append(f"std ({std}) must be above 0 for each channel")
        if problems:
            raise ConfigError(problems)
        self.seq_len, self.pad_id, self.ignore_index = seq_len, pad_id, ignore_index
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        self.skip_bad_samples = skip_bad_samples
        self._last: tuple[tuple[int, ...], np.dtype[Any]] | None = None  # of images, for a batch without a good one

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
        """Collate one batch.

        Args:
            samples: B of them; their images have one shape.

        Returns:
            {"images" (B, C, H, W) float32, "input_ids" (B, T) int64, "attention_mask" (B, T) bool, true where a token
            is real}, and targets (B, T) int64.

        Raises:
            DataError: A sample that cannot be used, by its index, unless it is to be skipped; or a first batch without
                one image.
        """
        samples = samples if isinstance(samples, Iterable) else [samples]  # Windows of text, which are no pairs
        problems = [self._problem(sample) for sample in samples]
        shape, dtype = self._images_of(samples, problems)
        ids = np.full((len(samples), self.seq_len + 1), self.pad_id, np.int64)
        lengths = np.zeros((len(samples), 1), np.int64)
        images = np.zeros((len(samples), *shape), dtype)
        for row, (sample, problem) in enumerate(zip(samples, problems)):
            if problem is None and (np.shape(sample["image"]) != shape or np.asarray(sample["image"]).dtype != dtype):
                problem = (
                    f"image {np.shape(sample['image'])} of {np.asarray(sample['image']).dtype} must be as the batch's "
                    f"first: {shape} of {dtype}"
                )
            if problem is None:
                tokens = np.asarray(sample["tokens"])
                images[row] = sample["image"]
                ids[row, : len(tokens)] = tokens
                lengths[row] = len(tokens)
            else:
                self._report(sample, row, problem)
        return self._tensors(images, ids, lengths)

    def _images_of(self, samples: Sequence[Any], problems: Sequence[str | None]) -> tuple[tuple[int, ...], Any]:
        """Shape and type of the batch's images: a good sample's; else of one with a bad caption; else the last ones."""
        images = [np.asarray(sample["image"]) for sample, problem in zip(samples, problems) if problem is None]
        if not images and self.skip_bad_samples:
            given = [sample for sample in samples if isinstance(sample, Mapping) and "image" in sample]
            images = [image for sample in given if _is_image(image := np.asarray(sample["image"]))]
        if images:
            self._last = images[0].shape, images[0].dtype
        if self._last is None:
            for row, (sample, problem) in enumerate(zip(samples, problems)):
                self._report(sample, row, problem)
            raise DataError(f"samples ({len(samples)}) must have at least one that can be used; see the warnings above")
        return self._last

    def _problem(self, sample: Mapping[str, Any]) -> str | None:
        """Why a sample cannot be used by itself."""
        missing = [name for name in ("image", "tokens") if not isinstance(sample, Mapping) or name not in sample]
        if missing:
            given = ", ".join(map(str, sample)) if isinstance(sample, Mapping) else type(sample).__name__
            return f"what it has ({given}) must include {' and '.join(missing)}; use a dataset of images and captions"
        tokens, image = np.asarray(sample["tokens"]), np.asarray(sample["image"])
        if tokens.ndim != 1 or not 2 <= len(tokens) <= self.seq_len + 1:
            return (
                f"caption tokens {tokens.shape} must be at least 2 and at most seq_len + 1 ({self.seq_len + 1}); "
                "shorten the caption, or raise SEQ_LEN"
            )
        if tokens.dtype.kind not in "iu":
            return f"caption tokens ({tokens.dtype}) must be integers"
        if not _is_image(image):
            return f"image {image.shape} of {image.dtype} must be (C, H, W) of uint8 or floats"
        if len(self.mean) not in (1, len(image)) or len(self.std) not in (1, len(image)):
            return f"image channels ({len(image)}) must be as many as mean ({len(self.mean)}) and std ({len(self.std)})"
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            return "image must be finite, has NaN or Inf"
        return None

    def _report(self, sample: Any, row: int, problem: str | None) -> None:
        index = sample.get("index") if isinstance(sample, Mapping) else None
        text = f"sample {f'{row} of the batch' if index is None else index}: {problem}"
        if not self.skip_bad_samples:
            raise DataError(f"{text}; or set CoCaCollator.skip_bad_samples = True")
        logger.warning("skipped %s", text)

    def _tensors(self, images: Any, ids: Any, lengths: Any) -> tuple[dict[str, Tensor], Tensor]:
        positions = np.arange(self.seq_len)
        targets = np.where(positions < lengths - 1, ids[:, 1:], self.ignore_index)
        inputs = np.where(positions < lengths - 1, ids[:, :-1], self.pad_id)  # the last token is a target only
        pixels = torch.from_numpy(images)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return {
            "images": (pixels - self.mean) / self.std,
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.from_numpy(positions < lengths - 1),
        }, torch.from_numpy(targets)


def _is_image(image: Any) -> bool:
    return image.ndim == 3 and (image.dtype == np.uint8 or image.dtype.kind == "f")
