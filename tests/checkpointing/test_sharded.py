"""Several ranks: FSDP2 on any number of ranks, errors and damage seen by all, one decision for all."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from modlib.checkpointing.loading import load, newest, restore_newest
from modlib.checkpointing.saving import CheckpointSaving
from modlib.checkpointing.strategies import SaveKMostRecent
from modlib.checkpointing.writing import save
from modlib.runtime import faults
from modlib.runtime.errors import CheckpointError, ModlibError
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


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Muon"])
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


def both_errors(folder: Path, fault: str) -> tuple[str, int]:
    """Save step 2 with something wrong on rank 1 only; the error this rank sees."""
    run = Run(seed=0, sharded=True)
    run.train(2)
    save(folder, step=1, **run.parts)
    rank_state: dict = {}
    if fault == "not plain" and dist.get_rank() == 1:
        rank_state = {"generator": object()}
    if fault in ("nan", "inf") and dist.get_rank() == 1:
        weight = dict(run.model.named_parameters())["blocks.0.weight"]
        broken = weight if fault == "nan" else run.optimizer.state[weight]["exp_avg_sq"]
        assert isinstance(broken, DTensor)
        broken.to_local().detach().view(-1)[3] = float(fault)

    def fail(point: str, detail: str) -> None:
        if fault == "disk" and dist.get_rank() == 1:
            raise OSError(28, "No space left on device")

    with faults.installed("ckpt.shard.write", fail), pytest.raises(ModlibError) as caught:
        save(folder, step=2, **run.parts, rank_state=rank_state)
    dist.barrier()
    left = sorted(path.name for path in folder.iterdir())
    found = newest(folder)
    assert left == ["step-00000001"], left
    assert found is not None
    assert found.step == 1
    return str(caught.value), caught.value.exit_code


@pytest.mark.parametrize(
    ("fault", "text", "code"),
    [
        ("not plain", "rank_state.generator (builtins.object) must be one of None, bool, int, float, str, bytes", 4),
        ("nan", "blocks.0.weight must be finite to be saved; it holds NaN or Inf", 5),
        ("inf", "optimizer.blocks.0.weight.exp_avg_sq must be finite to be saved; it holds NaN or Inf", 5),
        ("disk", "No space left on device; the disk is full; free some space", 4),
    ],
)
def test_a_failure_on_one_rank_is_an_error_on_every_rank_and_leaves_nothing(
    tmp_path: Path, fault: str, text: str, code: int
) -> None:
    first, second = run_ranks(2, both_errors, tmp_path, fault)
    for told, exit_code in (first, second):
        assert text in told
        assert exit_code == code
    assert first[0].startswith("rank 1: ")


def test_ranks_agree_on_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    older = run_ranks(2, train_and_save, tmp_path, 2)[0]
    run_ranks(2, train_and_save, tmp_path, 3)
    shard = tmp_path / "step-00000003" / "data-00001-00000.bin"  # only one rank hashes it
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    for restored, step, _ in run_ranks(2, restore, tmp_path):
        assert (restored, step) == (older, 2)
    assert restore(tmp_path, sharded=False)[:2] == (older, 2)
    # one rank's own state
    (tmp_path / "step-00000002" / "rank-00001.json").write_text("{}" + " " * 1000)
    with pytest.raises(CheckpointError, match="must have at least one that is undamaged"):
        run_ranks(2, restore, tmp_path)


def misfit(folder: Path) -> str:
    run = Run(seed=0, sharded=True, num_layers=dist.get_rank() + 1)
    with pytest.raises(CheckpointError) as caught:
        load(folder / "step-00000003", **run.parts)
    return str(caught.value)


def test_a_misfit_on_one_rank_is_refused_on_all(tmp_path: Path) -> None:
    run_ranks(2, train_and_save, tmp_path, 3)
    first, second = run_ranks(2, misfit, tmp_path)
    assert "2 only in the checkpoint: blocks.1.weight, blocks.1.bias" in first
    assert "2 only in the checkpoint: blocks.1.weight, blocks.1.bias" in second


def save_and_prune(folder: Path) -> list[str]:
    saving = CheckpointSaving([partial(SaveKMostRecent, 2, every=1)])
    run = Run(seed=0, sharded=True)
    for step in (1, 2, 3, 4):
        run.train(1)
        saving.save(folder, step=step, **run.parts)
    dist.barrier()
    return sorted(os.listdir(folder))


def test_pruning_happens_once(tmp_path: Path) -> None:
    for left in run_ranks(2, save_and_prune, tmp_path):
        assert left == ["step-00000003", "step-00000004"]
