"""Weights between GPT2 and the checkpoints of transformers' GPT2LMHeadModel and LlamaForCausalLM."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from modlib.models.gpt2 import GPT2, Block
from modlib.models.plain_types import plain_type
from modlib.nn.attention import CausalSelfAttention, join_qkv, split_qkv
from modlib.nn.feed_forward import FeedForward
from modlib.nn.rope import RotaryTable
from modlib.runtime.errors import CheckpointError, ConfigError

Architecture = Literal["gpt2", "llama"]


class _Match(NamedTuple):
    """One tensor of ours and what it is called, or what its parts are called, over there."""

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False  # GPT-2's Conv1D stores (in, out)


_GPT2_TOP = (
    _Match("token_embedding.weight", ("transformer.wte.weight",)),
    _Match("position_embedding.weight", ("transformer.wpe.weight",)),
    _Match("final_norm.weight", ("transformer.ln_f.weight",)),
    _Match("final_norm.bias", ("transformer.ln_f.bias",)),
    _Match("lm_head.weight", ("lm_head.weight",)),
)
_GPT2_BLOCK = tuple(
    _Match(f"{ours}.{leaf}", (f"{theirs}.{leaf}",), transposed=leaf == "weight" and "ln" not in theirs)
    for ours, theirs in (
        ("attention_norm", "ln_1"),
        ("attention.qkv", "attn.c_attn"),
        ("attention.out", "attn.c_proj"),
        ("feed_forward_norm", "ln_2"),
        ("feed_forward.up", "mlp.c_fc"),
        ("feed_forward.down", "mlp.c_proj"),
    )
    for leaf in ("weight", "bias")
)
_LLAMA_TOP = (
    _Match("token_embedding.weight", ("model.embed_tokens.weight",)),
    _Match("final_norm.weight", ("model.norm.weight",)),
    _Match("lm_head.weight", ("lm_head.weight",)),
)
_LLAMA_BLOCK = (
    _Match("attention_norm.weight", ("input_layernorm.weight",)),
    _Match("attention.qkv.weight", tuple(f"self_attn.{part}_proj.weight" for part in "qkv")),
    _Match("attention.out.weight", ("self_attn.o_proj.weight",)),
    _Match("feed_forward_norm.weight", ("post_attention_layernorm.weight",)),
    _Match("feed_forward.gate.weight", ("mlp.gate_proj.weight",)),
    _Match("feed_forward.up.weight", ("mlp.up_proj.weight",)),
    _Match("feed_forward.down.weight", ("mlp.down_proj.weight",)),
)
_TABLES: dict[str, tuple[tuple[_Match, ...], tuple[_Match, ...], str]] = {
    "gpt2": (_GPT2_TOP, _GPT2_BLOCK, "transformer.h"),
    "llama": (_LLAMA_TOP, _LLAMA_BLOCK, "model.layers"),
}
_PARTS = {GPT2, Block, CausalSelfAttention, FeedForward, RotaryTable, nn.ModuleList, nn.Embedding, nn.Linear}
# Buffers of old transformers versions that hold no weights.
_IGNORED = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$")


def architecture_of(model: GPT2) -> Architecture:
    """Which of transformers' two architectures computes the same function as this model.

    Classes must be exactly GPT2's and torch's own, since a subclass may compute anything; FSDP2, compiling and adapters
    do not count.

    Raises:
        ConfigError: None does; names what is in the way.
    """
    own = _foreign_parts(model)
    if own:
        raise ConfigError(own)
    biases = [layer.bias for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]
    norms = _norms(model)
    qk_norm = any(".q_norm." in f".{name}." for name, _ in model.named_modules())
    is_mha = model.num_kv_heads == model.num_heads
    is_gpt2 = {
        "position is 'learned'": model.position == "learned",
        "activation is not 'swiglu'": model.activation != "swiglu",
        **_norm_conditions(norms, nn.LayerNorm, ("weight", "bias")),
        "bias is True": None not in biases,
        "num_kv_heads equals num_heads": is_mha,
        "qk_norm is False": not qk_norm,
    }
    is_llama = {
        "position is 'rotary'": model.position == "rotary",
        "rope_fraction is 1": model.rope_fraction == 1.0,
        "activation is 'swiglu'": model.activation == "swiglu",
        **_norm_conditions(norms, nn.RMSNorm, ("weight",)),
        "bias is False": all(bias is None for bias in biases),
        "qk_norm is False": not qk_norm,
    }
    if all(is_gpt2.values()):
        return "gpt2"
    if all(is_llama.values()):
        return "llama"
    raise ConfigError(
        "transformers has no architecture for this model: GPT-2 needs that "
        + ", ".join(what for what, holds in is_gpt2.items() if not holds)
        + "; Llama needs that "
        + ", ".join(what for what, holds in is_llama.items() if not holds)
    )


def _foreign_parts(model: GPT2) -> list[str]:
    """Parts that need not compute what GPT2's own do, one sentence each; a class of parts once, by its first name."""
    found: dict[tuple[type, bool], str] = {}
    norms = {id(norm) for norm in _norms(model).values()}
    for name, module in model.named_modules():
        kind, replaced = plain_type(module), "forward" in vars(module)
        is_norm = id(module) in norms or "norm" in name.rpartition(".")[2]
        if replaced or not (is_norm or kind in _PARTS):
            found.setdefault((kind, replaced), name)
    problems = []
    for (kind, replaced), name in found.items():
        expected = next((part.__name__ for part in kind.__mro__ if part in _PARTS), "one of GPT2's own modules")
        is_now = f"{kind.__name__} with another forward" if replaced else kind.__name__
        problems.append(
            f"{name or 'model'} ({is_now}) must be exactly {expected} to be written for transformers, which computes "
            "that and nothing else"
        )
    return problems


