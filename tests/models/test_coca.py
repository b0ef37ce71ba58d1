"""CoCa: what each output may depend on, padding, sharding, compiling, captions, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from modlib.distributed.clipping import GradientClipper
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.coca import LARGEST_LOGIT_SCALE, CoCa, LogitScale, greedy_captions
from modlib.models.initialization import ComposedInitializer
from modlib.nn.contrastive import ContrastiveLoss, WeightedLosses
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.runtime.errors import ConfigError
from modlib.training.parts import assemble
from modlib.training.step import update
from tests.workers import run_ranks

SIZES: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "vision_layers": 2, "vision_dim": 12, "vision_heads": 2, "vocab_size": 13,
    "seq_len": 6, "text_layers": 2, "multimodal_layers": 2, "dim": 16, "num_heads": 2, "num_vision_queries": 3,
    "pool_heads": 4, "embedding_dim": 10,
}  # fmt: skip
RESIDUAL_OUTPUTS = ("attention.out", "cross_attention.out", "feed_forward.down")


def small(std: float = 0.3, **changes: Any) -> CoCa:
    with torch.device("meta"):
        model = CoCa(**{**SIZES, **changes})
    model.to_empty(device="cpu")
    ComposedInitializer("plain", std=std, residual_outputs=RESIDUAL_OUTPUTS)(model, 5)
    return model


def batch(size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randn(size, 3, 8, 8, generator=generator),
        "input_ids": torch.randint(0, 13, (size, 6), generator=generator),
    }


def test_shapes_dtypes_and_lengths() -> None:
    outputs = small()(batch())
    assert outputs["logits"].shape == (4, 6, 13)
    for name in ("image_embedding", "text_embedding"):
        assert outputs[name].shape == (4, 10)  # no token axis
        assert torch.allclose(outputs[name].norm(dim=-1), torch.ones(4), atol=1e-6)
    assert outputs["logit_scale"].shape == ()
    assert outputs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert outputs["image_context"].shape == (4, 3, 16)


def test_logits_see_the_past_and_the_image_embeddings_only_their_own_side() -> None:
    model, inputs = small().eval(), batch()
    before = model(inputs)
    other_image = model({**inputs, "images": inputs["images"] + 0.5})
    assert torch.equal(other_image["text_embedding"], before["text_embedding"])
    assert (other_image["logits"] - before["logits"]).abs().amax(dim=-1).min() > 1e-4
    assert not torch.allclose(other_image["image_embedding"], before["image_embedding"], atol=1e-4)

    ids = inputs["input_ids"].clone()
    ids[:, 3] = (ids[:, 3] + 1) % 13
    other_word = model({**inputs, "input_ids": ids})
    assert torch.equal(other_word["image_embedding"], before["image_embedding"])
    assert torch.allclose(other_word["logits"][:, :3], before["logits"][:, :3], atol=1e-6)
    assert not torch.allclose(other_word["logits"][:, 3:], before["logits"][:, 3:], atol=1e-4)
    assert not torch.allclose(other_word["text_embedding"], before["text_embedding"], atol=1e-4)


def test_the_last_query_is_the_image_embedding_and_no_context_of_captions() -> None:
    model, inputs = small().eval(), batch()
    before = model(inputs)
    with torch.no_grad():
        model.pooling.queries.weight[-1] += 1.0
    after = model(inputs)
    assert torch.equal(after["logits"], before["logits"])
    assert not torch.allclose(after["image_embedding"], before["image_embedding"], atol=1e-4)


@pytest.mark.parametrize("length", [1, 4, 6])
def test_padding_changes_nothing(length: int) -> None:
    model, inputs = small().eval(), batch()
    short = model({**inputs, "input_ids": inputs["input_ids"][:, :length]})
    ids = inputs["input_ids"].clone()
    ids[:, length:] = 11
    mask = (torch.arange(6) < length).expand(4, 6)
    padded = model({**inputs, "input_ids": ids, "attention_mask": mask})
    assert torch.allclose(padded["text_embedding"], short["text_embedding"], atol=1e-6)
    assert torch.allclose(padded["logits"][:, :length], short["logits"], atol=1e-5)
    unmasked = model({**inputs, "input_ids": ids})
    assert length == 6 or not torch.allclose(unmasked["text_embedding"], short["text_embedding"], atol=1e-3)


def test_a_caption_that_is_all_padding_gives_finite_numbers_and_gradients() -> None:
    model, inputs = small(), batch()
    outputs = model({**inputs, "attention_mask": torch.zeros(4, 6, dtype=torch.bool)})
    (outputs["logits"].sum() + outputs["text_embedding"].sum()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_class_token_is_at_the_end() -> None:
    model, inputs = small(text_layers=1).eval(), batch()
    seen = []
    model.text_blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(inputs)
    assert seen[0].shape == (4, 7, 16)
    assert torch.equal(seen[0][:, -1], model.class_embedding.weight.expand(4, -1))


def test_every_parameter_has_one_rule_and_none_stays_unwritten() -> None:
    with torch.device("meta"):
        model = CoCa(**SIZES)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    ComposedInitializer("scaled", std=0.02, residual_outputs=RESIDUAL_OUTPUTS)(model, 0)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    assert model.class_embedding.weight.std() > 0.005
    assert model.pooling.queries.weight.std() > 0.005
    assert not model.logit_scale.log_change.any()


def test_every_parameter_gets_a_gradient() -> None:
    model, inputs = small(), batch()
    loss = WeightedLosses(losses=(CLMCrossEntropyLoss, ContrastiveLoss), weights=(2.0, 1.0))
    loss(model(inputs), torch.randint(0, 13, (4, 6))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("bias", [True, False])
def test_bias_is_respected_everywhere(bias: bool) -> None:
    without = [
        name
        for name, module in small(bias=bias).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm) and (module.bias is None) == bias
    ]
    assert without == (["image_projection", "text_projection"] if bias else [])


def test_dropout_reaches_every_module_and_is_off_in_eval() -> None:
    model, inputs = small(dropout=0.4), batch()
    given = {name: module.dropout for name, module in model.named_modules() if hasattr(module, "dropout")}
    assert set(given.values()) == {0.4}
    assert len(given) == 1 + 1 + 1 + 6 * 2 + 2  # model, vision, pooling's attention; blocks' two parts, cross-attention
    first, second = model(inputs), model(inputs)
    for name in ("logits", "image_embedding", "text_embedding"):
        assert not torch.allclose(first[name], second[name], atol=1e-3)
    model.eval()
    assert torch.equal(model(inputs)["logits"], model(inputs)["logits"])


def test_logit_scale_is_learned_and_stays_below_100() -> None:
    scale = LogitScale(0.07)
    scale().backward()
    assert scale.log_change.grad.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        scale.log_change.fill_(50.0)
    assert scale().item() == pytest.approx(LARGEST_LOGIT_SCALE, rel=1e-5)


def test_rms_norm_and_swiglu_are_taken() -> None:
    model = small(norm=nn.RMSNorm, activation="swiglu", ffn_dim=8, vision_ffn_dim=8, bias=False)
    assert model(batch())["logits"].isfinite().all()


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_counts_add_up(tie_embeddings: bool) -> None:
    model = small(tie_embeddings=tie_embeddings)
    assert model.num_parameters()["total"] - small().num_parameters()["total"] == (0 if tie_embeddings else 13 * 16)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(count for _, count in model.parameter_table()) == model.num_parameters()["total"] == total
    assert len(model.blocks) == len(model.fsdp_units()) == 6


@pytest.mark.parametrize(("text_layers", "tie_embeddings"), [(1, True), (3, False)])
def test_flops_are_torchs_count(text_layers: int, tie_embeddings: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = small(text_layers=text_layers, tie_embeddings=tie_embeddings, seq_len=64), batch()
    inputs["input_ids"] = torch.randint(0, 13, (4, 64))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        outputs = model(inputs)
        sum(outputs[name].sum() for name in ("logits", "image_embedding", "text_embedding")).backward()
    # the class token, the embeddings' projections, and that images need no gradient are what is left out
    assert 4 * 64 * model.flops_per_token() == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.slow
def test_compiled_gives_the_same() -> None:
    model, inputs = small().eval(), batch()
    inputs["attention_mask"] = torch.ones(4, 6, dtype=torch.bool)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for name, value in model(inputs).items():
        assert torch.allclose(compiled(inputs)[name], value, atol=1e-6), name


def test_an_untied_output_is_a_matrix_of_its_own() -> None:
    model = small(tie_embeddings=False).eval()
    with torch.no_grad():
        before = model(batch())["logits"]
        model.lm_head.weight.mul_(2.0)
        after = model(batch())
    assert torch.equal(after["logits"], 2 * before)


def test_too_long_captions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"caption length \(7\) must be at most CoCa.seq_len \(6\); shorten the"):
        small()({**batch(), "input_ids": torch.zeros(4, 7, dtype=torch.int64)})


def test_wrong_sizes_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        CoCa(**{**SIZES, "patch_size": 3, "vision_heads": 5, "num_heads": 3, "dropout": 1.0, "num_vision_queries": 0})
    assert caught.value.problems == [
        "num_vision_queries (0) must be at least 1",
        "dropout (1.0) must be in [0, 1); 0 turns it off",
        "patch_size (3) must divide image_size (8); nearest valid: 2 or 4",
        "vision_heads (5) must divide vision_dim (12); nearest valid: 4 or 6",
        "num_heads (3) must divide dim (16); nearest valid: 2 or 4",
    ]
    with pytest.raises(ConfigError, match=r"temperature \(0.0\) must be above 0; CLIP starts at 0.07"):
        CoCa(**{**SIZES, "temperature": 0.0})
    with pytest.raises(ConfigError, match=r"activation \('silu'\) must be one of 'gelu', 'gelu_tanh'"):
        CoCa(**{**SIZES, "activation": "silu"})


def test_greedy_captions_equal_growing_them_one_by_one() -> None:
    model, inputs = small(std=0.6, dropout=0.3), batch()
    start = torch.full((4,), 2)
    captions = greedy_captions(model, inputs["images"], start, 6)
    assert model.training
    model.eval()
    ids = start[:, None]
    for _ in range(6):
        logits = model({"images": inputs["images"], "input_ids": ids})["logits"]
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    assert captions.tolist() == ids[:, 1:].tolist()


def train(accumulate: int = 1, precision: str = "float32") -> tuple[list[tuple[float, float]], Tensor]:
    """(loss, norm) of three steps on a global batch of 8 pairs with unequal captions, and all parameters."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    with torch.device("meta"):
        model = CoCa(**SIZES)
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), precision)
    model.to_empty(device="cpu")
    ComposedInitializer("plain", std=0.1, residual_outputs=RESIDUAL_OUTPUTS)(model, 7)
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=1e-3, eps=1e-4)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    loss = WeightedLosses(losses=(CLMCrossEntropyLoss, ContrastiveLoss), weights=(2.0, 1.0))
    parts = assemble(model, loss, optimizer, scheduler, GradientClipper, world, precision, False)
    lines = []
    for step in range(3):
        inputs = batch(8, step)
        inputs["attention_mask"] = torch.arange(6) < torch.tensor([6, 3, 4, 0, 2, 6, 6, 5])[:, None]
        targets = inputs["input_ids"].roll(-1, 1).masked_fill(~inputs["attention_mask"], -100)
        micro = 8 // size // accumulate
        pieces = [slice((n * size + rank) * micro, (n * size + rank + 1) * micro) for n in range(accumulate)]
        own = [({name: value[piece] for name, value in inputs.items()}, targets[piece]) for piece in pieces]
        result = update(parts, own, step)
        lines.append((result.mean_loss(), float(result.grad_norm)))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return lines, torch.cat([parameter.detach().flatten() for parameter in whole])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sharded_training_with_gathered_negatives_equals_one_process(accumulate: int) -> None:
    lines, parameters = train(accumulate)
    for ranks_lines, ranks_parameters in run_ranks(2, train, accumulate):
        for single, sharded in zip(lines, ranks_lines, strict=True):
            assert sharded == pytest.approx(single, rel=1e-4)
        assert torch.allclose(ranks_parameters, parameters, atol=1e-5)


