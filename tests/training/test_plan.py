"""What a plan says about parts that say little of themselves, and whose mistake an error is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from modlib.config import load
from modlib.runtime.errors import ConfigError, DataError
from modlib.training.building import build, build_experiment
from modlib.training.plan import flops_per_token, make_plan

TINY = "debug/tiny.gin"


class Tied(nn.Module):
    """A token table that is also the output matrix, and a position table that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.positions = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.tokens.weight
        self.scale = nn.Parameter(torch.ones(3))


def test_a_model_without_a_count_of_its_own_multiplies_what_is_not_only_looked_up() -> None:
    assert flops_per_token(Tied(), 7) == 6 * (10 * 4 + 3)
    assert flops_per_token(nn.Embedding(4, 4), 7) == 0


def test_an_error_of_data_is_as_it_was_raised_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "data.packed").write_bytes(b"no header")
    path = tmp_path / "data.packed"
    config = load([TINY], [f"DATA='{path}'"])
    experiment = build_experiment(config)
    with pytest.raises(DataError) as caught:
        build(config, experiment.dataset)
    assert type(caught.value) is DataError
    text, origin = str(caught.value).splitlines()
    assert str(path) in text
    where = "data/packed.gin:5 -> DATA quickstart.gin:8 -> DATA --gin_param #1"
    assert origin == f"train/PackedDataset.path = '{path}' was set at {where}"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("GPT2.qk_norm=True", "modlib export will refuse this model: transformers has no architecture for this model"),
        ("LayerNorm.elementwise_affine=False", "GPT-2 needs that blocks.0.attention_norm has a weight"),
        ("GPT2.dropout=0.1", None),
    ],
)
def test_what_cannot_be_exported_is_said_before_it_is_trained(setting: str, text: str | None) -> None:
    config = load([TINY], [setting])
    notes = [note for note in make_plan(build_experiment(config), config, 1).notes if "export" in note]
    assert len(notes) == (text is not None)
    if text is not None:
        assert text in notes[0]
        assert notes[0].endswith("; modlib export --plain writes its weights alone")


def test_units_that_only_two_ranks_would_refute_are_refused_with_their_origin_on_one() -> None:
    params = ["train.model=@FSDPModel", "FSDPModel.model=@GPT2", "FSDPModel.units=['Block', 'Embedding']"]
    config = load([TINY], params)
    with pytest.raises(ConfigError) as caught:
        make_plan(build_experiment(config), config, 1)
    assert [problem.splitlines() for problem in caught.value.problems] == [
        [
            f"units (Embedding) must have weights that they alone read, but {name}.weight is read outside the forward "
            "of its Embedding, where it is a shard; leave Embedding out of units",
            "FSDPModel.units = ['Block', 'Embedding'] was set at --gin_param #3",
        ]
        for name in ("position_embedding", "token_embedding")
    ]


def test_the_plan_says_how_the_optimizer_treats_each_role() -> None:
    config = load([TINY, "optim/muon.gin"], [])
    assert make_plan(build_experiment(config), config, 1).roles == [
        "matrix: 24.6k in 8 parameters, Muon, weight decay 0.1",
        "embedding: 132k in 2 parameters, AdamW, weight decay 0.1",
        "vector: 160 in 5 parameters, AdamW, no weight decay",
        "bias: 736 in 13 parameters, AdamW, no weight decay",
    ]
    config = load([TINY, "models/lora.gin"], [])
    plan = make_plan(build_experiment(config), config, 1)
    assert plan.roles == ["matrix: 3.07k in 8 parameters, weight decay 0.1"]
    assert plan.flops_convention == "partly"