def _norms(model: GPT2) -> dict[str, nn.Module]:
    """The norms of the residual stream by name, in order of computation."""
    blocks = enumerate(cast("Iterable[Any]", model.blocks))
    found = {
        f"blocks.{index}.{leaf}": getattr(block, leaf)
        for index, block in blocks
        for leaf in ("attention_norm", "feed_forward_norm")
    }
    return {**found, "final_norm": model.final_norm}


def _norm_conditions(
    norms: Mapping[str, nn.Module], kind: type[nn.Module], tensors: tuple[str, ...]
) -> dict[str, bool]:
    """What must hold of the norms, and whether it does; where it does not, the first norm concerned is named."""
    conditions: dict[str, bool] = {}
    other = next((name for name, norm in norms.items() if plain_type(norm) is not kind), None)
    if other is not None:
        found = plain_type(norms[other])
        extra = f" itself ({other} is its subclass {found.__name__})" if issubclass(found, kind) else ""
        return {f"norm is {kind.__name__}{extra}": False}
    for leaf in tensors:
        lacking = next((name for name, norm in norms.items() if getattr(norm, leaf, None) is None), None)
        if lacking is not None:
            conditions[f"{lacking} has a {leaf}"] = False
    first = next(iter(norms.values()))
    uneven = next((name for name, norm in norms.items() if norm.eps != first.eps), None)
    if uneven is not None:
        conditions[f"all norms have one eps ({uneven} has {norms[uneven].eps}, the first {first.eps})"] = False
    return conditions


def _matches(model: GPT2) -> list[_Match]:
    top, block, prefix = _TABLES[architecture_of(model)]
    matches = [match for match in top if not (match.ours == "lm_head.weight" and model.tie_embeddings)]
    for layer in range(model.num_layers):
        for ours, theirs, transposed in block:
            names = tuple(f"{prefix}.{layer}.{name}" for name in theirs)
            matches.append(_Match(f"blocks.{layer}.{ours}", names, transposed))
    return matches


def from_transformers(state: Mapping[str, Tensor], model: GPT2) -> dict[str, Tensor]:
    """The state dict for `model` from one of transformers', tensors shared where nothing had to be rearranged.

    Args:
        state: Of a GPT2LMHeadModel or LlamaForCausalLM of the same sizes.
        model: What to load into; may be on meta. Its parameters decide which architecture `state` must be of.

    Raises:
        CheckpointError: Tensors missing, left over or of another shape; all of them are named.
        ConfigError: The model has no counterpart in transformers.
    """
    parts = parts_from_transformers({name: tensor.shape for name, tensor in state.items()}, model)
    return {part.ours: part.convert([state[name] for name in part.theirs]) for part in parts}


