"""Whether an exported folder computes what the run's model computes, found out before the folder gets its name."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modlib.models.exported_config import config_of, write_config
from modlib.models.exported_tensors import conversions, outputs
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import PREFIX, HuggingFacePretrainedModel
from modlib.models.huggingface_config import transformers_module
from modlib.models.plain_types import plain_type
from modlib.models.safetensors_writer import Output, write_safetensors
from modlib.models.weights import named_state
from modlib.models.whole_weights import MergedWeights, ModelWeights, Weights
from modlib.nn.lora_layers import LoRALayer
from modlib.runtime.errors import ConfigError

logger = logging.getLogger("modlib")

WHOLE_BYTES = 64 << 20
"""Models up to this size are computed with their own weights."""
TOLERANCE = 1e-4
"""Of the largest logit: float32 of two orders of summation differs by a hundredth of it."""
_MODES = {"training", "gradient_checkpointing"}


def check_folder(folder: Path, model: Any, config: Any, kind: type[Any], written: Sequence[Output]) -> None:
    """Refuse a folder whose config describes another model than the run's: names, shapes, classes and settings.

    Args:
        folder: With its config.json.
        model: The run's, GPT2 or HuggingFacePretrainedModel; may be on meta.
        config: Of transformers, as it was written.
        kind: Its class in transformers.
        written: The tensors that are written.

    Raises:
        ConfigError: Names what differs.
    """
    with torch.device("meta"):
        theirs = kind(transformers_module().AutoConfig.from_pretrained(str(folder), local_files_only=True))
    problems: list[str] = []
    if isinstance(model, HuggingFacePretrainedModel):
        problems += _other_modules(model.network, theirs)
        sizes = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in named_state(model).items()}
    else:
        sizes = {output.name: output.shape for output in written}
    wanted = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    tied = set(theirs.all_tied_weights_keys) if getattr(config, "tie_word_embeddings", False) else set()
    problems += [
        f"weight {name} of {kind.__name__} must be {shape}; the run's model has {sizes.get(name, 'none')}"
        for name, shape in wanted.items()
        if name not in tied and sizes.get(name) != shape
    ]
    if problems:
        raise ConfigError(problems)


def _other_modules(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """Modules that are of another class, or have other settings, than the config says."""
    expected = dict(theirs.named_modules())
    problems = []
    for name, module in ours.named_modules():
        other = expected.get(name)
        if other is None or plain_type(module) is not type(other) or "forward" in vars(module):
            must = "nothing" if other is None else f"exactly {type(other).__name__}"
            problems.append(f"{name or 'network'} ({plain_type(module).__name__}) must be {must}, as the config says")
            continue
        settings = {key: value for key, value in _settings(module).items() if key in vars(other)}
        problems += [
            f"{name}.{key} ({value!r}) must be {vars(other)[key]!r}, as the config says"
            for key, value in settings.items()
            if vars(other)[key] != value
        ]
    return problems


def _settings(module: nn.Module) -> dict[str, Any]:
    own = set(LoRALayer.__annotations__) | _MODES
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, int | float) and key not in own and not key.startswith("_")
    }


def check_logits(folder: Path, model: Any, weights: Weights, kind: type[Any], written: Sequence[Output]) -> None:
    """Compute a few ids with the run's model and with what is written of it, both in float32 on the CPU.

    A model of at most WHOLE_BYTES is computed with its own weights, adapters beside them here and merged there, and
    read from the folder; where the folder's dtype is another than float32, from one that is written alike but for that.
    A larger GPT2 is computed as a small one of the same classes and settings with random weights. Of a larger
    HuggingFacePretrainedModel no logits are computed: it is the same class with the same config in both, which
    `check_folder` compares module by module.

    Args:
        folder: With config and weights.
        model: As for `check_folder`; one on meta gets memory.
        weights: Of the model with its adapters.
        kind: The model's class in transformers.
        written: What is in the folder.

    Raises:
        ConfigError: The logits differ.
    """
    exact = all(output.dtype in (torch.float32, torch.int64, torch.bool) for output in written)
    size = sum(tensor.nbytes for tensor in named_state(model).values())
    if size > WHOLE_BYTES:
        if not isinstance(model, GPT2):
            return
        model, exact = _small(model), False
    elif any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, tensor in named_state(model).items():
                tensor.copy_(weights.read(name))
    device = next(model.parameters()).device
    ids = torch.randint(model.vocab_size, (2, min(16, model.seq_len)), generator=torch.Generator().manual_seed(0))
    with _on_cpu(model), torch.no_grad():
        try:
            ours = model(ids.to(device)).float().cpu()
        except Exception as error:  # kernels that this machine does not have
            text = " ".join(str(error).split())
            logger.warning("the exported logits were not compared: %s cannot be computed here: %s", kind.__name__, text)
            return
        with tempfile.TemporaryDirectory() as place:
            if not exact:
                _write_alike(Path(place), model, kind)
            cache = {} if getattr(model, "model_type", None) == "AutoModelForMaskedLM" else {"use_cache": False}
            theirs = _read(folder if exact else Path(place), model, kind)(ids, **cache).logits
    scale = float(ours.abs().max())
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE * max(scale, 1e-3):  # NaN too
        raise ConfigError(
            f"logits of the exported model must be the run's, of up to {scale:.3g}; they differ by {difference:.3g}: "
            f"{type(model).__name__} computes something that transformers' {kind.__name__} does not; "
            "--plain writes its weights alone"
        )


def _write_alike(folder: Path, model: Any, kind: type[Any]) -> None:
    """The folder of this model, as the export writes it, in float32."""
    write_config(folder, config_of(model, None, None), kind, torch.float32, None)
    merged = MergedWeights(ModelWeights(model), model)
    write_safetensors(folder, outputs(model, conversions(model), merged, lambda _: torch.float32))


def _read(folder: Path, model: Any, kind: type[Any]) -> Any:
    """transformers' model of a folder, in float32, with the attention of the run's."""
    network = getattr(model, "network", None)
    read = kind.from_pretrained(
        str(folder),
        local_files_only=True,
        dtype=torch.float32,
        attn_implementation="sdpa" if network is None else network.config._attn_implementation,
    )
    return read.eval()


@contextmanager
def _on_cpu(model: nn.Module) -> Iterator[None]:
    """Eval mode, with an attention that a CPU computes, and afterwards each module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    network: Any = getattr(model, "network", None)
    chosen = getattr(getattr(network, "config", None), "_attn_implementation", None)
    if chosen not in (None, "sdpa", "eager"):
        network.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        if chosen not in (None, "sdpa", "eager"):
            network.set_attn_implementation(chosen)


def _small(model: GPT2) -> GPT2:
    """A GPT2 with few and narrow layers, otherwise as this one, with random weights."""
    norm = model.final_norm
    kv_heads = min(2, model.num_kv_heads)
    heads = kv_heads * (model.num_heads // model.num_kv_heads)
    with torch.device("cpu"):
        small = GPT2(
            vocab_size=min(64, model.vocab_size),
            seq_len=min(16, model.seq_len),
            num_layers=min(2, model.num_layers),
            num_heads=heads,
            num_kv_heads=kv_heads,
            dim=8 * heads,
            ffn_dim=min(40, model.ffn_dim),
            activation=model.activation,
            norm=partial(plain_type(norm), eps=norm.eps),
            position=model.position,
            rope_theta=model.rope_theta,
            rope_fraction=model.rope_fraction,
            bias=model.blocks[0].attention.out.bias is not None,  # type: ignore[union-attr]
            tie_embeddings=model.tie_embeddings,
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.2, generator=generator)
    return small
