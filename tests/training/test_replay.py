"""A batch by run and step is the one that the ranks trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modlib.config import Config, load
from modlib.data.batches.fingerprint import batch_fingerprint
from modlib.data.batches.layout import BatchLayout
from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.run_folder import RunFolder
from modlib.training.building import build_experiment
from modlib.training.data_loading import build_loader
from modlib.training.experiment import Experiment
from modlib.training.replay import replay


def settings(*params: str) -> tuple[Config, Experiment]:
    config = load(["debug/tiny.gin"], list(params))
    config.activate()
    return config, build_experiment(config)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "one")
    run.create()
    return run


@pytest.mark.parametrize(("world_size", "accum"), [(1, 1), (2, 1), (2, 3)])
def test_it_is_what_every_ranks_loader_yields(run: RunFolder, world_size: int, accum: int) -> None:
    config, experiment = settings(f"GRAD_ACCUM_STEPS={accum}", "MICRO_BATCH_SIZE=2")
    run.update(world_size=world_size)
    for step in (1, 2, 40):
        batch = replay(run, config, experiment, step)
        assert batch.layout == BatchLayout(2, accum, world_size)
        assert len(batch.samples) == 2 * accum * world_size
        for rank in range(world_size):
            with build_loader(experiment, batch.dataset, experiment.collate(), batch.layout, rank) as loader:
                trained: list[Any] = next(loader.iterate(step - 1))
            for number, (inputs, targets) in enumerate(trained):
                chosen = torch.from_numpy((batch.ranks == rank) & (batch.micro_batches == number))
                assert torch.equal(batch.inputs[chosen], inputs)  # type: ignore[index]
                assert torch.equal(batch.targets[chosen], targets)
    if world_size == accum == 1:
        assert batch.fingerprint == batch_fingerprint(trained)


def test_a_step_that_is_not_there_is_refused(run: RunFolder) -> None:
    config, experiment = settings()
    for step in (0, 41):
        with pytest.raises(ConfigError, match=rf"step \({step}\) must be 1 to 40, the optimizer steps of .*one"):
            replay(run, config, experiment, step)


def test_a_checkpoint_keeps_the_global_batch_and_knows_the_data(run: RunFolder) -> None:
    from modlib.checkpointing.writing import save

    config, experiment = settings("MICRO_BATCH_SIZE=2")
    dataset = experiment.dataset()
    extra = {"step": 1, "global_batch_size": 8, "data_fingerprint": dataset.fingerprint}
    save(run.checkpoints_path, step=1, model=torch.nn.Linear(1, 1), extra=extra)
    run.update(world_size=2)
    batch = replay(run, config, experiment, 5)
    assert batch.layout == BatchLayout(2, 2, 2)
    assert batch.samples.tolist() == replay(run, config, experiment, 5, world_size=1).samples.tolist()
    save(run.checkpoints_path, step=2, model=torch.nn.Linear(1, 1), extra=extra | {"data_fingerprint": "other"})
    with pytest.raises(DataError, match=r"data fingerprint \(.*\) must equal the checkpoint's \(other\)"):
        replay(run, config, experiment, 5)
