"""Safetensors written tensor by tensor are the bytes that the library writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modlib.models.safetensors_writer import Output, write_safetensors
from modlib.runtime.errors import ConfigError

TENSORS = {
    "b.weight": torch.arange(12.0).view(3, 4),
    "a.weight": torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "ids": torch.arange(3),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "mask": torch.tensor([True, False]),
    "ä": torch.ones(1, dtype=torch.float16),
}


def by_rows(tensor: Tensor) -> Iterator[Tensor]:
    yield from tensor.split(2) if tensor.ndim else [tensor]


def outputs(tensors: dict[str, Tensor]) -> list[Output]:
    return [Output(name, tuple(t.shape), t.dtype, partial(by_rows, t)) for name, t in tensors.items()]


def test_the_bytes_are_the_librarys(tmp_path: Path) -> None:
    write_safetensors(tmp_path, outputs(TENSORS))
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_large_models_are_cut_into_files(tmp_path: Path) -> None:
    write_safetensors(tmp_path, outputs(TENSORS), most_bytes=50)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    for name, tensor in TENSORS.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)
    assert index["weight_map"]["b.weight"] == files[0]


def test_values_are_cast_where_another_dtype_is_wanted(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 1 / 3])
    write_safetensors(tmp_path, [Output("x", (2,), torch.bfloat16, lambda: iter([values]))])
    assert torch.equal(load_file(tmp_path / "model.safetensors")["x"], values.bfloat16())


def test_a_dtype_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^weight x \(complex128\) must be of a dtype that safetensors has; name --d"
    ):
        write_safetensors(tmp_path, [Output("x", (1,), torch.complex128, lambda: iter([]))])
