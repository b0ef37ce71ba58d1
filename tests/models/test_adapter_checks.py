"""Adapters that the model goes past are refused: on meta where that is seen, else after the first backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modlib.config import load
from modlib.distributed.process_group import World
from modlib.models.adapter_checks import require_called_adapters
from modlib.models.lora import LoRAModel
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from modlib.training.building import build_experiment
from modlib.training.meta_answers import MetaAnswers
from modlib.training.parts import Parts, assemble
from modlib.training.plan import make_plan
from modlib.training.step import update
from tests.workers import run_ranks

VOCAB, DIM = 11, 8
READ_PAST = "read cannot be adapted: its weight is read without calling it, past the adapter; leave it out of targets"


class Reads(nn.Module):
    """Calls one layer, reads the weight of a second, and asks a third for no more than its shape."""

    vocab_size, seq_len = VOCAB, 6

    def __init__(self, stops: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, DIM)
        self.called = nn.Linear(DIM, DIM)
        self.read = nn.Linear(DIM, DIM)
        self.last = nn.Linear(DIM, VOCAB)
        self.stops = stops

    def forward(self, ids: Tensor) -> Tensor:
        x = self.called(self.tokens(ids)).to(self.last.weight.dtype).view(-1, ids.shape[1], self.last.weight.shape[1])
        x = x @ self.read.weight.T
        if self.stops and not bool((x.sum() > 0).item()):
            raise ValueError("a forward that needs values")
        return self.last(x)


def adapted(targets: list[str], build: Callable[[], nn.Module] = Reads) -> nn.Module:
    model = LoRAModel(build, r=2, alpha=2.0, targets=targets)
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def forward_of(model: nn.Module) -> bool:
    with MetaAnswers() as answers:
        model(torch.zeros(1, 6, dtype=torch.int64, device="meta"))
    return answers.asked == 0


def refused(model: nn.Module) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        require_called_adapters(model, partial(forward_of, model))
    return caught.value.problems


def on_meta(targets: list[str], build: Callable[[], nn.Module] = Reads) -> nn.Module:
    with torch.device("meta"):
        return LoRAModel(build, r=2, alpha=2.0, targets=targets)


def parts_of(model: nn.Module) -> Parts:
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return assemble(model, CLMCrossEntropyLoss(), optimizer, schedule, None, world, "float32", False)


def batch(masked: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.arange(12).reshape(2, 6) % VOCAB
    return ids, torch.full_like(ids, -100) if masked else (ids + 1) % VOCAB


def test_a_weight_that_is_read_and_a_layer_that_is_not_called() -> None:
    assert refused(on_meta(["called", "read", "last", "tokens"])) == [READ_PAST]
    sequential = on_meta(["0", "1"], lambda: nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    with pytest.raises(ConfigError, match="1 cannot be adapted: its weight is read without calling it"):
        require_called_adapters(sequential, lambda: sequential[0](torch.zeros(1, 2, device="meta")) is not None)
    require_called_adapters(sequential, lambda: False)  # with other values, the second might be called


def test_a_forward_that_needs_values_tells_what_it_read_until_then() -> None:
    model = on_meta(["read", "last"], lambda: Reads(stops=True))
    assert refused(model) == [READ_PAST]
    fine = on_meta(["called", "last"], lambda: Reads(stops=True))
    require_called_adapters(fine, partial(forward_of, fine))


def test_what_a_forward_itself_refuses_is_told() -> None:
    def forward() -> bool:
        raise ConfigError("lm_head is adapted")

    with pytest.raises(ConfigError, match="lm_head is adapted"):
        require_called_adapters(on_meta(["called"]), forward)


def test_questions_for_values_are_answered_on_meta() -> None:
    values = torch.ones(3, 2, device="meta")
    with MetaAnswers() as answers:
        assert not (values > 0).all()
        assert (values.sum().item(), len(values.nonzero()), values.nonzero().shape[1]) == (0, 0, 2)
        assert torch.ones(2).sum().item() == 2.0
    assert answers.asked == 4


@pytest.mark.parametrize(("targets", "refuses"), [(["called", "read"], True), (["called", "last", "tokens"], False)])
def test_the_first_backward_pass_proves_it(targets: list[str], refuses: bool) -> None:
    parts = parts_of(adapted(targets))
    before = [parameter.clone() for parameter in parts.model.parameters()]
    if refuses:
        with pytest.raises(ConfigError) as caught:
            update(parts, [batch()], 1)
        assert caught.value.problems == [READ_PAST]
        assert all(torch.equal(old, new) for old, new in zip(before, parts.model.parameters(), strict=True))
    else:
        update(parts, [batch()], 1)
        assert parts.unproven == {}
        update(parts, [batch()], 2)


def test_a_batch_without_targets_proves_nothing() -> None:
    parts = parts_of(adapted(["called"]))
    update(parts, [batch(masked=True)], 1)
    assert list(parts.unproven) == ["called"]
    update(parts, [batch()], 2)
    assert parts.unproven == {}


def test_adapters_that_the_loss_does_not_depend_on() -> None:
    model = adapted(["called", "tokens"])
    nn.init.zeros_(model.read.weight)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        update(parts_of(model), [batch()], 1)
    assert str(caught.value) == (
        "adapters must get a gradient, but it is zero for all of tokens, called (2 layers) after the first backward "
        "pass; choose targets whose output the loss depends on"
    )


def test_one_adapter_that_is_hidden_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Hidden(Reads):
        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids)
            return self.last(x + 0.0 * self.called(x))

    with caplog.at_level(logging.WARNING, "modlib"):
        update(parts_of(adapted(["called", "last"], Hidden)), [batch()], 1)
    assert caplog.messages == [
        "the first gradient is zero for 1 of 2 adapters, such as that of called: what comes after them may hide them"
    ]


def sharded_refusal(targets: list[str]) -> list[str]:
    torch.manual_seed(0)
    model = adapted(targets)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    parts = parts_of(model)
    try:
        update(parts, [batch()], 1)
    except ConfigError as error:
        return error.problems
    return list(parts.unproven)


def test_ranks_agree() -> None:
    assert run_ranks(2, sharded_refusal, ["called", "read"]) == [[READ_PAST]] * 2
    assert run_ranks(2, sharded_refusal, ["called", "last"]) == [[], []]


MAMBA = (
    "LoRAModel.model=@HuggingFacePretrainedModel",
    "HuggingFacePretrainedModel.config={'model_type': 'mamba', 'vocab_size': 4096, 'hidden_size': 16, "
    "'num_hidden_layers': 1, 'state_size': 4}",
    "HuggingFacePretrainedModel.attn_implementation='eager'",
    "HuggingFacePretrainedModel.seq_len=%SEQ_LEN",
)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["['dt_proj']", "['in_proj', 'x_proj', 'out_proj']"])
def test_the_plan_of_a_mamba(targets: str) -> None:
    pytest.importorskip("transformers")
    config = load(["debug/tiny.gin", "models/lora.gin"], [*MAMBA, f"LoRAModel.targets={targets}"])
    if "dt_proj" not in targets:
        assert make_plan(build_experiment(config), config, 1).parameters["trainable"] > 0
        return
    with pytest.raises(ConfigError) as caught:
        make_plan(build_experiment(config), config, 1)
    text, origin = str(caught.value).splitlines()
    assert text == "network.backbone.layers.0.mixer.dt_proj " + READ_PAST.removeprefix("read ")
    assert "LoRAModel.targets" in origin


def test_experts_in_one_parameter_cannot_be_adapted(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    from modlib.models.huggingface import HuggingFacePretrainedModel

    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}

    def mixtral() -> nn.Module:
        return HuggingFacePretrainedModel(config={"model_type": "mixtral", **sizes, **heads, "num_local_experts": 4})

    for target, parameter in (
        ("gate_proj", "gate_up_proj"),
        ("experts.down_proj", "down_proj"),
        ("w1|up_proj", "gate_up_proj"),
    ):
        with pytest.raises(ConfigError) as caught:
            on_meta([target], mixtral)
        assert str(caught.value).startswith(
            f"targets ({target!r}) must match a layer of HuggingFacePretrainedModel; it means experts, and "
            f"network.model.layers.0.mlp.experts.{parameter} holds all experts of its layer in one parameter, which "
            "cannot be adapted; "
        )
    with caplog.at_level(logging.WARNING, "modlib"):
        on_meta([".*down_proj|q_proj"], mixtral)
    assert caplog.messages == [
        "targets ('.*down_proj|q_proj'): experts are left out; network.model.layers.0.mlp.experts.down_proj holds all "
        "experts of its layer in one parameter, which cannot be adapted"
    ]
