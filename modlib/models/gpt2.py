"""The decoder-only transformer: GPT-2 as published by default, Llama and its relatives by parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modlib.components import component
from modlib.models.accounting import FlopsConvention, activation_bytes_per_token, flops_per_token
from modlib.models.partial_training import partial_work
from modlib.models.shape_checks import check_shape
from modlib.nn.attention import CausalSelfAttention
from modlib.nn.document_mask import DocumentMask, document_mask
from modlib.nn.feed_forward import Activation, FeedForward, default_ffn_dim
from modlib.nn.norms import build_norm
from modlib.nn.rope import RotaryTable
from modlib.optim.roles import num_non_embedding
from modlib.runtime.errors import ConfigError

Position = Literal["learned", "rotary", "none"]
Norm = Callable[[int], nn.Module]
Head = Callable[[Tensor, Tensor], Tensor]


def _named(inputs: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Token ids and, where there are any, document ids."""
    if isinstance(inputs, Tensor):
        return inputs, None
    names = set(inputs)
    if "input_ids" not in names or names - {"input_ids", "document_ids"}:
        raise ConfigError(
            f"inputs of GPT2 ({', '.join(sorted(names))}) must be input_ids and, at most, document_ids; a causal model "
            "needs no attention_mask for padding at the end: set LMCollator.attention_mask = False"
        )
    return inputs["input_ids"], inputs.get("document_ids")


def _count(modules: Iterable[nn.Module | None]) -> int:
    return sum(parameter.numel() for module in modules if module is not None for parameter in module.parameters())


