"""Evaluation of captioning models: captions that are exactly right, and images and captions that find each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modlib.components import component
from modlib.models.coca import greedy_captions
from modlib.nn.contrastive import gather_rows
from modlib.training.held_out import HeldOut, evaluating
from modlib.training.parts import Parts, sum_over_ranks


@component("evaluator", "caption_accuracy", not_science=("every",))
class CaptionAccuracy(HeldOut):
    """Greedy captions compared with the true ones, and retrieval by embeddings, over images of one dataset, in order.

    Logged as `val/<name>/...`, each a share of the images, each rank doing its part of them:

    - `caption_accuracy`: the greedy caption is right in every token up to the end;
    - `token_accuracy`: the share of right tokens in greedy captions;
    - `image_to_text_accuracy`: of all captions evaluated, the image's embedding is closest to that of its own caption,
      or of an equal one (zero-shot retrieval, recall at 1);
    - `text_to_image_accuracy`: the same from captions to images.

    Args:
        name: Middle of the metrics' names.
        dataset: Returns the held-out images with captions.
        every: Steps between evaluations; the last step is always evaluated.
        num_images: So many images, over all ranks, spread evenly over the data; None evaluates every image.
        micro_batch_size: Images per rank per forward; None takes the run's.

    Raises:
        ConfigError: A number out of its range, or a name that metrics cannot have.
    """

    def __init__(
        self,
        *,
        name: str = "captions",
        dataset: Callable[[], Any],
        every: int,
        num_images: int | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__(name, dataset, every, ("num_images", num_images, "images"), micro_batch_size)

    @torch.no_grad()
    def evaluate(self, parts: Parts, collate: Callable[..., Any], micro_batch_size: int) -> dict[str, float]:
        """The metrics over all images and ranks; a collective call. Dropout is off, and training mode is restored.

        Args:
            parts: The model, and the loss for its ignore_index.
            collate: Makes (inputs, targets) from samples.
            micro_batch_size: The run's, used when this evaluator has none of its own.
        """
        masked = parts.loss.ignore_index
        found: dict[str, list[Tensor]] = {"captions": [], "targets": [], "image": [], "text": []}
        with evaluating(parts.model):
            for inputs, targets in self.batches(parts, collate, micro_batch_size):
                assert isinstance(inputs, dict)  # data of images and captions
                with parts.in_precision():
                    outputs = parts.model(inputs)
                    start = inputs["input_ids"][:, 0]
                    captions = greedy_captions(parts.model, inputs["images"], start, targets.shape[1])
                rows = (captions, targets, outputs["image_embedding"], outputs["text_embedding"])
                for name, tensor in zip(found, rows, strict=True):
                    found[name].append(tensor)
        captions, targets, image, text = (torch.cat(tensors) for tensors in found.values())
        sums = sum_over_ranks(_sums(captions, targets, image, text, masked), parts.world).tolist()
        images, right, tokens, tokens_right, to_text, to_image = sums
        return {
            f"val/{self.name}/caption_accuracy": right / max(images, 1.0),
            f"val/{self.name}/token_accuracy": tokens_right / max(tokens, 1.0),
            f"val/{self.name}/image_to_text_accuracy": to_text / max(images, 1.0),
            f"val/{self.name}/text_to_image_accuracy": to_image / max(images, 1.0),
        }


def _sums(captions: Tensor, targets: Tensor, image: Tensor, text: Tensor, masked: int) -> Tensor:
    """Over this rank's images: images, captions right, tokens, tokens right, images and captions that find each other.

    Args:
        captions: Greedy tokens (N, T).
        targets: (N, T); a row that is masked whole does not count.
        image: Embeddings (N, D).
        text: Embeddings (N, D).
        masked: The target value that does not count.
    """
    unmasked = targets != masked
    present = unmasked.any(dim=1)
    right = (captions == targets) & unmasked
    exact = (right == unmasked).all(dim=1) & present
    images, texts, answers = gather_rows(image), gather_rows(text), gather_rows(targets)
    absent = (answers == masked).all(dim=1)
    hits = []
    for own, others in ((image, texts), (text, images)):
        nearest = (own @ others.T).masked_fill(absent, float("-inf")).argmax(dim=1)
        hits.append(((answers[nearest] == targets).all(dim=1) & present).sum())
    counts = [present.sum(), exact.sum(), unmasked.sum(), right.sum(), *hits]
    return torch.stack(counts).double()
