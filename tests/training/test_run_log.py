"""What a run publishes: no MFU that cannot be, and why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modlib.distributed.process_group import World
from modlib.runtime import hardware
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.messages import MetricsLogged, Notice, RunStarted
from modlib.training.log import RunLog
from modlib.training.step import StepResult


class Collects:
    """A subscriber that keeps what it gets."""

    receives = (RunStarted, MetricsLogged, Notice)

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def receive(self, message: Any) -> None:
        self.messages.append(message)

    def close(self) -> None: ...


def published(tmp_path: Path) -> list[Any]:
    """The messages of two log steps."""
    collected = Collects()
    experiment: Any = SimpleNamespace(subscribers=[lambda run_path: collected], num_steps=2, precision="float32")
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    job: Any = SimpleNamespace(
        world=world,
        run=RunFolder(tmp_path / "run"),
        attempt=SimpleNamespace(number=1),
        config=SimpleNamespace(text="", resolved={}, chosen={}),
    )
    plan: Any = SimpleNamespace(flops_per_token=1e6, tokens_per_step=1000)
    progress: Any = SimpleNamespace(step=0, tokens=0, seq_len=10, layout=SimpleNamespace(global_batch_size=100))
    result = StepResult(loss_sum=torch.tensor(2.0), tokens=torch.tensor(1.0), grad_norm=torch.tensor(1.0))
    with RunLog(experiment, job, plan, progress) as log:
        for step in (1, 2):
            log.step_done(step)
            log.training(step, result, 1e-3, 0.0)
    return collected.messages


def test_training_faster_than_the_peak_leaves_mfu_out_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: (1.0, 0.0))
    messages = published(tmp_path)
    (notice,) = [message for message in messages if isinstance(message, Notice)]
    assert notice.level == "warning"
    assert notice.text.startswith("MFU is left out from here on: training at ")
    assert notice.text.endswith(
        "cannot be, so that peak or the model's FLOPs per token are wrong; a measured peak is measured again at the "
        "next start"
    )
    lines = [message.values for message in messages if isinstance(message, MetricsLogged)]
    assert len(lines) == 2
    assert all("throughput/tokens_per_s" in line and "throughput/mfu" not in line for line in lines)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_without_a_peak_it_says_why_there_is_no_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: (None, 0.8))
    messages = published(tmp_path)
    (notice,) = [message for message in messages if isinstance(message, Notice)]
    assert notice.text.startswith("MFU is left out: the peak could not be measured, since the machine is busy: ")
    assert messages[0].info["peak"].startswith("the peak could not be measured")
    assert not [message for message in messages if "throughput/mfu" in getattr(message, "values", ())]
