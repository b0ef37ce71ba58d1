"""CoCa: an image encoder and a text decoder that learn to match images with captions, and to write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modlib.components import component
from modlib.models.accounting import activation_bytes_per_token
from modlib.models.partial_training import partial_work
from modlib.models.shape_checks import nearest_divisors
from modlib.models.vision_transformer import VisionTransformer
from modlib.nn.attention_pooling import AttentionPooling
from modlib.nn.cross_attention import CrossAttention, SelfAttention, causal_mask_without_padding
from modlib.nn.feed_forward import ACTIVATIONS, Activation, FeedForward, default_ffn_dim
from modlib.nn.norms import build_norm
from modlib.optim.roles import num_non_embedding
from modlib.runtime.errors import ConfigError

Norm = Callable[[int], nn.Module]
LARGEST_LOGIT_SCALE = 100.0  # CLIP's: beyond it training becomes unstable


class DecoderBlock(nn.Module):
    """A pre-norm text block: causal self-attention, with `context_dim` cross-attention to a context, feed-forward."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        activation: Activation,
        norm: Norm,
        bias: bool,
        dropout: float,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = build_norm(norm, dim, bias=bias)
        self.attention = SelfAttention(
            dim=dim, num_heads=num_heads, num_kv_heads=num_heads, rotary=None, qk_norm=None, bias=bias, dropout=dropout
        )
        self.cross_attention_norm: nn.Module | None = None
        self.cross_attention: CrossAttention | None = None
        if context_dim is not None:
            self.cross_attention_norm = build_norm(norm, dim, bias=bias)
            self.cross_attention = CrossAttention(
                dim=dim, context_dim=context_dim, num_heads=num_heads, bias=bias, dropout=dropout
            )
        self.feed_forward_norm = build_norm(norm, dim, bias=bias)
        self.feed_forward = FeedForward(dim=dim, ffn_dim=ffn_dim, activation=activation, bias=bias, dropout=dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Map x (B, T, dim) to (B, T, dim).

        Args:
            x: (B, T, dim).
            mask: As for SelfAttention; None is causal.
            context: (B, S, context_dim), for a block with cross-attention.
        """
        x = x + self.attention(self.attention_norm(x), mask, is_causal=True)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            x = x + self.cross_attention(self.cross_attention_norm(x), context)
        return x + self.feed_forward(self.feed_forward_norm(x))


class LogitScale(nn.Module):
    """The learned factor on products of embeddings, 1 / temperature: starts at 1 / 0.07, stays at or below 100.

    What is learned is its logarithm's distance from the start, so that its initial value is zero like a bias's; one
    value rather than a scalar, which FSDP2 cannot shard.

    Source: Radford et al. 2021, CLIP, section 2.5.
    """

    parameter_rules = {"log_change": "zeros"}

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.start = -math.log(temperature)
        self.log_change = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """The factor, a float32 scalar."""
        return (self.start + self.log_change.float()).clamp(max=math.log(LARGEST_LOGIT_SCALE)).exp().squeeze(0)


@component("model", "coca")
class CoCa(nn.Module):
    """A contrastive captioner: next-token logits of captions given images, and embeddings that match the two.

    The image goes through a vision transformer, whose patches are pooled by num_vision_queries + 1 learned queries: the
    first are the context of captions, the last becomes the image embedding. The caption goes through causal blocks that
    do not see the image, with a learned class token after its last position, which becomes the caption embedding; then
    through causal blocks with cross-attention to the image's context, whose output is compared with the token
    embedding (unless it is untied) for the logits. The class token has no position of its own and does not see padding,
    so a padded caption has the embedding of the same caption without padding.

    Args:
        image_size: Height and width of images, in pixels; a multiple of patch_size.
        patch_size: Height and width of a patch.
        num_channels: Channels of images.
        vision_layers: Blocks of the vision transformer.
        vision_dim: Its residual stream.
        vision_heads: Its heads; must divide vision_dim.
        vision_ffn_dim: Its feed-forward's hidden size; default 4 * vision_dim.
        vocab_size: Number of token ids.
        seq_len: Longest caption, in tokens, without the class token.
        text_layers: Blocks of the text decoder that do not see the image.
        multimodal_layers: Blocks of the text decoder that do.
        dim: Residual stream of the text decoder, and size of the pooled image.
        num_heads: Heads of the text decoder, in self- and cross-attention; must divide dim.
        ffn_dim: Hidden size of the text decoder's feed-forward; default 4 * dim.
        embedding_dim: Size of the image and caption embeddings; default dim.
        num_vision_queries: Learned queries that make the context of captions; 256 in the paper.
        pool_heads: Heads of the pooling; must divide dim. Default num_heads.
        activation: "gelu" (exact), "gelu_tanh", "relu" or "swiglu".
        norm: A norm that takes its size first, such as torch.nn.LayerNorm or torch.nn.RMSNorm.
        bias: Biases in every projection and norm, but the projections to embeddings.
        dropout: Share dropped of embeddings, attention weights and residual branches; in training only.
        temperature: Initial temperature of the contrastive loss; learned.
        tie_embeddings: Use the token embedding as the output projection.

    Raises:
        ConfigError: Sizes that do not fit together, all of them at once.

    Source: Yu et al. 2022, CoCa: Contrastive Captioners are Image-Text Foundation Models, section 3.2.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_channels: int = 3,
        vision_layers: int,
        vision_dim: int,
        vision_heads: int,
        vision_ffn_dim: int | None = None,
        vocab_size: int,
        seq_len: int,
        text_layers: int,
        multimodal_layers: int,
        dim: int,
        num_heads: int,
        ffn_dim: int | None = None,
        embedding_dim: int | None = None,
        num_vision_queries: int = 256,
        pool_heads: int | None = None,
        activation: Activation = "gelu",
        norm: Norm = nn.LayerNorm,
        bias: bool = True,
        dropout: float = 0.0,
        temperature: float = 0.07,
        tie_embeddings: bool = True,
    ) -> None:
        pool_heads = num_heads if pool_heads is None else pool_heads
        _check(
            {name: value for name, value in locals().items() if isinstance(value, int) and not isinstance(value, bool)},
            activation=activation,
            dropout=dropout,
            temperature=temperature,
        )
        super().__init__()
        self.vocab_size, self.seq_len, self.dim, self.dropout = vocab_size, seq_len, dim, dropout
        self.num_layers = text_layers + multimodal_layers
        self.ffn_dim = default_ffn_dim(dim, activation) if ffn_dim is None else ffn_dim
        self.num_heads, self.vision_heads = num_heads, vision_heads
        self.vision_dim, self.vision_ffn_dim = vision_dim, vision_ffn_dim or default_ffn_dim(vision_dim, activation)
        self.activation, self.num_vision_queries = activation, num_vision_queries
        shared: dict[str, Any] = {"activation": activation, "norm": norm, "bias": bias, "dropout": dropout}
        text: dict[str, Any] = {"dim": dim, "num_heads": num_heads, "ffn_dim": self.ffn_dim, **shared}
        self.vision = VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            num_channels=num_channels,
            num_layers=vision_layers,
            num_heads=vision_heads,
            dim=vision_dim,
            ffn_dim=self.vision_ffn_dim,
            **shared,
        )
        self.pooling = AttentionPooling(
            num_queries=num_vision_queries + 1,
            dim=dim,
            context_dim=vision_dim,
            num_heads=pool_heads,
            norm=norm,
            bias=bias,
            dropout=dropout,
        )
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(seq_len, dim)
        self.class_embedding = nn.Embedding(1, dim)
        self.text_blocks = nn.ModuleList(DecoderBlock(**text) for _ in range(text_layers))
        self.text_norm = build_norm(norm, dim, bias=bias)
        self.multimodal_blocks = nn.ModuleList(DecoderBlock(**text, context_dim=dim) for _ in range(multimodal_layers))
        self.final_norm = build_norm(norm, dim, bias=bias)
        self.lm_head = None if tie_embeddings else nn.Linear(dim, vocab_size, bias=False)
        size = dim if embedding_dim is None else embedding_dim
        self.image_projection = nn.Linear(dim, size, bias=False)
        self.text_projection = nn.Linear(dim, size, bias=False)
        self.logit_scale = LogitScale(temperature)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of the next caption tokens, and the embeddings of images and captions.

        Args:
            inputs: "input_ids" (B, T) int64 with T at most seq_len; "images" (B, C, H, W), or in their place the
                "image_context" that an earlier call returned, which saves encoding the images again; and optionally
                "attention_mask" (B, T), nonzero where a token is real.

        Returns:
            "logits" (B, T, V); "text_embedding" and, when images are given, "image_embedding", both (B, D) float32 of
            length 1; "logit_scale" (), the factor on their products; "image_context" (B, num_vision_queries, dim).

        Raises:
            ValueError: T is larger than seq_len, or images of another size.
        """
        outputs: dict[str, Tensor] = {}
        if "images" in inputs:
            pooled = self.pooling(self.vision(inputs["images"]))
            context = pooled[:, :-1]
            outputs["image_embedding"] = _unit_length(self.image_projection(pooled[:, -1]))
        else:
            context = inputs["image_context"]
        tokens, class_token, mask = self._read(inputs["input_ids"], inputs.get("attention_mask"))
        outputs["text_embedding"] = _unit_length(self.text_projection(self.text_norm(class_token)))
        for block in self.multimodal_blocks:
            tokens = block(tokens, mask, context)
        tokens = self.final_norm(tokens)
        outputs["logits"] = (
            F.linear(tokens, self.token_embedding.weight) if self.lm_head is None else self.lm_head(tokens)
        )
        return outputs | {"logit_scale": self.logit_scale(), "image_context": context}

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The caption alone: states of its tokens (B, T, dim), of the class token (B, dim), and the mask."""
        steps = input_ids.shape[1]
        if steps > self.seq_len:
            raise ValueError(
                f"caption length ({steps}) must be at most CoCa.seq_len ({self.seq_len}); shorten the captions or "
                "build the model with a longer seq_len"
            )
        x = self.token_embedding(input_ids) + self.position_embedding.weight[:steps]
        x = torch.cat((x, self.class_embedding.weight.expand(len(x), 1, -1)), dim=1)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        mask = None
        if attention_mask is not None:  # the class token is real, and everything before it that is
            mask = causal_mask_without_padding(F.pad(attention_mask.bool(), (0, 1), value=True))
        for block in self.text_blocks:
            x = block(x, mask)
        return x[:, :-1], x[:, -1], None if mask is None else mask[:, :, :-1, :-1]

    @property
    def blocks(self) -> list[nn.Module]:
        """All transformer blocks: of the image, of the text, of both."""
        return [*self.vision.blocks, *self.text_blocks, *self.multimodal_blocks]

    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard one by one before the model itself: its blocks. The rest stays with the root."""
        return self.blocks

    def num_parameters(self) -> dict[str, int]:
        """Parameters: "total", "trainable", and "non_embedding" (see roles.num_non_embedding)."""
        total = _count([self])
        return {
            "total": total,
            "trainable": sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad),
            "non_embedding": num_non_embedding(self),
        }

    def parameter_table(self) -> list[tuple[str, int]]:
        """(part of the model, parameters in it), in order of computation; the counts add up to the total."""
        rows = [
            ("vision", _count([self.vision])),
            ("pooling", _count([self.pooling])),
            ("token_embedding", _count([self.token_embedding])),
            ("position_embedding", _count([self.position_embedding])),
            ("class_embedding", _count([self.class_embedding])),
            ("text_blocks", _count([self.text_blocks])),
            ("multimodal_blocks", _count([self.multimodal_blocks])),
            ("norms", _count([self.text_norm, self.final_norm])),
            ("projections", _count([self.image_projection, self.text_projection, self.logit_scale])),
        ]
        return rows if self.lm_head is None else [*rows, ("lm_head", _count([self.lm_head]))]

    def flops_per_token(self, seq_len: int | None = None) -> float:
        """Floating point operations of forward and backward of one image and its caption, per token of the caption.

        Six per parameter and position it is multiplied at, and twelve per layer, width and pair of positions that
        attend. The pooling's and cross-attention's keys and values are computed at the positions they look at. Of a
        partly frozen model, as much of it as is done; the text's blocks count as coming after the image's.

        Args:
            seq_len: Tokens per caption; default the model's own.
        """
        steps = self.seq_len if seq_len is None else seq_len
        patches, queries = self.vision.num_patches, self.num_vision_queries
        vision, multimodal = len(self.vision.blocks), len(self.multimodal_blocks)
        multiplied = {name: self._positions(name, steps) * p.numel() for name, p in self.named_parameters()}
        scores = self.vision_dim * vision * patches**2 + self.dim * (
            (queries + 1) * patches + self.num_layers * steps**2 + multimodal * steps * queries
        )
        partly = partial_work(self, {name: float(count) for name, count in multiplied.items() if count})
        if partly is None:
            return (6.0 * sum(multiplied.values()) + 12.0 * scores) / steps
        products = partly.forward + partly.weight_gradients + partly.input_gradients
        return (2.0 * products + (4.0 + 8.0 * partly.attention_share) * scores) / steps

    def _positions(self, name: str, steps: int) -> int:
        """At how many positions of an image and its caption a parameter is multiplied."""
        patches, queries = self.vision.num_patches, self.num_vision_queries
        output = "token_embedding." if self.lm_head is None else "lm_head."
        if name.startswith("vision."):
            return 0 if "position_embedding" in name else patches
        if name.startswith("pooling.attention."):
            return patches if ".key_value." in name else queries + 1
        if ".cross_attention.key_value." in name:
            return queries
        return steps if name.startswith(("text_blocks.", "multimodal_blocks.", output)) else 0

    def activation_bytes(self, micro_batch_size: int, seq_len: int | None = None, bytes_per_value: int = 4) -> int:
        """Estimated memory that forward keeps for backward on one rank, loss included, nothing recomputed.

        The pooling, and cross-attention's few values beside self-attention's, are left out.

        Args:
            micro_batch_size: Images per rank and forward pass.
            seq_len: Tokens per caption; default the model's own.
            bytes_per_value: 4 for float32, 2 for bfloat16.
        """
        shared: dict[str, Any] = {
            "swiglu": self.activation == "swiglu",
            "rotary": False,
            "dropout": self.dropout > 0,
            "bytes_per_value": bytes_per_value,
        }
        steps = self.seq_len if seq_len is None else seq_len
        image = activation_bytes_per_token(
            num_layers=len(self.vision.blocks),
            dim=self.vision_dim,
            kv_dim=self.vision_dim,
            ffn_dim=self.vision_ffn_dim,
            vocab_size=0,
            scores=self.vision_heads * self.vision.num_patches,
            **shared,
        )
        text = activation_bytes_per_token(
            num_layers=self.num_layers,
            dim=self.dim,
            kv_dim=self.dim,
            ffn_dim=self.ffn_dim,
            vocab_size=self.vocab_size,
            scores=self.num_heads * steps,
            **shared,
        )
        return micro_batch_size * (self.vision.num_patches * image + steps * text)

    def _lookups(self) -> list[nn.Module]:
        return [self.position_embedding, self.class_embedding, self.vision.position_embedding, self.pooling.queries]


@torch.no_grad()
def greedy_captions(model: Any, images: Tensor, start: Tensor, num_tokens: int) -> Tensor:
    """The most likely caption tokens of each image, one after the other; the model's mode is put back.

    The images are encoded once. Every call of the model has the same shapes, and there are always num_tokens of them,
    so ranks that share a sharded model stay together, whatever their captions.

    Args:
        model: A CoCa; every rank calls when it is sharded.
        images: (B, C, H, W), as the model takes them.
        start: (B,) int64, the token that each caption starts with.
        num_tokens: Tokens to write, at most the model's seq_len.

    Returns:
        (B, num_tokens) int64, without the start; what follows a caption's end has no meaning.
    """
    was_training = model.training
    model.eval()
    try:
        ids = start[:, None].repeat(1, num_tokens + 1)  # what comes later is not seen by what is before it
        inputs = {"images": images}
        for position in range(num_tokens):
            outputs = model({**inputs, "input_ids": ids[:, :num_tokens]})
            inputs = {"image_context": outputs["image_context"]}
            ids[:, position + 1] = outputs["logits"][:, position].argmax(dim=-1)
    finally:
        model.train(was_training)
    return ids[:, 1:]


def _unit_length(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _check(sizes: Mapping[str, int], *, activation: str, dropout: float, temperature: float) -> None:
    problems = [f"{name} ({value}) must be at least 1" for name, value in sizes.items() if value < 1]
    if not 0.0 <= dropout < 1.0:
        problems.append(f"dropout ({dropout}) must be in [0, 1); 0 turns it off")
    if not temperature > 0.0:
        problems.append(f"temperature ({temperature}) must be above 0; CLIP starts at 0.07")
    if activation not in ACTIVATIONS:
        problems.append(f"activation ({activation!r}) must be one of {', '.join(map(repr, ACTIVATIONS))}")
    divides = (
        ("patch_size", "image_size"),
        ("vision_heads", "vision_dim"),
        ("num_heads", "dim"),
        ("pool_heads", "dim"),
    )
    for part, whole in divides:
        if min(sizes[part], sizes[whole]) >= 1 and sizes[whole] % sizes[part]:
            nearest = nearest_divisors(sizes[part], sizes[whole])
            problems.append(f"{part} ({sizes[part]}) must divide {whole} ({sizes[whole]}); nearest valid: {nearest}")
    if problems:
        raise ConfigError(problems)