class PartFromTransformers(NamedTuple):
    """One tensor of ours, and how it is made of one or several of theirs.

    Args:
        ours: Its name in the model.
        theirs: Names of what it is made of.
        shape: Of ours.
        convert: Makes it, contiguous; the tensor itself where nothing has to change.
        is_same: Whether nothing has to change.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: tuple[int, ...]
    convert: Callable[[Sequence[Tensor]], Tensor]
    is_same: bool


def parts_from_transformers(shapes: Mapping[str, Sequence[int]], model: GPT2) -> list[PartFromTransformers]:
    """How each tensor of the model is made of those of transformers, so that one at a time has to be in memory.

    Args:
        shapes: Of all of theirs, by name.
        model: See from_transformers.

    Raises:
        CheckpointError, ConfigError: See from_transformers.
    """
    source = {name: tuple(shape) for name, shape in shapes.items() if not _IGNORED.search(name)}
    # Published files of GPT-2 leave the prefix out.
    bare = architecture_of(model) == "gpt2" and not any(name.startswith("transformer.") for name in source)
    if model.tie_embeddings:
        source.pop("lm_head.weight", None)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts: list[PartFromTransformers] = []
    problems: list[str] = []
    for ours, names, transposed in _matches(model):
        theirs = tuple(name.removeprefix("transformer.") for name in names) if bare else names
        missing = [name for name in theirs if name not in source]
        if missing:
            problems.append(f"{', '.join(missing)} is missing, needed for {ours}")
        found = [source.pop(name) for name in theirs if name in source]
        if missing:
            continue
        split = "attention.qkv" in ours
        convert = partial(_from_parts, transposed=transposed, num_kv_heads=model.num_kv_heads if split else None)
        shape = _shape_of(convert, found, expected[ours])
        if shape != expected[ours]:
            problems.append(f"{' + '.join(theirs)} gives {shape}, {ours} is {expected[ours]}")
        parts.append(PartFromTransformers(ours, theirs, expected[ours], convert, not (split or transposed)))
    problems += [f"{name} is not a parameter of this model" for name in source]
    if problems:
        raise CheckpointError("transformers checkpoint does not fit the model:\n  " + "\n  ".join(problems))
    return parts


def _from_parts(parts: Sequence[Tensor], *, transposed: bool, num_kv_heads: int | None) -> Tensor:
    """One tensor of ours; with num_kv_heads, of queries, keys and values, apart or above each other."""
    if transposed:
        parts = [part.t() for part in parts]
    if num_kv_heads is not None:
        q, k, v = parts if len(parts) == 3 else parts[0].chunk(3)
        return join_qkv(q, k, v, num_kv_heads).contiguous()
    return parts[0].contiguous()


def _shape_of(convert: Callable[[Sequence[Tensor]], Tensor], found: list[tuple[int, ...]], expected: Any) -> Any:
    """What comes out of tensors of these shapes; of those that cannot be joined, their rows above each other."""
    parts = [torch.empty(shape, device="meta") for shape in found]
    try:
        shape = tuple(convert(parts).shape)
        if shape == expected or len(parts) == 1:
            return shape
    except (RuntimeError, ValueError):
        pass
    if len(parts) == 1 or any(not shape for shape in found):
        return found[0] if len(parts) == 1 else tuple(found)
    return (sum(shape[0] for shape in found), *found[0][1:])


def to_transformers(state: Mapping[str, Tensor], model: GPT2) -> dict[str, Tensor]:
    """The inverse of from_transformers: transformers' names for a full state dict of `model`.

    Args:
        state: Whole (unsharded) tensors under the model's names.
        model: Says the sizes and the architecture; may be on meta.

    Returns:
        Contiguous tensors. A tied output projection is left out; transformers ties it by its config.

    Raises:
        ConfigError: The model has no counterpart in transformers.
    """
    converted: dict[str, Tensor] = {}
    for part in parts_for_transformers(model):
        converted |= zip(part.theirs, part.convert(state[part.ours]), strict=True)
    return converted


class PartForTransformers(NamedTuple):
    """One tensor of ours, and how it becomes one or several of theirs.

    Args:
        ours: Its name in the model.
        theirs: Names of what is made of it.
        convert: Makes them, contiguous; the tensor itself where nothing has to change.
        is_same: Whether nothing has to change.
    """

    ours: str
    theirs: tuple[str, ...]
    convert: Callable[[Tensor], tuple[Tensor, ...]]
    is_same: bool


def parts_for_transformers(model: GPT2) -> list[PartForTransformers]:
    """How each tensor of the model is written for transformers, so that one at a time has to be in memory.

    Raises:
        ConfigError: The model has no counterpart in transformers.
    """

    def convert(tensor: Tensor, *, split: bool, joined: bool, transposed: bool) -> tuple[Tensor, ...]:
        parts = split_qkv(tensor, model.num_heads, model.num_kv_heads) if split else (tensor,)
        if split and joined:
            parts = (torch.cat(parts),)
        return tuple((part.t() if transposed else part).contiguous() for part in parts)

    found = []
    for ours, theirs, transposed in _matches(model):
        split, joined = "attention.qkv" in ours, len(theirs) == 1
        how = partial(convert, split=split, joined=joined, transposed=transposed)
        found.append(PartForTransformers(ours, theirs, how, not (split or transposed)))
    return found
