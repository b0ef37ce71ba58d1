"""An objective of one's own: its sum, count and metrics, and models in it that are not trained."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modlib.config import load
from modlib.distributed.process_group import World
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from modlib.training.building import build_experiment
from modlib.training.objective import CausalObjective
from modlib.training.parts import build_parts
from modlib.training.plan import make_plan
from modlib.training.step import StepResult, update
from tests.workers import run_ranks

DOCUMENT = Path(__file__).parents[2] / "docs" / "objectives.md"
OWN = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]  # the example there is what is tested
GIN = """
import {module}
include 'debug/tiny.gin'
GPT2.dropout = 0.0
train.objective = @Distillation
Distillation.teacher = @teacher/InitializedModel
teacher/InitializedModel.model = @teacher/GPT2
teacher/InitializedModel.initialization = @ComposedInitializer
teacher/InitializedModel.seed = 77
"""


def settings(folder: Path, changes: str = "") -> tuple[Any, Any]:
    """A run that distills, its code in a module of its own."""
    (folder / "own_objective.py").write_text(OWN)
    (folder / "own.gin").write_text(GIN.format(module="own_objective") + changes)
    config = load([folder / "own.gin"])
    return config, build_experiment(config)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def batch(model: Any) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, model.vocab_size, (4, 9), generator=torch.Generator().manual_seed(2))
    targets = tokens[:, 1:].clone()
    targets[0, 2:] = -100
    return tokens[:, :-1].clone(), targets


def distill(folder: str) -> tuple[StepResult, dict[str, float], bool, bool]:
    """One step; what came out, whether the teacher is as it was, whether the model is not."""
    sys.path.insert(0, folder)
    config = load([Path(folder) / "own.gin"])
    experiment = build_experiment(config)
    size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if size > 1 else 0
    parts = build_parts(experiment, World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu")), 0.0)
    whole = batch(parts.model)
    own = [(one, two) for one, two in zip(*(tensor.split(1) for tensor in whole), strict=True)][rank::size]
    before = [_full(parameter).clone() for parameter in parts.frozen["teacher"].parameters()]
    model_before = [_full(parameter).clone() for parameter in parts.model.parameters()]
    result = update(parts, own, 1)
    teacher = parts.frozen["teacher"]
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    same = all(torch.equal(_full(now), then) for now, then in zip(teacher.parameters(), before, strict=True))
    moved = any(not torch.equal(_full(a), b) for a, b in zip(parts.model.parameters(), model_before, strict=True))
    return result.mean_loss(), result.mean_metrics(), same, moved  # type: ignore[return-value]


def _full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()


def test_a_frozen_teacher_is_built_sharded_and_never_trained(folder: Path) -> None:
    _, experiment = settings(folder)
    parts = build_parts(experiment, World(rank=0, local_rank=0, size=1, device=torch.device("cpu")), 0.0)
    inputs, targets = batch(parts.model)
    with torch.no_grad():
        ours, theirs = parts.model(inputs), parts.frozen["teacher"](inputs)
        counted = targets != -100
        divergence = F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="none").sum(-1)[counted].mean()
        entropy = F.cross_entropy(ours[counted], targets[counted])
    loss, metrics, same, moved = distill(str(folder))
    assert loss == pytest.approx(float(0.5 * entropy + 0.5 * divergence), rel=1e-5)
    assert metrics == {"divergence": pytest.approx(float(divergence), rel=1e-5)}
    assert float(divergence) > 1e-4
    assert (same, moved) == (True, True)
    for other, others, same, moved in run_ranks(2, distill, str(folder)):
        assert other == pytest.approx(loss, rel=1e-5)
        assert others == pytest.approx(metrics, rel=1e-5)
        assert (same, moved) == (True, True)


def test_the_plan_counts_frozen_parameters_and_refuses_them_without_weights(folder: Path) -> None:
    config, experiment = settings(folder)
    plan = make_plan(experiment, config, 2)
    assert plan.memory_per_rank_bytes["frozen"] == plan.memory_per_rank_bytes["parameters"]
    config, experiment = settings(folder, "Distillation.teacher = @teacher/GPT2\n")
    with pytest.raises(ConfigError, match=r"^initialization \(None\) must be given for .* parameters of GPT2 "):
        make_plan(experiment, config, 2)


def test_an_objective_without_what_training_asks_of_one_is_refused(folder: Path) -> None:
    config, experiment = settings(folder, "train.objective = @CLMCrossEntropyLoss\n")
    with pytest.raises(ConfigError) as caught:
        make_plan(experiment, config, 1)
    assert "objective (CLMCrossEntropyLoss) must have a method count and a dict frozen, and take (model, batch); " in (
        str(caught.value)
    )


def test_a_balance_loss_needs_a_model_that_asks_for_it(folder: Path) -> None:
    config, experiment = settings(folder, "train.objective = @RouterBalance\n")
    with pytest.raises(ConfigError) as caught:
        make_plan(experiment, config, 1)
    assert (
        "objective (RouterBalance) must have a model with a balance loss, and GPT2 asks for none; set output_router_log"
        in (str(caught.value))
    )


def test_the_default_is_the_causal_objective() -> None:
    inputs, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[2, -100, 1]])
    model: Callable[..., Tensor] = nn.Embedding(5, 5, _weight=torch.randn(5, 5))
    objective = CausalObjective(CLMCrossEntropyLoss())
    total, count, metrics = objective(model, (inputs, targets))
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    assert (total.item(), int(count), metrics, objective.frozen) == (expected.item(), 2, {}, {})


def test_a_default_objective_leaves_the_hash_as_it_was(folder: Path) -> None:
    (folder / "plain.gin").write_text("include 'debug/tiny.gin'\n")
    (folder / "said.gin").write_text("include 'debug/tiny.gin'\ntrain.objective = None\n")
    (folder / "other.gin").write_text("include 'debug/tiny.gin'\ntrain.objective = @CausalObjective\n")
    plain, said, other = (load([folder / f"{name}.gin"]).hash for name in ("plain", "said", "other"))
    assert plain == said != other
