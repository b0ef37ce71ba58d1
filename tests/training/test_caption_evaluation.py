"""Caption accuracy: exact captions counted once, retrieval, padding of the last batch, any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from modlib.data.batches.coca_collate import CoCaCollator
from modlib.data.datasets.captioned_shapes import CaptionedShapes, tokenizer_json
from modlib.data.text.tokenizer import Tokenizer
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.inference.caption import CaptionSample
from modlib.models.coca import CoCa
from modlib.models.initialization import ComposedInitializer
from modlib.nn.contrastive import ContrastiveLoss
from modlib.runtime.errors import ConfigError
from modlib.training.caption_evaluation import CaptionAccuracy
from modlib.training.parts import assemble
from modlib.training.train import _sample
from tests.workers import run_ranks

DATA = partial(CaptionedShapes, num_samples=11, image_size=16, seq_len=12)
COLLATE = CoCaCollator(seq_len=12)


class Knows(nn.Module):
    """Captions and embeds by heart: right for the images it was told, wrong or elsewhere for others.

    Args:
        captions: Indices of images whose captions it writes rightly.
        embeddings: Indices of images whose image embedding is that of their caption; the others take image 0's.
    """

    def __init__(self, captions: set[int], embeddings: set[int]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.captions, self.embeddings = captions, embeddings
        self.images, self.targets = (torch.stack(parts) for parts in zip(*map(self._one, range(11)), strict=True))

    @staticmethod
    def _one(index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = COLLATE([DATA()[index]])
        return inputs["images"][0], targets[0]

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if "images" in inputs:
            same = (inputs["images"][:, None] == self.images).flatten(2).all(dim=2)
            number = same.int().argmax(dim=1)
        else:
            number = inputs["image_context"]
        logits = torch.zeros(*inputs["input_ids"].shape, 19)
        for row, index in enumerate(number.tolist()):
            target = self.targets[index].clamp(min=0)
            if index not in self.captions:
                target = target.roll(1)
            logits[row].scatter_(1, target[:, None], 1.0)
        shown = torch.tensor([index if index in self.embeddings else 0 for index in number.tolist()])
        return {
            "logits": logits,
            "image_context": number,
            "image_embedding": nn.functional.one_hot(shown, 11).float(),
            "text_embedding": nn.functional.one_hot(number, 11).float(),
        }


def parts_of(model: nn.Module) -> Any:
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return assemble(model, ContrastiveLoss(), optimizer, scheduler, None, world, "float32", False)


def evaluate(make: Callable[[], nn.Module], micro_batch_size: int, num_images: int | None = None) -> dict[str, float]:
    parts = parts_of(make())
    parts.model.train()
    evaluator = CaptionAccuracy(name="held", dataset=DATA, every=5, num_images=num_images)
    values = evaluator.evaluate(parts, COLLATE, micro_batch_size)
    assert parts.model.training
    return values


@pytest.mark.parametrize("micro_batch_size", [1, 4, 11, 32])
def test_shares_of_images_whatever_the_batch_size(micro_batch_size: int) -> None:
    values = evaluate(partial(Knows, {0, 3, 4, 10}, {0, 1, 2, 3, 4, 10}), micro_batch_size)
    assert values["val/held/caption_accuracy"] == pytest.approx(4 / 11)
    assert values["val/held/image_to_text_accuracy"] == pytest.approx(6 / 11)
    # captions 1 to 4, 10 and 0 find their image; for the others no image is near and the first of all is taken
    assert values["val/held/text_to_image_accuracy"] == pytest.approx(6 / 11)
    assert 4 / 11 < values["val/held/token_accuracy"] < 1.0
    assert set(evaluate(partial(Knows, set(range(11)), set(range(11))), micro_batch_size).values()) == {1.0}


def test_a_part_of_the_images_is_spread_over_the_data() -> None:
    values = evaluate(partial(Knows, {0, 4}, {0}), 3, num_images=5)  # images 0, 2, 4, 6, 8
    assert values["val/held/caption_accuracy"] == pytest.approx(2 / 5)
    assert values["val/held/image_to_text_accuracy"] == pytest.approx(1 / 5)


def sharded() -> nn.Module:
    with torch.device("meta"):
        model = CoCa(
            image_size=16, patch_size=8, vision_layers=1, vision_dim=16, vision_heads=2, vocab_size=19, seq_len=12,
            text_layers=1, multimodal_layers=1, dim=16, num_heads=2, num_vision_queries=2, dropout=0.5,
        )  # fmt: skip
    if dist.is_initialized():
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
    model.to_empty(device="cpu")
    ComposedInitializer("plain", std=0.5)(model, 1)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [None, 3])
def test_the_number_of_ranks_does_not_change_it(num_images: int | None) -> None:
    knows = partial(Knows, {0, 3, 4, 10}, {0, 1, 2, 3, 4, 10})
    for make in (sharded, knows):
        single = evaluate(make, 2, num_images)
        assert len(set(single.values())) > 1
        for values in run_ranks(2, evaluate, make, 2, num_images):
            assert values == pytest.approx(single, abs=1e-9)


def test_due_on_its_steps_and_the_last() -> None:
    evaluator = CaptionAccuracy(dataset=DATA, every=5)
    assert [step for step in range(1, 13) if evaluator.due(step, 12)] == [5, 10, 12]


def test_wrong_numbers_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        CaptionAccuracy(dataset=DATA, every=0, num_images=0, micro_batch_size=0)
    assert caught.value.problems == [
        "every (0) must be at least 1 step; to never evaluate leave it out",
        "num_images (0) must be at least 1; use None for all images",
        "micro_batch_size (0) must be at least 1; use None for the run's",
    ]


def test_sample_shows_captions_beside_the_truth(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    tokenizer = Tokenizer(tmp_path)
    text = CaptionSample(dataset=DATA, collate=lambda: COLLATE, num_images=3)(Knows({0, 1}, set()), tokenizer)
    truths = [DATA()[index]["caption"] for index in range(3)]
    lines = text.splitlines()
    assert lines[:2] == [f"right: {truths[0]}", f"right: {truths[1]}"]
    assert lines[2].startswith("wrong: ")
    assert lines[2].endswith(f"(it is {truths[2]})")
    with pytest.raises(ConfigError, match=r"num_images \(0\) must be at least 1; to show none leave train.sample out"):
        CaptionSample(dataset=DATA, collate=lambda: COLLATE, num_images=0)


def test_a_run_takes_the_tokenizer_that_its_dataset_brings() -> None:
    sample = partial(CaptionSample, dataset=DATA, collate=lambda: COLLATE, num_images=1)
    parts, job = SimpleNamespace(model=Knows({0}, set())), SimpleNamespace(world=SimpleNamespace(control_group=None))
    text = _sample(SimpleNamespace(sample=sample), parts, DATA(), job)  # type: ignore[arg-type]
    assert text == f"right: {DATA()[0]['caption']}"
