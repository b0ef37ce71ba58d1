"""Ids beyond the vocabulary are an error with their place, before a device sees them; for any dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from modlib.data.batches.collate import LMCollator
from modlib.distributed.process_group import World
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.models.weights import initialize
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.optim.schedules import DummyLR
from modlib.runtime.errors import EXIT_DATA, DataError
from modlib.training.evaluation import Evaluator
from modlib.training.parts import Parts, assemble
from modlib.training.step import update

VOCAB_SIZE = 20


def parts() -> Parts:
    model = GPT2(vocab_size=VOCAB_SIZE, seq_len=8, num_layers=1, num_heads=1, dim=8)
    initialize(model, ComposedInitializer(), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    world = World(0, 0, 1, torch.device("cpu"))
    return assemble(model, CLMCrossEntropyLoss(), optimizer, DummyLR(optimizer), None, world, "float32", False)


def batch(place: tuple[int, int] | None = None, token: int = VOCAB_SIZE) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of two sequences, with one wrong id."""
    ids = torch.arange(2 * 9).view(2, 9) % VOCAB_SIZE
    if place is not None:
        ids[place] = token
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize(
    ("place", "token", "said"),
    [
        ((1, 0), VOCAB_SIZE, "token id (20) at [1, 0] (sequence, position) of the inputs of step 3"),
        ((1, 8), 50_000, "token id (50000) at [1, 7] (sequence, position) of the targets of step 3"),
        ((0, 4), -1, "token id (-1) at [0, 4] (sequence, position) of the inputs of step 3"),
        ((0, 8), -5, "token id (-5) at [0, 7] (sequence, position) of the targets of step 3"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_the_place_is_named_and_nothing_is_updated(place: tuple[int, int], token: int, said: str, named: bool) -> None:
    trained = parts()
    before = [parameter.clone() for parameter in trained.model.parameters()]
    inputs, targets = batch(place, token)
    wrong: Any = ({"input_ids": inputs} if named else inputs, targets)
    with pytest.raises(DataError) as caught:
        update(trained, [batch(), wrong], 3)
    assert str(caught.value) == (
        f"{said} must be at least 0 and below the model's vocab_size (20); look at the dataset and the collator"
    )
    assert caught.value.exit_code == EXIT_DATA
    assert all(map(torch.equal, trained.model.parameters(), before))


def test_what_counts_for_nothing_among_the_targets_is_no_id() -> None:
    inputs, targets = batch()
    targets = targets.masked_fill(targets < 5, -100)
    assert torch.isfinite(update(parts(), [(inputs, targets)], 1).loss_sum)


@dataclass
class Rows:
    """A dataset of a user's own, whose check_vocabulary does not look."""

    rows: Tensor
    bytes_per_token: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.rows[list(indices)].numpy()


def test_an_evaluation_looks_too() -> None:
    rows = torch.arange(18).view(2, 9)
    evaluator = Evaluator(name="v", dataset=lambda: Rows(rows), every=1)
    assert evaluator.evaluate(parts(), LMCollator(), 2)["val/v/loss"] > 0
    rows[1, 2] = VOCAB_SIZE
    with pytest.raises(DataError, match=r"^token id \(20\) at \[1, 2\] .* of the inputs of an evaluation must be at"):
        evaluator.evaluate(parts(), LMCollator(), 2)
