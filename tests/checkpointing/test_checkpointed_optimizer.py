"""An optimizer that goes on from another run's state, with settings of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modlib.checkpointing.checkpointed_optimizer import CheckpointedOptimizer
from modlib.checkpointing.model_loading import FSDPCheckpointLoading
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError, ConfigError
from tests.checkpointing.training import Run, whole
from tests.workers import run_ranks


def train_and_save(folder: Path) -> None:
    run = Run(seed=0, sharded=torch.distributed.is_initialized())
    run.train(3)
    save(folder, step=3, **run.parts)


def warmed(folder: Path, sharded: bool, optimizer: Any = torch.optim.AdamW) -> Run:
    """A new run from the saved weights and moments, with another learning rate."""
    run = Run(seed=7, sharded=sharded)
    groups = [{"params": group["params"]} for group in run.optimizer.param_groups]
    run.optimizer = CheckpointedOptimizer(groups, partial(optimizer, lr=5e-3), str(folder))
    assert run.optimizer.state == {}
    FSDPCheckpointLoading().load_model(folder, run.model)
    run.optimizer.restore_state(run.model)
    run.scheduler = torch.optim.lr_scheduler.ConstantLR(run.optimizer, factor=1.0)
    return run


def moments(run: Run) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    return {
        f"{names[parameter]}.{entry}": whole(value).clone()
        for parameter, state in run.optimizer.state.items()
        for entry, value in state.items()
    }


def trained_on(folder: Path, sharded: bool) -> tuple[dict[str, Tensor], float]:
    run = warmed(folder, sharded)
    torch.manual_seed(3)
    run.train(2)
    return moments(run), run.optimizer.param_groups[0]["lr"]


def test_moments_are_taken_over_and_settings_are_not(tmp_path: Path) -> None:
    train_and_save(tmp_path)
    run = warmed(tmp_path, sharded=False)
    original = Run(seed=0)
    original.train(3)
    expected = moments(original)
    found = moments(run)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert run.optimizer.param_groups[0]["lr"] == 5e-3
    assert float(found["blocks.0.weight.step"]) == 3


@pytest.mark.slow
def test_on_other_ranks_than_it_was_saved_on(tmp_path: Path) -> None:
    run_ranks(2, train_and_save, tmp_path)
    single, lr = trained_on(tmp_path, False)
    assert lr == 5e-3
    for sharded, _ in run_ranks(2, trained_on, tmp_path, True):
        assert sharded.keys() == single.keys()


def test_another_class_or_other_parameters_are_refused(tmp_path: Path) -> None:
    train_and_save(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"optimizer \(SGD\) must be the one of checkpoint step-00000003 \(AdamW\)"
    ):
        warmed(tmp_path, False, torch.optim.SGD)
    deeper = Run(seed=1, num_layers=3)
    optimizer = CheckpointedOptimizer(list(deeper.model.parameters()), torch.optim.AdamW, str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        optimizer.restore_state(deeper.model)  # type: ignore[attr-defined]
    assert "3 parameters without state in the checkpoint: blocks.2.bias, blocks.2.weight, frozen.weight" in str(
        caught.value
    )
    assert optimizer.state == {}
    wider = Run(seed=1, dim=14)
    optimizer = CheckpointedOptimizer(
        [p for p in wider.model.parameters() if p.requires_grad], torch.optim.AdamW, str(tmp_path)
    )
    with pytest.raises(CheckpointError, match=r"of another shape: .*norm.weight \(checkpoint \(12,\), model \(14,\)\)"):
        optimizer.restore_state(wider.model)  # type: ignore[attr-defined]


def test_settings_that_keep_other_state_are_refused(tmp_path: Path) -> None:
    train_and_save(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        warmed(tmp_path, False, partial(torch.optim.AdamW, amsgrad=True))
    assert "state that AdamW keeps with these settings (exp_avg, exp_avg_sq, max_exp_avg_sq, step) must be what" in str(
        caught.value
    )


def test_an_optimizer_without_state_has_nothing_to_take_over(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    save(tmp_path, step=1, model=model, optimizer=optimizer)
    fresh = CheckpointedOptimizer(list(model.parameters()), partial(torch.optim.SGD, lr=0.2), str(tmp_path))
    fresh.restore_state(model)  # type: ignore[attr-defined]
    assert fresh.state_dict()["state"] == {}


def test_a_checkpoint_without_an_optimizer_is_refused(tmp_path: Path) -> None:
    run = Run(seed=0)
    save(tmp_path, step=1, model=run.model)
    optimizer = CheckpointedOptimizer(list(run.model.parameters()), torch.optim.AdamW, str(tmp_path))
    with pytest.raises(CheckpointError, match="must hold an optimizer's state; it holds none"):
        optimizer.restore_state(run.model)  # type: ignore[attr-defined]


def test_a_missing_folder_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_path \('.*none'\) must be a folder; there is none at"):
        CheckpointedOptimizer([], torch.optim.AdamW, str(tmp_path / "none"))
