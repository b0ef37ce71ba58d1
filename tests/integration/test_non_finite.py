"""A loss that turns NaN, and a state that does, end a whole run with exit code 5."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching_command import launch, metrics

CODE = """
import torch.distributed as dist
from modlib.components import component
from modlib.nn.losses import CLMCrossEntropyLoss

@component("loss", "turns_nan")
class TurnsNaN(CLMCrossEntropyLoss):
    def __init__(self, at: int = 3):
        super().__init__()
        self.at, self.calls = at, 0

    def __call__(self, outputs, targets):
        self.calls += outputs.requires_grad
        last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
        return super().__call__(outputs, targets) + (float("nan") if last and self.calls == self.at else 0.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_nan_loss_ends_the_run_with_5_on_every_rank(tmp_path: Path, processes: int) -> None:
    (tmp_path / "own_code.py").write_text(CODE)
    (tmp_path / "own.gin").write_text("import own_code\ninclude 'debug/tiny.gin'\ntrain.loss = @TurnsNaN\n")
    settings = ["NUM_STEPS=6", f"Local.num_processes={processes}", "train.compile=False", "train.log_every=1"]
    done = launch(str(tmp_path / "own.gin"), settings, "--runs_dir", str(tmp_path / "runs"), "--name", "run")
    assert done.returncode == 5, done.stderr
    assert "loss (nan) and grad_norm (" in done.stderr
    assert "must be finite at step 3; the parameters were not updated with it" in done.stderr
    run = tmp_path / "runs" / "run"
    assert [line["step"] for line in metrics(run)] == [1, 2]
    errors = list((run / "attempts" / "0001" / "logs").glob("rank-*.error.json"))
    if processes == 2:
        assert len(errors) == 2
        assert all('"exit_code": 5' in path.read_text() for path in errors)
