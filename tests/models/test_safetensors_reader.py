"""Any part of any tensor of a folder's safetensors files is what the library reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modlib.models.safetensors_reader import SafetensorsFolder
from modlib.runtime.errors import CheckpointError

TENSORS = {
    "a": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
    "b": torch.arange(12, dtype=torch.bfloat16).view(3, 4),
    "none": torch.empty(0, 3),
    "one": torch.tensor(3.0, dtype=torch.float16),
}


def test_parts_and_wholes_of_one_or_several_files(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    cut = tmp_path / "cut"
    cut.mkdir()
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, cut / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}
    (cut / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (tmp_path, cut):
        with SafetensorsFolder(folder) as stored:
            assert stored.weights.keys() == TENSORS.keys()
            for name, tensor in TENSORS.items():
                found = stored.weights[name].whole()
                assert torch.equal(found, tensor)
                assert found.dtype == tensor.dtype
            assert torch.equal(stored.weights["a"].values(9, 20), TENSORS["a"].view(-1)[9:20])


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^weights in {tmp_path} must be model.safetensors, or its index and"):
        SafetensorsFolder(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    whole = file.read_bytes()
    for content in (whole[:-1], b"", b"\xff" * 64, whole[:8] + b"[" + whole[9:]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"^weights in {file} cannot be read: "), SafetensorsFolder(tmp_path):
            pass
    file.write_bytes(whole)
    with SafetensorsFolder(tmp_path) as stored:
        last = max(stored.weights.values(), key=lambda weight: (weight.start, weight.whole().numel()))
        file.write_bytes(whole[:-4])  # by somebody else, while it is read
        with pytest.raises(CheckpointError, match=rf"^weights in {file} end too early; copy the folder again$"):
            last.whole()
    file.unlink()
    for name in ("x.safetensors", "y.safetensors"):
        save_file(TENSORS, tmp_path / name)
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"must be in one file of .*; it is in two$"), SafetensorsFolder(tmp_path):
        pass