class KeyValueCache:
    """Keys and values of every layer for generation, allocated once at full length.

    Args:
        model: The model to cache for; the device is its own, the dtype is autocast's inside autocast, else its own.
        batch_size: Sequences decoded together.
        capacity: Positions held; at most the model's seq_len.
    """

    def __init__(self, model: GPT2, *, batch_size: int, capacity: int) -> None:
        weight = model.token_embedding.weight
        shape = (model.num_layers, batch_size, model.num_kv_heads, capacity, model.head_dim)
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        self.keys = torch.zeros(shape, dtype=dtype, device=weight.device)
        self.values = torch.zeros(shape, dtype=dtype, device=weight.device)
        self.capacity = capacity
        self.length = 0  # positions filled


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, *, dim: int, norm: Norm, bias: bool, attention: CausalSelfAttention, feed_forward: FeedForward
    ) -> None:
        super().__init__()
        self.attention_norm = build_norm(norm, dim, bias=bias)
        self.attention = attention
        self.feed_forward_norm = build_norm(norm, dim, bias=bias)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, documents: DocumentMask | None = None) -> Tensor:
        """Map x (B, T, dim) to (B, T, dim)."""
        x = x + self.attention(self.attention_norm(x), documents)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def decode(self, x: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """The same for the positions start .. start + T, with the keys and values of earlier ones from the cache."""
        x = x + self.attention.decode(self.attention_norm(x), keys, values, start)
        return x + self.feed_forward(self.feed_forward_norm(x))


@component("model", "gpt2")
class GPT2(nn.Module):
    """A decoder-only transformer with pre-norm blocks and causal attention.

    The defaults are GPT-2's, except the activation: published GPT-2 weights use "gelu_tanh". With position="rotary",
    norm=RMSNorm, activation="swiglu", bias=False and tie_embeddings=False it is Llama.

    Args:
        vocab_size: Number of token ids; targets and inputs must be below it. Multiples of 64 are faster.
        seq_len: Longest sequence, in tokens.
        num_layers: Number of blocks.
        num_heads: Query heads; must divide dim.
        dim: Size of the residual stream.
        num_kv_heads: Key/value heads, must divide num_heads; default num_heads. 1 is multi-query attention.
        ffn_dim: Hidden size of the feed-forward; default 4 * dim, for swiglu 8/3 * dim rounded up to 256s.
        activation: "gelu" (exact), "gelu_tanh", "relu" or "swiglu".
        norm: A norm that takes its size first, such as torch.nn.LayerNorm or torch.nn.RMSNorm.
        position: "learned" table, "rotary" on queries and keys, or "none".
        rope_theta: Base of the rotary wavelengths.
        rope_fraction: Share of each head that is rotated, in (0, 1]; rope_fraction * head_dim must be even.
        qk_norm: Normalise queries and keys over head_dim before rotation.
        bias: Biases in projections and norms.
        tie_embeddings: Use the token embedding as the output projection.
        dropout: Share dropped of embeddings, attention weights and residual branches; in training only.

    Raises:
        ConfigError: Sizes that do not fit together, all of them at once.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3.
    """

    takes_document_ids = True

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        num_layers: int,
        num_heads: int,
        dim: int,
        num_kv_heads: int | None = None,
        ffn_dim: int | None = None,
        activation: Activation = "gelu",
        norm: Norm = nn.LayerNorm,
        position: Position = "learned",
        rope_theta: float = 10000.0,
        rope_fraction: float = 1.0,
        qk_norm: bool = False,
        bias: bool = True,
        tie_embeddings: bool = True,
        dropout: float = 0.0,
    ) -> None:
        check_shape(
            vocab_size=vocab_size,
            seq_len=seq_len,
            num_layers=num_layers,
            num_heads=num_heads,
            dim=dim,
            num_kv_heads=num_kv_heads,
            ffn_dim=ffn_dim,
            activation=activation,
            position=position,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction,
            dropout=dropout,
        )
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.num_layers, self.num_heads, self.num_kv_heads = num_layers, num_heads, num_kv_heads
        self.dim, self.head_dim = dim, dim // num_heads
        self.ffn_dim = default_ffn_dim(dim, activation) if ffn_dim is None else ffn_dim
        self.rope_theta, self.rope_fraction = rope_theta, rope_fraction
        self.activation, self.position, self.tie_embeddings, self.dropout = (
            activation,
            position,
            tie_embeddings,
            dropout,
        )

        rotary = None
        if position == "rotary":
            rotary_dim = round(rope_fraction * self.head_dim)
            rotary = RotaryTable(seq_len=seq_len, rotary_dim=rotary_dim, theta=rope_theta)
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(seq_len, dim) if position == "learned" else None
        self.blocks = nn.ModuleList()
        for _ in range(num_layers):
            attention = CausalSelfAttention(
                dim=dim,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                rotary=rotary,
                qk_norm=norm if qk_norm else None,
                bias=bias,
                dropout=dropout,
            )
            feed_forward = FeedForward(dim=dim, ffn_dim=self.ffn_dim, activation=activation, bias=bias, dropout=dropout)
            self.blocks.append(Block(dim=dim, norm=norm, bias=bias, attention=attention, feed_forward=feed_forward))
        self.final_norm = build_norm(norm, dim, bias=bias)
        # Tied models have no head at all, so the tie cannot be lost: not by to_empty, not by sharding, not by loading.
        self.lm_head = None if tie_embeddings else nn.Linear(dim, vocab_size, bias=False)

    def _embed(self, tokens: Tensor, start: int, positions: Tensor | None = None) -> Tensor:
        end = start + tokens.shape[1]
        if end > self.seq_len:
            raise ValueError(
                f"sequence length ({end}) must be at most GPT2.seq_len ({self.seq_len}); "
                "shorten the input or build the model with a longer seq_len"
            )
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            table = self.position_embedding.weight
            x = x + (table[start:end] if positions is None else F.embedding(positions, table))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _logits(self, x: Tensor, head: Head = F.linear) -> Tensor:
        x = self.final_norm(x)
        if self.lm_head is not None and head is F.linear:  # the module itself, so that its hooks and adapters count
            return self.lm_head(x)
        return head(x, self.token_embedding.weight if self.lm_head is None else self.lm_head.weight)

    def _documents(self, document_ids: Tensor) -> DocumentMask:
        kind = document_ids.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.token_embedding.weight.dtype
        # Without compilation flex_attention would compute all scores, one by one; it drops no attention weights.
        compiled = torch.compiler.is_compiling() or self.blocks[0]._compiled_call_impl is not None
        flex = kind == "cuda" and compiled and not (self.training and self.dropout)
        return document_mask(document_ids, dtype, flex=flex)

    def forward(self, tokens: Tensor | Mapping[str, Tensor], head: Head = F.linear) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: (B, T) int64, T at most seq_len; or them as "input_ids", with "document_ids" (B, T): then tokens see
                only those of their own document, which stand side by side, and each document begins at position 0.
            head: Called with the last hidden states (B, T, dim) and the output weight (V, dim); a loss that never
                holds all logits at once comes in here.

        Returns:
            What head returns; by default logits (B, T, V) in the dtype of the parameters.

        Raises:
            ConfigError: An input of another name.
            ValueError: T is larger than seq_len.
        """
        tokens, document_ids = _named(tokens)
        documents = None if document_ids is None else self._documents(document_ids)
        x = self._embed(tokens, 0, None if documents is None else documents.positions)
        for block in self.blocks:
            x = block(x) if documents is None else block(x, documents)
        return self._logits(x, head)

    def decode(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits after the last of the new tokens, which are appended to the cache: (B, T) to (B, V).

        Args:
            tokens: (B, T), the tokens that follow those in the cache.
            cache: Filled up to cache.length; advanced by T.
        """
        x = self._embed(tokens, cache.length)
        for layer, block in enumerate(cast(Iterable[Block], self.blocks)):
            x = block.decode(x, cache.keys[layer], cache.values[layer], cache.length)
        cache.length += tokens.shape[1]
        return self._logits(x[:, -1:]).squeeze(1)

    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard one by one before the model itself: its blocks, first to last.

        Embeddings, final norm and head stay with the root: the tied embedding is needed at both ends of forward.
        """
        return list(self.blocks)

    def num_parameters(self) -> dict[str, int]:
        """Parameters: "total", "trainable", and "non_embedding" (see roles.num_non_embedding).

        A tied output projection is the token embedding and counted once; neither is in "non_embedding".
        """
        total = _count([self])
        return {
            "total": total,
            "trainable": sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad),
            "non_embedding": num_non_embedding(self),
        }

    def parameter_table(self) -> list[tuple[str, int]]:
        """(part of the model, parameters in it), in order of computation; the counts add up to the total."""
        each = f"{self.num_layers} x " if self.num_layers > 1 else ""
        blocks = cast(list[Block], list(self.blocks))
        norms = [norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm)]
        rows = [
            ("token_embedding", _count([self.token_embedding])),
            ("position_embedding", _count([self.position_embedding])),
            (f"{each}attention", _count(block.attention for block in blocks)),
            (f"{each}feed_forward", _count(block.feed_forward for block in blocks)),
            (f"{each}norms", _count(norms)),
            ("final_norm", _count([self.final_norm])),
            ("lm_head", _count([self.lm_head])),
        ]
        return [(part, count) for part, count in rows if count]

    def flops_per_token(self, seq_len: int | None = None, convention: FlopsConvention = "palm") -> float:
        """Floating point operations of forward and backward for one token of a sequence of seq_len tokens.

        See accounting.flops_per_token for the conventions. Position embeddings and an untied token embedding are
        looked up, not multiplied, and do not count.
        """
        looked_up = ["position_embedding.weight", *(["token_embedding.weight"] if self.lm_head else [])]
        multiplied = {name: p.numel() for name, p in self.named_parameters() if name not in looked_up}
        return flops_per_token(
            multiplied_parameters=sum(multiplied.values()),
            num_layers=self.num_layers,
            attention_dim=self.num_heads * self.head_dim,
            seq_len=self.seq_len if seq_len is None else seq_len,
            convention=convention,
            partly=partial_work(self, multiplied),
        )

    def activation_bytes(self, micro_batch_size: int, seq_len: int | None = None, bytes_per_value: int = 4) -> int:
        """Estimated memory that forward keeps for backward on one rank, loss included, nothing recomputed.

        Args:
            micro_batch_size: Sequences per rank and forward pass.
            seq_len: Tokens per sequence; default the model's own.
            bytes_per_value: 4 for float32, 2 for bfloat16.
        """
        length = self.seq_len if seq_len is None else seq_len
        per_token = activation_bytes_per_token(
            num_layers=self.num_layers,
            dim=self.dim,
            kv_dim=self.num_kv_heads * self.head_dim,
            ffn_dim=self.ffn_dim,
            vocab_size=self.vocab_size,
            swiglu=self.activation == "swiglu",
            rotary=self.position == "rotary",
            dropout=self.dropout > 0,
            scores=self.num_heads * length,
            bytes_per_value=bytes_per_value,
        )
        return micro_batch_size * length * per_token
