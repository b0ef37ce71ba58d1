"""A checkpoint's tensors one at a time are what was saved, and damage is told at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from modlib.checkpointing.loading import open_checkpoint
from modlib.checkpointing.manifest import DamagedCheckpointError
from modlib.checkpointing.single_tensors import CheckpointTensors
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError
from tests.checkpointing.training import Run, whole
from tests.workers import run_ranks


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.tied = nn.Linear(7, 5, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("none", torch.empty(0, 2))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Small, Path]:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters())
    model.first(torch.ones(7)).sum().backward()
    optimizer.step()
    return model, save(tmp_path, step=1, model=model, optimizer=optimizer).path


def test_whole_tensors_and_rows_are_what_was_saved(saved: tuple[Small, Path]) -> None:
    model, path = saved
    with torch.device("meta"):
        like = Small()
        like.tied.weight = like.first.weight
    with CheckpointTensors(open_checkpoint(path), like) as tensors:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensors.read(name), tensor), name
        assert torch.equal(tensors.read("first.weight", slice(2, 4)), model.first.weight[2:4])
        assert tensors.read("first.weight", slice(4, 4)).shape == (0, 7)
        assert "tied.weight" in tensors
        assert "optimizer.first.weight.exp_avg" not in tensors
        tensors.finish()


def test_damage_is_told_at_the_end(saved: tuple[Small, Path]) -> None:
    model, path = saved
    data = path / "data-00000-00000.bin"
    content = bytearray(data.read_bytes())
    content[3] ^= 1
    data.chmod(0o644)
    data.write_bytes(content)
    with CheckpointTensors(open_checkpoint(path), model) as tensors:
        tensors.read("first.weight")
        with pytest.raises(DamagedCheckpointError, match=r"has SHA-256 .* which must equal the manifest's"):
            tensors.finish()


def test_another_model_is_refused(saved: tuple[Small, Path]) -> None:
    with pytest.raises(CheckpointError, match="must fit this run exactly"):
        CheckpointTensors(open_checkpoint(saved[1]), nn.Linear(2, 2))


def saved_by_ranks(folder: Path) -> dict[str, torch.Tensor]:
    run = Run(seed=1, sharded=True)
    save(folder, step=1, model=run.model)
    return {name: whole(tensor).clone() for name, tensor in run.model.state_dict().items()}


def test_the_shards_of_several_ranks_are_put_together(tmp_path: Path) -> None:
    expected = run_ranks(2, saved_by_ranks, tmp_path)[0]
    with CheckpointTensors(open_checkpoint(tmp_path / "step-00000001"), Run(seed=2).model) as tensors:
        for name, tensor in expected.items():
            assert torch.equal(tensors.read(name), tensor), name
        rows = slice(15, 25)  # of 37, so that both ranks have some
        assert torch.equal(tensors.read("embedding.weight", rows), expected["embedding.weight"][rows])
        tensors.finish()
