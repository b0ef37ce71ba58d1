"""Losses of models with two encoders: contrastive over all ranks, and weighted sums of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from modlib.components import component, component_name
from modlib.runtime.errors import ConfigError
from modlib.runtime.metric_names import name_problem

_TAKEN_NAMES = ("loss", "tokens", "perplexity", "bits_per_byte")  # what evaluation logs beside the terms


class _GatherRows(torch.autograd.Function):
    """The rows of all ranks in the order of ranks; gradients go back to the rank that a row came from."""

    @staticmethod
    def forward(_: Any, rows: Tensor) -> Tensor:
        pieces = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()  # every rank used every row
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate (B, ...) of every rank to (world size x B, ...), differentiable; the same B on all ranks.

    A collective call, in backward too. Without torch.distributed it returns its argument.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _GatherRows.apply(rows)  # type: ignore[no-any-return,no-untyped-call]
    return rows


@component("loss", "contrastive")
class ContrastiveLoss:
    """Symmetric InfoNCE between images and captions, with the negatives of all ranks.

    Each image is to find its caption among those of the whole micro-batch over all ranks, and each caption its image;
    the loss of a pair is the mean of the two cross-entropies. A pair whose targets are all masked (a skipped sample,
    the padding of the last evaluation batch) is neither a positive nor a negative.

    Training divides the sum over all losses by the number of unmasked targets (tokens), so the returned value is the
    sum over this rank's pairs times the tokens per pair of the micro-batch over all ranks. On one rank that is
    (mean over pairs) x (unmasked targets), and on several ranks the sum over ranks is the same: after the division, a
    step optimises the mean over pairs, and with accumulation the token-weighted mean of that over micro-batches, whose
    samples are not negatives of one another. Value and gradient do not depend on the number of ranks.

    Args:
        ignore_index: Target value of positions that do not count.
        image_key: Output with the image embeddings, (B, D), L2-normalised.
        text_key: Output with the caption embeddings, (B, D), L2-normalised.
        scale_key: Output with the factor on their products, a scalar: 1 / temperature.

    Source: Radford et al. 2021, CLIP, figure 3; Yu et al. 2022, CoCa, equation 1. Negatives over all devices, each
    rank computing only its own rows: Cherti et al. 2023, Reproducible scaling laws (OpenCLIP), section 4.1.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        image_key: str = "image_embedding",
        text_key: str = "text_embedding",
        scale_key: str = "logit_scale",
    ) -> None:
        self.ignore_index = ignore_index
        self.image_key, self.text_key, self.scale_key = image_key, text_key, scale_key

    def __call__(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """The loss of this rank's pairs, weighted as said above. A collective call when there are several ranks.

        Args:
            outputs: The embeddings and the scale, under their keys.
            targets: (B, T) int64; which of them are masked says which pairs count, and for how much.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: Embeddings that are not (B, D) both.
        """
        image, text = outputs[self.image_key].float(), outputs[self.text_key].float()
        if image.ndim != 2 or image.shape != text.shape or len(image) != len(targets):
            raise ValueError(
                f"{self.image_key} {tuple(image.shape)} and {self.text_key} {tuple(text.shape)} must both be (B, D) "
                f"with the B of the targets ({len(targets)}); return one embedding per sample, without a token axis"
            )
        tokens = (targets != self.ignore_index).sum(dim=1, keepdim=True)
        everyone = gather_rows(torch.cat((image, text, tokens.float()), dim=1))  # one collective for all three
        images, texts, all_tokens = everyone.split((image.shape[1], image.shape[1], 1), dim=1)
        absent = all_tokens.squeeze(1) == 0
        first = dist.get_rank() * len(image) if len(images) > len(image) else 0
        partners = torch.arange(first, first + len(image), device=image.device)
        partners = partners.masked_fill(tokens.squeeze(1) == 0, -1)
        total = image.new_zeros(())
        for own, others in ((image, texts), (text, images)):
            products = outputs[self.scale_key].float() * own @ others.T
            # not -inf: when every pair is absent, a row of -inf would have NaN gradients
            products = products.masked_fill(absent, torch.finfo(torch.float32).min)
            total = total + 0.5 * F.cross_entropy(products, partners, ignore_index=-1, reduction="sum")
        return total * (all_tokens.detach().sum() / (~absent).sum().clamp(min=1))


@component("loss", "weighted_losses")
class WeightedLosses:
    """A weighted sum of several losses of the same outputs and targets.

    Evaluation logs each loss without its weight, as `val/<evaluator>/<name>`.

    Args:
        losses: Losses as uncalled references, such as (@CLMCrossEntropyLoss, @ContrastiveLoss).
        weights: Factor of each; default 1.
        names: Name of each in metrics; default the components' own.
        nll_term: The name of the one that perplexity is computed of; default the first.

    Raises:
        ConfigError: Lists of different lengths, unfit names, weights below 0, different ignore_index.

    Source: Yu et al. 2022, CoCa, equation 4 and section 4.1 (captioning 2.0, contrastive 1.0).
    """

    def __init__(
        self,
        *,
        losses: Sequence[Callable[[], Any]],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        nll_term: str | None = None,
    ) -> None:
        self.weights = [1.0] * len(losses) if weights is None else [float(weight) for weight in weights]
        self.names = [component_name(choice) for choice in losses] if names is None else list(names)
        self.nll_term = nll_term if nll_term is not None else next(iter(self.names), "")
        problems = [] if losses else ["losses () must be at least 1; name the losses to add up"]
        problems += [
            f"{name} ({len(given)}) must be as many as losses ({len(losses)}); give one for each"
            for name, given in (("weights", self.weights), ("names", self.names))
            if len(given) != len(losses)
        ]
        problems += [f"weights ({weight}) must be at least 0" for weight in self.weights if not weight >= 0]
        if len(set(self.names)) < len(self.names) or set(self.names) & set(_TAKEN_NAMES):
            problems.append(
                f"names ({', '.join(self.names)}) must differ from each other and from {', '.join(_TAKEN_NAMES)}"
            )
        problems += [problem for name in self.names if (problem := name_problem("names", name))]
        if losses and self.nll_term not in self.names:
            problems.append(f"nll_term ({self.nll_term!r}) must be one of names ({', '.join(self.names)})")
        if problems:
            raise ConfigError(problems)
        self.losses = [choice() for choice in losses]
        ignored = [loss.ignore_index for loss in self.losses]
        if len(set(ignored)) > 1:
            raise ConfigError(
                f"ignore_index ({', '.join(map(str, ignored))}) must be the same for all losses; set it to -100 in each"
            )
        self.ignore_index: int = ignored[0]

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """The weighted sum of the terms, a float32 scalar."""
        terms = self.terms(outputs, targets).values()
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()

    def terms(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Each loss by its name, summed over targets, without its weight."""
        return {name: loss(outputs, targets) for name, loss in zip(self.names, self.losses, strict=True)}
