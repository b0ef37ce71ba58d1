"""A checkpoint of tensors that are read while they are written is that of the same model in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modlib.checkpointing.raw_writer import bytes_of
from modlib.checkpointing.streamed import StreamedTensor, save_streamed
from modlib.checkpointing.warm_start import load_weights
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError, NonFiniteError


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(700, 900), nn.Linear(900, 3), nn.LayerNorm(3))


def part(tensor: Tensor, begin: int, end: int) -> np.ndarray:
    return bytes_of(tensor.detach())[begin:end]


def streamed(built: nn.Module) -> list[StreamedTensor]:
    return [
        StreamedTensor(name, tuple(tensor.shape), tensor.dtype, partial(part, tensor))
        for name, tensor in built.state_dict().items()
    ]


def test_it_holds_what_a_save_of_the_model_holds(tmp_path: Path) -> None:
    built = model()
    whole = save(tmp_path / "whole", step=0, model=built)
    parts = save_streamed(tmp_path / "parts", step=0, tensors=streamed(built), info={"imported": "x"})
    names = sorted(file.name for file in whole.path.glob("data-*"))
    assert names == sorted(file.name for file in parts.path.glob("data-*"))
    for name in names:
        assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes()
    fresh = {name: torch.zeros_like(tensor) for name, tensor in built.state_dict().items()}
    assert load_weights(parts.path, fresh) == parts.path
    assert all(torch.equal(fresh[name], tensor) for name, tensor in built.state_dict().items())


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(begin: int, end: int) -> np.ndarray:
        raise CheckpointError("weights in x end too early")

    tensors = streamed(model())
    tensors[1] = StreamedTensor("0.bias", (900,), torch.float32, broken)
    with pytest.raises(CheckpointError, match=r"^weights in x end too early$"):
        save_streamed(tmp_path, step=0, tensors=tensors)
    tensors[1] = StreamedTensor("0.bias", (900,), torch.float32, partial(part, torch.full((900,), torch.inf)))
    with pytest.raises(NonFiniteError, match=r"^0\.bias must be finite to be saved; it holds NaN or Inf"):
        save_streamed(tmp_path, step=0, tensors=tensors)
    assert not list(tmp_path.iterdir())
