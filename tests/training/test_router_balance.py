"""The balance loss of routers: transformers' own value and gradient, however the global batch is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from modlib.distributed.clipping import GradientClipper
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.weights import initialize
from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from modlib.training.parts import Parts, assemble
from modlib.training.router_balance import RouterBalance
from modlib.training.step import StepResult, update
from tests.workers import run_ranks

transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 61, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN3_MOE = {"model_type": "qwen3_moe", **SIZES, "num_experts": 4, "moe_intermediate_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", **SIZES, "num_local_experts": 4},
    "qwen3_moe": QWEN3_MOE,
    "olmoe": {"model_type": "olmoe", **SIZES, "num_experts": 4},
    "gpt_oss": {"model_type": "gpt_oss", **SIZES, "num_local_experts": 4, "head_dim": 8},
    "jamba": {
        "model_type": "jamba",
        **SIZES,
        "num_hidden_layers": 4,
        "num_experts": 4,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_dt_rank": 4,
    },
}


def build(name: str = "mixtral", coefficient: float = 100.0, size: int = 1, **overrides: Any) -> Any:
    """As training builds it, with routers that prefer some experts."""
    attention = "eager" if name == "gpt_oss" else "sdpa"
    given = {**CONFIGS[name], "output_router_logits": True, "router_aux_loss_coef": coefficient, **overrides}
    with torch.device("meta"):
        model = HuggingFacePretrainedModel(config=given, seq_len=32, attn_implementation=attention)
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), "float32")
    model.to_empty(device="cpu")
    initialize(model, None, 7)
    with torch.no_grad():
        for parameter in routers(model).values():
            parameter.mul_(100.0)
    return model.train()


def routers(model: Any) -> dict[str, Any]:
    ends = ("gate.weight", "router.weight")
    return {name: one for name, one in model.named_parameters() if name.endswith(ends) and "shared" not in name}


def parts_of(model: Any, size: int = 1, loss: Any = None, objective: Any = None) -> Parts:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]  # they are looked at
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    rank = dist.get_rank() if size > 1 else 0
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    clipper = lambda model: GradientClipper(model, max_norm=None)  # noqa: E731
    loss = loss or CLMCrossEntropyLoss()
    return assemble(model, loss, optimizer, scheduler, clipper, world, "float32", False, objective)


def batch(padded: bool = True) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Four sequences with padding, masked targets, and tokens so unlike that a mean of means would show."""
    ids = torch.randint(5, VOCAB, (4, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    ids[0], ids[1, 3:] = 9, 20
    inputs, targets = ids[:, :-1].clone(), ids[:, 1:].clone()
    mask = torch.ones_like(inputs)
    if padded:
        mask[0, 9:], mask[3, 4:] = 0, 0
        targets[2, 1:] = -100
    return {"input_ids": inputs, "attention_mask": mask}, targets.masked_fill(mask == 0, -100)


def step(parts: Parts, cuts: int, rank: int = 0, size: int = 1) -> StepResult:
    """One step on the batch, cut into micro-batches that the ranks take in turn."""
    return update(parts, pieces(cuts)[rank::size], 1)


def pieces(cuts: int) -> list[Any]:
    inputs, targets = batch()
    return [
        ({name: value.chunk(cuts)[i] for name, value in inputs.items()}, targets.chunk(cuts)[i]) for i in range(cuts)
    ]


def found(model: Any, result: StepResult) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What is logged, and all gradients."""
    gradients = {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in model.named_parameters()}
    return {"loss": result.mean_loss(), "norm": float(result.grad_norm), **result.mean_metrics()}, gradients


def whole(**given: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = build(**given)
    return found(model, step(parts_of(model), 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_value_and_gradient_are_those_of_transformers(name: str) -> None:
    """Its own loss takes the next token of its inputs, so the whole sequence is given without shifting targets."""
    coefficient = 100.0 if name in ("mixtral", "olmoe") else 3.0
    model = build(name, coefficient)
    inputs, _ = batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    theirs = model.network(**inputs, labels=labels, use_cache=False)
    theirs.loss.backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    values, gradients = found(model, update(parts_of(model), [(inputs, targets)], 1))
    assert abs(theirs.aux_loss.item() - 2.0) > 0.04  # which it is where all experts are used evenly
    assert values["loss"] == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert values["router_balance_loss"] == pytest.approx(theirs.aux_loss.item(), rel=1e-5)
    assert values["task_loss"] == pytest.approx(values["loss"] - coefficient * values["router_balance_loss"], rel=1e-3)
    assert routers(model)
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-7)


def test_the_cut_into_micro_batches_changes_nothing() -> None:
    values, gradients = whole()
    assert values["loss"] > 200
    for cuts in (2, 4):
        model = build()
        others, their_gradients = found(model, step(parts_of(model), cuts))
        assert others == pytest.approx(values, rel=1e-5)
        torch.testing.assert_close(their_gradients, gradients, rtol=1e-4, atol=1e-4)


def on_ranks(cuts: int, chunked: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    rank, size = dist.get_rank(), dist.get_world_size()
    model = build(size=size)
    loss = ChunkedCLMCrossEntropyLoss(num_chunks=3) if chunked else None
    return found(model, step(parts_of(model, size, loss), cuts, rank, size))


@pytest.mark.slow
@pytest.mark.parametrize(("cuts", "chunked"), [(2, False), (4, True)])
def test_nor_does_the_number_of_ranks(cuts: int, chunked: bool) -> None:
    values, gradients = whole()
    for others, their_gradients in run_ranks(2, on_ranks, cuts, chunked):
        assert others == pytest.approx(values, rel=1e-5)
        torch.testing.assert_close(their_gradients, gradients, rtol=1e-4, atol=1e-4)


def test_over_micro_batches_it_is_the_mean_of_theirs() -> None:
    """Weighted by unmasked targets, each as transformers computes it; and each goes through the model once."""
    model = build()
    expected, counts, calls = [], [], []
    for inputs, targets in pieces(4):
        with torch.no_grad():
            expected.append(model.network(**inputs, use_cache=False).aux_loss.item())
        counts.append(int((targets != -100).sum()))
    model.register_forward_hook(lambda *_: calls.append(1))
    loss = CLMCrossEntropyLoss()
    parts = parts_of(model, loss=loss, objective=RouterBalance(loss, over="micro_batch"))
    values, _ = found(model, step(parts, 4))
    mean = sum(one * count for one, count in zip(expected, counts, strict=True)) / sum(counts)
    assert values["router_balance_loss"] == pytest.approx(mean, rel=1e-5)
    assert values["loss"] == pytest.approx(values["task_loss"] + 100 * mean, rel=1e-5)
    assert abs(mean - whole()[0]["router_balance_loss"]) > 0.05
    assert len(calls) == 4
    with pytest.raises(
        ConfigError, match=r"^over \('step'\) must be 'global_batch' or 'micro_batch'; leave it out for "
    ):
        RouterBalance(loss, over="step")  # type: ignore[arg-type]


def test_dropout_and_jitter_are_the_same_in_both_forwards() -> None:
    """The shares that are gathered before the first backward are those of the forwards that have one."""
    random = {"attention_dropout": 0.3, "router_jitter_noise": 0.3}
    seen: list[torch.Tensor] = []
    model = build(**random)
    parts = parts_of(model)
    inner = parts.objective._evaluate  # type: ignore[attr-defined]

    def noting(*args: Any) -> Any:
        value, used = inner(*args)
        seen.append(used.numbers())
        return value, used

    parts.objective._evaluate = noting  # type: ignore[attr-defined]
    torch.manual_seed(3)
    step(parts, 4)
    assert torch.equal(torch.stack(seen[:4]), torch.stack(seen[4:]))
    quiet = build()
    assert not torch.equal(sum(seen[:4]), _numbers(quiet))


def _numbers(model: Any) -> Any:
    parts = parts_of(model)
    step(parts, 4)
    return parts.objective._numbers  # type: ignore[attr-defined]


def test_a_model_without_one_has_the_plain_objective() -> None:
    model = build(output_router_logits=False)
    values, _ = found(model, step(parts_of(model), 2))
    assert set(values) == {"loss", "norm"}
    assert values["loss"] == pytest.approx(whole(coefficient=0.0)[0]["loss"], rel=1e-5)
