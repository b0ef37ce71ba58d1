"""Several ranks: FSDP2 on any number of ranks, errors and damage seen by all, one decision for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from modlib.checkpointing import restore_newest, save
from tests.checkpointing.training import Run, fingerprint
from tests.workers import run_ranks


def train_and_save(folder: Path, step: int, optimizer: str = "AdamW", sharded: bool = True) -> str:
    run = Run(seed=step, optimizer=optimizer, sharded=sharded)
    run.train(step)
    rank = dist.get_rank() if dist.is_initialized() else 0
    save(folder, step=step, **run.parts, extra={"position": step}, rank_state={"rank": rank})
    return fingerprint(run)


def restore(folder: Path, optimizer: str = "AdamW", sharded: bool = True) -> tuple[str, int, dict | None]:
    run = Run(seed=99, optimizer=optimizer, sharded=sharded)
    state = restore_newest(folder, **run.parts)
    assert state is not None
    return fingerprint(run), state.step, state.rank_state


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Muon", "Adafactor"])
def test_a_checkpoint_of_two_ranks_is_the_same_on_two_one_and_two_again(tmp_path: Path, optimizer: str) -> None:
    saved = run_ranks(2, train_and_save, tmp_path / "two", 3, optimizer=optimizer)
    assert saved[0] == saved[1]
    for rank, (restored, step, rank_state) in enumerate(run_ranks(2, restore, tmp_path / "two", optimizer=optimizer)):
        assert (restored, step, rank_state) == (saved[0], 3, {"rank": rank})
    restored, step, rank_state = restore(tmp_path / "two", optimizer=optimizer, sharded=False)
    assert (restored, step, rank_state) == (saved[0], 3, None)

    single = train_and_save(tmp_path / "one", 4, optimizer=optimizer, sharded=False)
    for restored, step, rank_state in run_ranks(2, restore, tmp_path / "one", optimizer=optimizer):
        assert (restored, step, rank_state) == (single, 4, None)
