"""A tiny Llama as transformers saves it, and a GPT2's weights in one file."""

from __future__ import annotations

from pathlib import Path

import transformers
from safetensors.torch import save_file

from modlib.models.gpt2 import GPT2


def make(folder: Path) -> None:
    """Write huggingface_llama/ and huggingface_weights.safetensors."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "huggingface_llama")
    model = GPT2(vocab_size=64, seq_len=8, num_layers=1, num_heads=2, dim=8)
    save_file(dict(model.state_dict()), folder / "huggingface_weights.safetensors")