@pytest.mark.slow
def test_sharded_bfloat16_is_close() -> None:
    lines, _ = train()
    for ranks_lines, parameters in run_ranks(2, train, 1, "bfloat16"):
        assert parameters.dtype == torch.float32
        assert [line[0] for line in ranks_lines] == pytest.approx([line[0] for line in lines], rel=0.03)


@pytest.mark.slow
def test_learns_to_match_and_to_describe() -> None:
    """Four images with four captions are told apart by heart, both by embeddings and in words."""
    model, inputs = small(std=0.1), batch()
    inputs["input_ids"][:, 0] = 0
    inputs["input_ids"][:, 1] = torch.arange(4)  # no two captions alike
    targets = F.pad(inputs["input_ids"][:, 1:], (0, 1), value=12)
    loss = WeightedLosses(losses=(CLMCrossEntropyLoss, ContrastiveLoss), weights=(2.0, 1.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        (loss(model(inputs), targets) / targets.numel()).backward()
        optimizer.step()
    assert greedy_captions(model, inputs["images"], torch.zeros(4, dtype=torch.int64), 6).equal(targets)
    outputs = model(inputs)
    nearest = (outputs["image_embedding"] @ outputs["text_embedding"].T).argmax(dim=1)
    assert nearest.tolist() == [0, 1, 2, 3]
