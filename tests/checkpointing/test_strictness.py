"""A checkpoint of anything but exactly this model, optimizer and scheduler is refused, with what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modlib.checkpointing.loading import load, newest, restore_newest
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError
from tests.checkpointing.training import Run, Small, fingerprint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Run(seed=1)
    run.train(2)
    save(tmp_path, step=2, **run.parts)
    return tmp_path


def refused(folder: Path, run: Run, *texts: str, **parts: object) -> None:
    before = fingerprint(run)
    with pytest.raises(CheckpointError) as caught:
        restore_newest(folder, **(run.parts | parts))
    assert fingerprint(run) == before, "the run is untouched"
    assert str(caught.value).startswith(
        "checkpoint step-00000002 must fit this run exactly; load it with the configuration it was saved with, or "
        "start a new run\n"
    )
    for text in texts:
        assert text in str(caught.value)


def test_a_larger_model(saved: Path) -> None:
    refused(saved, Run(seed=3, num_layers=3), "2 missing from the checkpoint: blocks.2.weight, blocks.2.bias")


def test_a_smaller_model(saved: Path) -> None:
    refused(saved, Run(seed=3, num_layers=1), "2 only in the checkpoint: blocks.1.weight, blocks.1.bias")


def test_many_differences_are_counted(saved: Path) -> None:
    refused(saved, Run(seed=3, num_layers=9), "14 missing from the checkpoint: blocks.2.weight", ", and 4 more")


def test_another_shape(saved: Path) -> None:
    refused(
        saved,
        Run(seed=3, vocab_size=38),
        "1 of another shape: embedding.weight (checkpoint (37, 12), model (38, 12))",
    )


def test_another_dtype(saved: Path) -> None:
    run = Run(seed=3)
    run.model.blocks.to(torch.bfloat16)
    refused(saved, run, "4 of another dtype: blocks.0.weight (checkpoint float32, model bfloat16)")


def test_another_tying(saved: Path) -> None:
    refused(saved, Run(seed=3, tied=False), "1 tied in one of the two only: head.weight")


def test_another_optimizer(saved: Path) -> None:
    refused(saved, Run(seed=3, optimizer="SGD"), "optimizer (SGD) must be the checkpoint's (AdamW)")


def test_other_groups(saved: Path) -> None:
    run = Run(seed=3)
    optimizer = torch.optim.AdamW(run.model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    refused(
        saved,
        run,
        "number of optimizer groups (1) must be the checkpoint's (2)",
        optimizer=optimizer,
        scheduler=scheduler,
    )


def test_a_parameter_in_another_group(saved: Path) -> None:
    run = Run(seed=3)
    groups = run.optimizer.param_groups
    groups[1]["params"].append(groups[0]["params"].pop(0))
    refused(
        saved,
        run,
        "1 parameters of optimizer group 1 in another group of the checkpoint: embedding.weight",
        "1 parameters of the checkpoint's optimizer group 0 in another group: embedding.weight",
    )


def test_another_switch_of_the_optimizer(saved: Path) -> None:
    run = Run(seed=3)
    run.optimizer.param_groups[0]["amsgrad"] = True
    refused(saved, run, "optimizer group 0: amsgrad (True) must be the checkpoint's (False)")


def test_a_scheduler_that_was_not_built(saved: Path) -> None:
    run = Run(seed=3)
    optimizer = torch.optim.AdamW([{"params": group["params"]} for group in run.optimizer.param_groups])
    text = "1 settings of optimizer group 0 only in the checkpoint (a scheduler is built before loading): initial_lr"
    refused(saved, run, text, optimizer=optimizer, scheduler=None)


def test_another_scheduler(saved: Path) -> None:
    run = Run(seed=3)
    scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 3)
    refused(saved, run, "scheduler (StepLR) must be the checkpoint's (LambdaLR)", scheduler=scheduler)


def test_what_was_not_saved_cannot_be_asked_for(tmp_path: Path) -> None:
    run = Run(seed=1)
    save(tmp_path, step=2, model=run.model)
    refused(
        tmp_path,
        Run(seed=3),
        "optimizer state is not in the checkpoint; pass optimizer=None to load the model alone",
        "scheduler state is not in the checkpoint; pass scheduler=None to leave it out",
    )


def test_the_model_alone_can_be_loaded(saved: Path) -> None:
    run = Run(seed=3)
    optimizer_before = run.optimizer.state_dict()
    checkpoint = newest(saved)
    assert checkpoint is not None
    load(checkpoint, model=run.model)
    trained = Run(seed=1)
    trained.train(2)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name])
    assert run.optimizer.state_dict() == optimizer_before


def test_implementation_switches_of_the_optimizer_may_change(saved: Path) -> None:
    run = Run(seed=3)
    for group in run.optimizer.param_groups:
        group["foreach"] = False
    restore_newest(saved, **run.parts)
    assert [group["foreach"] for group in run.optimizer.param_groups] == [False, False]
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 3)


@pytest.mark.slow
def test_wrappers_do_not_change_names(saved: Path) -> None:
    run = Run(seed=3)
    run.model.blocks[0] = torch.compile(run.model.blocks[0])  # type: ignore[assignment]  # adds _orig_mod to the names
    restore_newest(saved, **run.parts)
    trained = Run(seed=1)
    trained.train(2)
    for tensor, expected in zip(run.model.state_dict().values(), trained.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected)


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(Small().parameters(), lr=0.1)
    text = r"optimizer group 0 holds 8 parameters \(first shape \(37, 12\)\) that are not in the model; build"
    with pytest.raises(CheckpointError, match=text):
        save(tmp_path, step=1, model=Small(), optimizer=optimizer)


def test_state_that_is_no_tensor_in_a_model_is_refused(tmp_path: Path) -> None:
    class Odd(torch.nn.Linear):
        def get_extra_state(self) -> str:
            return "extra"

    with pytest.raises(CheckpointError, match=r"model._extra_state \(str\) must be a tensor; make it a buffer"):
        save(tmp_path, step=1, model=Odd(2, 2))
