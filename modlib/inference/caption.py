"""Captions of a few images at the end of a run, beside the true ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from modlib.components import component
from modlib.data.batches.batch import map_tensors
from modlib.models.coca import greedy_captions
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from modlib.data.text.tokenizer import TextTokenizer


@component("sample", "caption", not_science=("dataset", "num_images"))
class CaptionSample:
    """Caption the first images of a dataset greedily: one line each, with the true caption where it is another.

    Args:
        dataset: Returns the images with captions.
        collate: Returns the run's collator.
        num_images: How many images, at least 1.

    Raises:
        ConfigError: num_images is below 1.
    """

    def __init__(self, *, dataset: Callable[[], Any], collate: Callable[[], Any], num_images: int = 8) -> None:
        if num_images < 1:
            raise ConfigError(f"num_images ({num_images}) must be at least 1; to show none leave train.sample out")
        self.dataset, self.collate, self.num_images = dataset, collate, num_images

    def __call__(self, model: Any, tokenizer: TextTokenizer) -> str:
        """The lines.

        Args:
            model: The trained model; every rank calls it when it is sharded.
            tokenizer: The training data's.
        """
        images = self.dataset()
        inputs, targets = self.collate()([images[index] for index in range(min(self.num_images, len(images)))])
        device = next(model.parameters()).device
        inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
        written = greedy_captions(model, inputs["images"], inputs["input_ids"][:, 0], targets.shape[1]).cpu()
        decode = partial(tokenizer.decode, skip_special_tokens=True)
        lines = []
        for caption, target in zip(written, targets, strict=True):
            truth = target[target >= 0].tolist()
            text, true = (decode(tokens) for tokens in (_up_to(caption, truth[-1]), truth))
            right = caption[: len(truth)].tolist() == truth
            lines.append(f"right: {text}" if right else f"wrong: {text} (it is {true})")
        return "\n".join(lines)


def _up_to(caption: torch.Tensor, end: int) -> list[int]:
    """The tokens before the first `end`; what follows it has no meaning."""
    tokens = caption.tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens
