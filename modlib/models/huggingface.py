"""Any language model of the transformers library, from a local folder or with random weights from its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from modlib.components import component
from modlib.models.accounting import FlopsConvention, activation_bytes_per_token, flops_per_token
from modlib.models.huggingface_config import read_config, transformers_module
from modlib.models.huggingface_losses import losses_of
from modlib.models.huggingface_sizes import attention_dim, feed_forwards, multiplied
from modlib.models.huggingface_weights import (
    Rule,
    fill_pretrained,
    fill_random,
    initialization_rules,
    places,
    require_rules,
    restore_buffers,
)
from modlib.models.partial_training import partial_work
from modlib.models.weights import add_weights
from modlib.nn.routing import RouterLoss, Routing
from modlib.optim.roles import num_non_embedding
from modlib.runtime.errors import ConfigError

Head = Callable[[Tensor, Tensor], Tensor]
PREFIX = "network."
_SIZES = ("vocab_size", "num_hidden_layers", "hidden_size")


@component("model", "huggingface_pretrained_model")
class HuggingFacePretrainedModel(nn.Module):
    """A causal or masked language model of transformers, to fine-tune or to pretrain.

    Give exactly one of `path` (weights are loaded) and `config` (weights are random, by the architecture's own rules,
    as a function of seed and name: the world size does not change them). Nothing is downloaded and no code from a
    folder is run. Parameters are float32, whatever dtype the folder holds; train.precision says how to compute.

    Args:
        path: A local folder as `save_pretrained` writes it.
        config: Fields of an architecture with its `model_type`, as in {'model_type': 'llama', 'hidden_size': 64}, or a
            folder or config.json with them.
        model_type: "AutoModelForCausalLM" predicts the next token, "AutoModelForMaskedLM" masked ones.
        seq_len: Longest sequence, in tokens; at most what the positions of the config allow, which is the default.
        attn_implementation: Name of an attention of transformers, such as "sdpa", "eager" or "flash_attention_2". For
            architectures without "sdpa", as Gemma 2 and Mamba are, it means "eager"; the plan says so.
        overrides: Fields of the config to replace, such as {'attention_dropout': 0.1}.

    Attributes:
        network: The transformers model.
        is_pretrained: Whether its weights came from a folder.
        base_folder: That folder, or None.
        vocab_size: Rows of the embedding, which may be padded beyond the tokenizer's.

    Raises:
        ConfigError: No such folder, an unknown architecture or field, values that do not fit together.
        CheckpointError: (When weights are loaded) a parameter that the folder does not hold, or in another shape.

    Source: Wolf et al. 2020, Transformers: State-of-the-Art Natural Language Processing.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        config: Mapping[str, Any] | str | None = None,
        model_type: Literal["AutoModelForCausalLM", "AutoModelForMaskedLM"] = "AutoModelForCausalLM",
        seq_len: int | None = None,
        attn_implementation: str = "sdpa",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if "/" in attn_implementation:
            raise ConfigError(
                f"attn_implementation ('{attn_implementation}') must be a name without '/', since a kernel of the hub "
                "would be downloaded and run; set it to 'sdpa', 'eager' or 'flash_attention_2'"
            )
        device = torch.empty(0).device  # meta inside training's torch.device("meta")
        built = read_config(path, config, overrides or {}, attn_implementation)
        text = _text_config(built)
        with torch.device("meta"):
            self.network = _build_network(model_type, built)
        if path is not None:
            _take_generation_config(self.network, path)
        self._rules = _rules(self.network)
        require_rules(self.network, self._rules, random=path is None)

        self.model_type, self.is_pretrained = model_type, path is not None
        self.base_folder = None if path is None else Path(path).expanduser().absolute()
        self.vocab_size = int(text.vocab_size)
        self.seq_len = _seq_len(self.network, text, seq_len)
        self.num_layers, self.dim = int(text.num_hidden_layers), int(text.hidden_size)
        self._unit_classes = _unit_classes(self.network)
        self._router_loss, self._notes = losses_of(self.network, path, config, overrides or {})
        if built._attn_implementation != attn_implementation:
            self._notes.append(
                f"attn_implementation: '{built._attn_implementation}', as '{built.model_type}' has no "
                f"'{attn_implementation}' in transformers"
            )

        network_class = type(self.network)

        def fill(model: Any, seed: int) -> None:
            if path is None:
                fill_random(model._rules, seed)
            else:
                fill_pretrained(model, PREFIX, Path(path).expanduser(), network_class, built)

        if device.type != "meta":
            self.to_empty(device=device)
        add_weights(self, fill)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As in torch, but tied parameters stay tied, and what `to_empty` leaves as garbage is computed again."""
        ties: dict[int, list[Any]] = {}
        for place in places(self.network).values():
            ties.setdefault(id(place.tensor), []).append(place)
        was_meta = any(buffer.is_meta for buffer in self.network.buffers())
        super()._apply(fn, recurse)
        for first, *others in ties.values():
            for place in others:
                place.put(first.tensor)
        if was_meta and not any(buffer.is_meta for buffer in self.network.buffers()):
            restore_buffers(self._rules)
        return self

    def forward(
        self, inputs: Tensor | Mapping[str, Tensor], head: Head | None = None, routing: Routing | None = None
    ) -> Tensor:
        """Logits at every position.

        Args:
            inputs: Token ids (B, T) int64; or them as "input_ids", with an "attention_mask" (B, T), 1 for a token and
                0 for padding, and whatever else the transformers model takes.
            head: Called with the last hidden states (B, T, dim) and the output weight (V, dim); a loss that never
                holds all logits at once comes in here.
            routing: Gets the logits of the routers, where the model has a balance loss.

        Returns:
            Logits (B, T, V); what head returns where it is given.

        Raises:
            ConfigError: With `head`, an architecture whose logits are more than hidden states times a weight.
            ValueError: T is larger than seq_len.
        """
        tensors = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        length = tensors["input_ids"].shape[1]
        if length > self.seq_len:
            raise ValueError(
                f"sequence length ({length}) must be at most HuggingFacePretrainedModel.seq_len ({self.seq_len}); "
                "shorten the input or raise seq_len"
            )
        if head is not None:
            return self._forward_head(tensors, head, routing)
        return cast(Tensor, self._call(tensors, routing).logits)

    def router_loss(self) -> RouterLoss | None:
        """The balance loss that the config asks for with output_router_logits = True."""
        return self._router_loss

    def plan_notes(self) -> list[str]:
        """What of its config is not done, or done otherwise, a line each."""
        return self._notes

    def _call(self, tensors: Mapping[str, Tensor], routing: Routing | None) -> Any:
        flags = {} if self.model_type == "AutoModelForMaskedLM" else {"use_cache": False}
        if self._router_loss is not None:
            flags["output_router_logits"] = routing is not None
        output = self.network(**tensors, **flags, return_dict=True)
        if routing is not None:
            routing.calls.append((output.router_logits, tensors.get("attention_mask")))
        return output

    def _forward_head(self, tensors: Mapping[str, Tensor], head: Head, routing: Routing | None) -> Tensor:
        """Run the network with `head` in the place of its output projection; nothing may come after it."""
        name = type(self.network).__name__.removeprefix("FSDP")
        output = self.network.get_output_embeddings()
        if output is None or [leaf for leaf, _ in output.named_parameters()] != ["weight"]:
            raise ConfigError(
                f"{name} must end in one weight matrix for a loss of hidden states, without bias or adapter; "
                "set train.loss = @CLMCrossEntropyLoss"
            )
        results: list[Tensor] = []

        def project(hidden: Tensor) -> Tensor:
            results.append(head(hidden, output.weight))
            return results[0]

        output.forward = project
        refused = ConfigError(
            f"{name} must give the output of its last matrix as logits for a loss of hidden states, and it changes "
            "them (scaled or capped logits); set train.loss = @CLMCrossEntropyLoss"
        )
        try:
            logits = self._call(tensors, routing).logits
        except (IndexError, TypeError, ValueError) as error:
            if not results:  # before head was through: no matter of the logits
                raise
            raise refused from error
        finally:
            del output.forward
        if not results or logits is not results[0]:
            raise refused
        return cast(Tensor, logits)

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first to last."""
        return self.fsdp_units()

    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard one by one before the model itself: those that the architecture does not split.

        Embeddings stay with the root, which needs a tied one at both ends of forward.
        """
        return list(_units(self.network, self._unit_classes, self.network.get_input_embeddings()))

    def num_parameters(self) -> dict[str, int]:
        """Parameters: "total", "trainable", and "non_embedding" (see roles.num_non_embedding)."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return {
            "total": total,
            "trainable": sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad),
            "non_embedding": num_non_embedding(self),
        }

    def flops_per_token(self, seq_len: int | None = None, convention: FlopsConvention = "palm") -> float:
        """Floating point operations of forward and backward for one token of a sequence of seq_len tokens.

        See accounting.flops_per_token. Tables that are only looked up do not count; of experts, those that a token
        uses.
        """
        config = self.network.config.get_text_config()
        counts = multiplied(self.network, config)
        return flops_per_token(
            multiplied_parameters=round(sum(counts.values())),
            num_layers=self.num_layers,
            attention_dim=attention_dim(config, self.dim),
            seq_len=self.seq_len if seq_len is None else seq_len,
            convention=convention,
            partly=partial_work(self.network, counts),
        )

    def activation_bytes(self, micro_batch_size: int, seq_len: int | None = None, bytes_per_value: int = 4) -> int:
        """Estimated memory that forward keeps for backward on one rank, as of a plain transformer of these sizes.

        Of experts, what the tokens keep in those that they use.

        Args:
            micro_batch_size: Sequences per rank and forward pass.
            seq_len: Tokens per sequence; default the model's own.
            bytes_per_value: 4 for float32, 2 for bfloat16.
        """
        config = self.network.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1
        head_dim = getattr(config, "head_dim", None) or self.dim // heads
        forwards = feed_forwards(self.network, config, self.num_layers, self.dim)
        length = self.seq_len if seq_len is None else seq_len
        dropped = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")
        per_token = activation_bytes_per_token(
            num_layers=self.num_layers,
            dim=self.dim,
            kv_dim=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
            ffn_dim=round(forwards.hidden / self.num_layers),
            vocab_size=self.vocab_size,
            swiglu=forwards.gated,
            rotary=any(name.endswith("rotary_emb") for name, _ in self.network.named_modules()),
            dropout=any(getattr(config, name, 0) for name in dropped),
            scores=heads * length,
            bytes_per_value=bytes_per_value,
        )
        per_token += 2 * forwards.copies * self.dim * bytes_per_value  # what goes into each expert, and comes out
        return micro_batch_size * length * per_token


