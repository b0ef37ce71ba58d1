"""Contrastive loss against CLIP's written out, on one and two ranks, and weighted sums."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from modlib.nn.contrastive import ContrastiveLoss, WeightedLosses, gather_rows
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks

TARGETS = torch.tensor([[1, 2, 3], [4, -100, -100], [5, 6, -100], [-100, -100, -100], [1, 1, -100], [2, 2, 2]])
PRESENT = [0, 1, 2, 4, 5]
TOKENS = 11


def leaves() -> tuple[Tensor, Tensor, Tensor]:
    """Six image and caption embeddings before normalisation, and the logarithm of the scale."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 6, 8, generator=generator).unbind()
    return image.requires_grad_(), text.requires_grad_(), torch.tensor(1.5, requires_grad=True)


def outputs(image: Tensor, text: Tensor, scale: Tensor) -> dict[str, Tensor]:
    return {
        "image_embedding": F.normalize(image, dim=-1),
        "text_embedding": F.normalize(text, dim=-1),
        "logit_scale": scale.exp(),
    }


def clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Figure 3 of the CLIP paper."""
    logits = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    labels = torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def test_is_clips_loss_times_the_unmasked_targets() -> None:
    image, text, scale = leaves()
    loss = ContrastiveLoss()(outputs(image, text, scale), TARGETS)
    own = torch.autograd.grad(loss, (image, text, scale))
    expected = TOKENS * clip(image[PRESENT], text[PRESENT], scale)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, wanted in zip(own, torch.autograd.grad(expected, (image, text, scale)), strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-5)
    assert not own[0][3].any()
    assert loss.dtype == torch.float32


def test_one_pair_alone_costs_nothing_and_equal_embeddings_the_logarithm_of_their_number() -> None:
    same = {"image_embedding": torch.eye(1, 4).repeat(5, 1), "text_embedding": torch.eye(1, 4).repeat(5, 1)}
    same["logit_scale"] = torch.tensor(14.0)
    assert ContrastiveLoss()(same, torch.ones(5, 1, dtype=torch.int64)).item() == pytest.approx(5 * math.log(5))
    one = {name: value[:1] if value.ndim else value for name, value in same.items()}
    assert ContrastiveLoss()(one, torch.ones(1, 1, dtype=torch.int64)).item() == 0.0


def test_all_masked_gives_zero_and_finite_gradients() -> None:
    image, text, scale = leaves()
    loss = ContrastiveLoss()(outputs(image, text, scale), torch.full_like(TARGETS, -100))
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (image, text, scale)):
        assert not gradient.any()


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    image, text, scale = leaves()
    given = {name: value.bfloat16() for name, value in outputs(image, text, scale).items()}
    loss = ContrastiveLoss()(given, TARGETS)
    exact = ContrastiveLoss()({name: value.float() for name, value in given.items()}, TARGETS)
    assert loss.item() == exact.item()


@pytest.mark.parametrize("shapes", [((6, 1, 8), (6, 1, 8)), ((6, 8), (6, 4)), ((5, 8), (5, 8))])
def test_embeddings_with_a_token_axis_or_of_two_sizes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    given = {"image_embedding": torch.ones(shapes[0]), "text_embedding": torch.ones(shapes[1])}
    with pytest.raises(ValueError, match=r"must both be \(B, D\) with the B of the targets \(6\); return one"):
        ContrastiveLoss()(given | {"logit_scale": torch.tensor(1.0)}, TARGETS)


def on_a_rank() -> tuple[Tensor, tuple[Tensor, ...]]:
    """This rank's loss and gradients, of its part of the six pairs (with unequal numbers of targets)."""
    image, text, scale = leaves()
    size = len(image) // dist.get_world_size()
    own = slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
    loss = ContrastiveLoss()(outputs(image[own], text[own], scale), TARGETS[own])
    return loss.detach(), torch.autograd.grad(loss, (image, text, scale))


