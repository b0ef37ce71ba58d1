"""Evaluation: token-weighted, every window once, the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh

from modlib.data.batches.collate import LMCollator
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.nn.contrastive import WeightedLosses
from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from modlib.training.caption_evaluation import CaptionAccuracy
from modlib.training.evaluation import Evaluator, build_evaluators
from modlib.training.parts import assemble
from tests.training.test_plain_loop import SEQ_LEN, VOCAB
from tests.workers import run_ranks

WINDOWS = np.random.default_rng(3).integers(0, VOCAB, (11, SEQ_LEN + 1))


class Windows:
    """Eleven windows in memory that count which of them were read."""

    bytes_per_token = 2.5

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(WINDOWS)

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        self.read += np.asarray(indices).tolist()
        return WINDOWS[list(indices)]


def evaluate(
    num_sequences: int | None, micro_batch_size: int, loss: Any = None, accuracy: bool = False
) -> tuple[dict[str, float], list[int]]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    with torch.device("meta"):
        model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=1, num_heads=2, dim=16, dropout=0.5)
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), "float32")
    model.to_empty(device="cpu")
    ComposedInitializer()(model, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    parts = assemble(model, loss or CLMCrossEntropyLoss(), optimizer, scheduler, None, world, "float32", False)
    parts.model.train()
    evaluator = Evaluator(name="held_out", dataset=Windows, every=5, num_sequences=num_sequences, accuracy=accuracy)
    values = evaluator.evaluate(parts, LMCollator(), micro_batch_size)
    assert parts.model.training
    return values, evaluator.dataset.read


def expected_loss(rows: Sequence[int]) -> float:
    model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=1, num_heads=2, dim=16)
    ComposedInitializer()(model, 1)
    tokens = torch.tensor(WINDOWS[list(rows)])
    with torch.no_grad():
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()


@pytest.mark.parametrize("micro_batch_size", [1, 4, 32])
def test_every_window_counts_once_whatever_the_batch_size(micro_batch_size: int) -> None:
    values, _ = evaluate(None, micro_batch_size)
    loss = values["val/held_out/loss"]
    assert loss == pytest.approx(expected_loss(range(11)), abs=1e-5)
    assert values["val/held_out/perplexity"] == pytest.approx(math.exp(loss))
    assert values["val/held_out/bits_per_byte"] == pytest.approx(loss / math.log(2) / 2.5)


@pytest.mark.parametrize("num_sequences", [None, 5])
def test_the_number_of_ranks_does_not_change_it(num_sequences: int | None) -> None:
    single, _ = evaluate(num_sequences, 4)
    for values, _ in run_ranks(2, evaluate, num_sequences, 4):
        assert values["val/held_out/loss"] == pytest.approx(single["val/held_out/loss"], abs=1e-5)


@pytest.mark.parametrize("loss", [CLMCrossEntropyLoss(), ChunkedCLMCrossEntropyLoss(num_chunks=3)])
def test_accuracy_is_the_share_of_targets_that_are_most_likely(loss: CLMCrossEntropyLoss) -> None:
    model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=1, num_heads=2, dim=16)
    ComposedInitializer()(model, 1)
    tokens = torch.tensor(WINDOWS)
    with torch.no_grad():
        right = (model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]).double().mean().item()
    assert right > 0
    values, _ = evaluate(None, 4, loss, accuracy=True)
    assert values["val/held_out/accuracy"] == pytest.approx(right, abs=1e-9)
    assert values["val/held_out/loss"] == pytest.approx(expected_loss(range(11)), abs=1e-5)
    for shared, _ in run_ranks(2, evaluate, None, 4, loss, accuracy=True):
        assert shared["val/held_out/accuracy"] == pytest.approx(right, abs=1e-9)
    assert "val/held_out/accuracy" not in evaluate(None, 4, loss)[0]


def test_a_part_of_the_windows_is_spread_over_the_data() -> None:
    values, read = evaluate(5, 5)
    assert read == [0, 2, 4, 6, 8]
    assert values["val/held_out/loss"] == pytest.approx(expected_loss(read), abs=1e-5)


def test_due_on_its_steps_and_the_last() -> None:
    evaluator = Evaluator(dataset=Windows, every=5)
    assert [step for step in range(1, 13) if evaluator.due(step, 12)] == [5, 10, 12]


def test_wrong_numbers_and_equal_names_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Evaluator(dataset=Windows, every=0, num_sequences=0, micro_batch_size=0)
    assert caught.value.problems == [
        "every (0) must be at least 1 step; to never evaluate leave it out",
        "num_sequences (0) must be at least 1; use None for all windows",
        "micro_batch_size (0) must be at least 1; use None for the run's",
    ]
    with pytest.raises(ConfigError, match=r"name \('validation'\) must differ between evaluators"):
        build_evaluators([Evaluator(dataset=Windows, every=1), lambda: Evaluator(dataset=Windows, every=1)])


@pytest.mark.parametrize("name", ["", "../out", "a/b", "a\\b", ".hidden", "a\nb", "a\x1b[2J", "a\u2028b"])
def test_a_name_that_metrics_cannot_have_is_refused(name: str) -> None:
    text = (
        f"name ({name!r}) must be printable, without '/' and '\\', and not begin with '.', since it is part of metric "
        "names; use letters, digits, '_' and '-'"
    )
    for make in (Evaluator, CaptionAccuracy):
        with pytest.raises(ConfigError) as caught:
            make(name=name, dataset=Windows, every=1)
        assert str(caught.value) == text
    with pytest.raises(ConfigError, match=r"^names \("):
        WeightedLosses(losses=[CLMCrossEntropyLoss], names=[name])


@pytest.mark.parametrize("name", ["validation", "code-2.5", "Straßen und Wege"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert Evaluator(name=name, dataset=Windows, every=1).name == name