def _text_config(config: Any) -> Any:
    """The config of the language model, which may be a part of the whole."""
    try:
        text = config.get_text_config()
    except ValueError as error:  # several
        raise ConfigError(
            f"model_type ('{config.model_type}') must be an architecture with one language model: "
            f"{' '.join(str(error).split())}"
        ) from error
    lacking = [name for name in _SIZES if not isinstance(getattr(text, name, None), int)]
    if lacking:
        raise ConfigError(
            f"config ('{config.model_type}') must give {', '.join(lacking)} as a whole number; set it, or choose "
            "another architecture where it has no such field"
        )
    return text


def _rules(network: Any) -> list[Rule]:
    try:
        return initialization_rules(network)
    except Exception as error:  # the architecture's own code
        text = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"config ('{network.config.model_type}') must be of an architecture that can initialise its weights: {text}"
        ) from error


def _build_network(model_type: str, config: Any) -> Any:
    """The transformers model with this config; on the device of the context."""
    auto = getattr(transformers_module(), model_type, None)
    if model_type not in ("AutoModelForCausalLM", "AutoModelForMaskedLM") or auto is None:
        raise ConfigError(f"model_type ({model_type!r}) must be 'AutoModelForCausalLM' or 'AutoModelForMaskedLM'")
    if type(config) not in auto._model_mapping:
        raise ConfigError(
            f"model_type ('{model_type}') must fit the architecture '{config.model_type}', of which transformers has "
            "no such model; choose the other model_type or another architecture"
        )
    if config._attn_implementation == "sdpa" and not auto._model_mapping[type(config)]._supports_sdpa:
        config._attn_implementation = "eager"
    try:
        return auto.from_config(config, dtype=torch.float32, attn_implementation=config._attn_implementation)
    except Exception as error:  # each architecture checks in its own way, some by assert
        text = " ".join(str(error).split()) or type(error).__name__
        padding, rows = config.get_text_config().pad_token_id, config.get_text_config().vocab_size
        if "padding_idx" in text.lower() and isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
            raise ConfigError(f"pad_token_id ({padding}) must be below vocab_size ({rows}); set it to None") from error
        if "attn_implementation" in text:
            raise ConfigError(
                f"attn_implementation ('{config._attn_implementation}') must be one that the architecture "
                f"'{config.model_type}' supports; set it to 'eager'"
            ) from error
        raise ConfigError(f"config ('{config.model_type}') must describe a model that can be built: {text}") from error