@pytest.mark.parametrize("world_size", [2])
def test_ranks_together_equal_one_process_with_all_pairs(world_size: int) -> None:
    image, text, scale = leaves()
    loss = ContrastiveLoss()(outputs(image, text, scale), TARGETS)
    whole = torch.autograd.grad(loss, (image, text, scale))
    results = run_ranks(world_size, on_a_rank)
    assert sum(value.item() for value, _ in results) == pytest.approx(loss.item(), rel=1e-6)
    for number, wanted in enumerate(whole):
        assert torch.allclose(sum(gradients[number] for _, gradients in results), wanted, atol=1e-5)
    without_others = clip(image[:3], text[:3], scale) * 6 + clip(image[4:], text[4:], scale) * 5
    assert abs(without_others.item() - loss.item()) > 0.1  # the negatives of the other rank are in it


def gathered() -> tuple[Tensor, Tensor]:
    rows = torch.full((2, 3), float(dist.get_rank()), requires_grad=True)
    everyone = gather_rows(rows)
    (everyone * (dist.get_rank() + 1) * torch.arange(4.0)[:, None]).sum().backward()
    return everyone.detach(), rows.grad


def test_gathered_rows_keep_order_and_bring_gradients_home() -> None:
    for rank, (everyone, gradient) in enumerate(run_ranks(2, gathered)):
        assert everyone[:, 0].tolist() == [0, 0, 1, 1]
        assert gradient[:, 0].tolist() == [3.0 * (2 * rank), 3.0 * (2 * rank + 1)]  # (1 + 2) x the row's number


def test_a_weighted_sum_and_its_terms() -> None:
    generator = torch.Generator().manual_seed(3)
    given = outputs(*leaves()) | {"logits": torch.randn(6, 3, 9, generator=generator)}
    both = WeightedLosses(
        losses=(CLMCrossEntropyLoss, ContrastiveLoss), weights=(2.0, 0.5), names=("captioning", "contrastive")
    )
    captioning, contrastive = CLMCrossEntropyLoss()(given, TARGETS), ContrastiveLoss()(given, TARGETS)
    assert both.terms(given, TARGETS) == {"captioning": captioning, "contrastive": contrastive}
    assert both(given, TARGETS).item() == pytest.approx((2.0 * captioning + 0.5 * contrastive).item())
    assert both(given, torch.full_like(TARGETS, -100)).item() == 0.0
    assert (both.nll_term, both.ignore_index) == ("captioning", -100)
    plain = WeightedLosses(losses=(ContrastiveLoss, CLMCrossEntropyLoss), nll_term="CLMCrossEntropyLoss")
    assert (plain.names, plain.weights) == (["ContrastiveLoss", "CLMCrossEntropyLoss"], [1.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": ()}, r"losses \(\) must be at least 1; name the losses to add up"),
        ({"weights": (1.0,)}, r"weights \(1\) must be as many as losses \(2\); give one for each"),
        ({"names": ("a", "b", "c")}, r"names \(3\) must be as many as losses \(2\); give one for each"),
        ({"weights": (1.0, -1.0)}, r"weights \(-1.0\) must be at least 0"),
        ({"names": ("a", "a")}, r"names \(a, a\) must differ from each other and from loss, tokens"),
        ({"names": ("loss", "a")}, r"names \(loss, a\) must differ from each other and from loss, tokens"),
        ({"nll_term": "x"}, r"nll_term \('x'\) must be one of names \(CLMCrossEntropyLoss, ContrastiveLoss\)"),
        ({"losses": (CLMCrossEntropyLoss, partial(ContrastiveLoss, ignore_index=-1)), "names": ("a", "b")},
         r"ignore_index \(-100, -1\) must be the same for all losses; set it to -100 in each"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeightedLosses(**{"losses": (CLMCrossEntropyLoss, ContrastiveLoss), **settings})