def _take_generation_config(network: Any, path: str) -> None:
    """Keep how the folder's model likes to generate, for whom it is exported to."""
    if (Path(path).expanduser() / "generation_config.json").is_file():
        kind = transformers_module().GenerationConfig
        try:
            network.generation_config = kind.from_pretrained(str(Path(path).expanduser()), local_files_only=True)
        except Exception as error:  # whatever its reader meets
            raise ConfigError(
                f"path ('{path}') must have a generation_config.json that transformers reads, or none: "
                f"{' '.join(str(error).split())}"
            ) from error


def _seq_len(network: nn.Module, config: Any, wanted: int | None) -> int:
    longest = next(
        (
            int(value)
            for name in ("max_position_embeddings", "max_seq_len", "seq_length")
            if isinstance(value := getattr(config, name, None), int)
        ),
        None,
    )
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None and longest:
            longest = min(longest, module.num_embeddings - int(module.padding_idx) - 1)  # RoBERTa counts from there
    if wanted is None and longest is None:
        raise ConfigError(f"seq_len (None) must be given: {type(config).__name__} has no max_position_embeddings")
    if wanted is not None and wanted < 1:
        raise ConfigError(f"seq_len ({wanted}) must be at least 1; leave it out for the longest")
    if wanted is not None and longest is not None and wanted > longest:
        raise ConfigError(
            f"seq_len ({wanted}) must be at most what the positions of {type(config).__name__} allow ({longest}); "
            "shorten it, or set overrides = {'max_position_embeddings': ...} where positions are not a learned table"
        )
    return wanted if wanted is not None else cast(int, longest)


def _unit_classes(network: Any) -> frozenset[str]:
    """Class names of the modules that the network, or a model in it, does not split."""
    names: set[str] = set()
    for module in network.modules():
        names.update(getattr(module, "_no_split_modules", None) or ())
    return frozenset(names)


def _units(module: nn.Module, classes: frozenset[str], embedding: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of these classes, in order; not those that hold the embedding."""
    for child in module.children():
        is_unit = any(kind.__name__ in classes for kind in type(child).__mro__)
        if is_unit and all(inner is not embedding for inner in child.modules()):
            yield child
        else:
            yield from _units(child, classes, embedding)
