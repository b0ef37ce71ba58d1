"""A warm start: only the weights, from checkpoints on any number of ranks and from single files."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modlib.checkpointing.manifest import DamagedCheckpointError
from modlib.checkpointing.model_loading import FSDPCheckpointLoading, TorchCheckpointLoading
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError, ConfigError
from tests.checkpointing.training import Run, Small, whole
from tests.workers import run_ranks


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def trained(seed: int = 0, sharded: bool = False) -> Run:
    run = Run(seed=seed, sharded=sharded)
    run.train(2)
    return run


def save_sharded(folder: Path) -> dict[str, Tensor]:
    run = trained(sharded=True)
    save(folder / "checkpoints", step=2, **run.parts)
    return weights(run.model)


def load_sharded(path: Path, loading: Any) -> dict[str, Tensor]:
    run = Run(seed=5, sharded=True)
    loading.load_model(path, run.model)
    return weights(run.model)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_warms_any_number(tmp_path: Path) -> None:
    saved = run_ranks(2, save_sharded, tmp_path)[0]
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "step-00000002"):
        model = Small()
        FSDPCheckpointLoading().load_model(path, model)
        assert same(weights(model), saved)
    for loaded in run_ranks(4, load_sharded, tmp_path, FSDPCheckpointLoading()):
        assert same(loaded, saved)


def test_only_the_named_weights_are_touched_or_needed(tmp_path: Path) -> None:
    class WithAdapter(Small):
        def __init__(self) -> None:
            super().__init__()
            self.adapter = nn.Linear(2, 2)

    run = trained()
    save(tmp_path, step=2, model=run.model)
    save_file({name: t.contiguous() for name, t in weights(run.model).items()}, tmp_path / "weights.safetensors")
    for path, loading in (
        (tmp_path, FSDPCheckpointLoading()),
        (tmp_path / "weights.safetensors", TorchCheckpointLoading()),
    ):
        model = WithAdapter()
        before = model.adapter.weight.detach().clone()
        loading.load_model(path, model, names=set(run.model.state_dict()))
        assert same({n: t for n, t in weights(model).items() if "adapter" not in n}, weights(run.model))
        assert torch.equal(model.adapter.weight, before)
        with pytest.raises(CheckpointError, match=r"2 missing from the (checkpoint|file): adapter.weight"):
            loading.load_model(path, WithAdapter())


def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, step=2, **trained().parts)
    data = tmp_path / "step-00000002" / "data-00000-00000.bin"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    model = Small()
    before = weights(model)
    with pytest.raises(DamagedCheckpointError, match="data-00000-00000"):
        FSDPCheckpointLoading().load_model(tmp_path / "step-00000002", model)
    assert same(weights(model), before)


def test_a_folder_stands_for_its_newest_undamaged_checkpoint_and_is_left_alone(tmp_path: Path) -> None:
    run = trained()
    for step in (1, 2):
        save(tmp_path, step=step, **run.parts)
    data = tmp_path / "step-00000002" / "data-00000-00000.bin"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    (tmp_path / ".replaced-step-00000003.0123abcd").mkdir()
    before = sorted(os.listdir(tmp_path))
    model = Small()
    FSDPCheckpointLoading().load_model(tmp_path, model)
    assert same(weights(model), weights(run.model))
    assert sorted(os.listdir(tmp_path)) == before


def test_more_than_the_model_has_is_refused(tmp_path: Path) -> None:
    """A deeper model, and one whose head is not the embedding: nothing is dropped in silence."""
    save(tmp_path / "deep", step=1, model=Small(num_layers=3))
    with pytest.raises(CheckpointError, match=r"2 only in the checkpoint: blocks.2.(weight, blocks.2.)?bias"):
        FSDPCheckpointLoading().load_model(tmp_path / "deep", Small(num_layers=2))
    save(tmp_path / "untied", step=1, model=Small(tied=False))
    with pytest.raises(CheckpointError, match=r"1 only in the checkpoint: head.weight"):
        FSDPCheckpointLoading().load_model(tmp_path / "untied", Small())
    tied = Small()
    save(tmp_path / "tied", step=1, model=tied)
    untied = Small(tied=False)
    FSDPCheckpointLoading().load_model(tmp_path / "tied", untied)
    assert torch.equal(untied.head.weight, tied.embedding.weight)
    assert torch.equal(untied.embedding.weight, tied.embedding.weight)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a checkpoint, or a run folder with an undamaged one"):
        FSDPCheckpointLoading().load_model(tmp_path, Small())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize(
    ("kind", "container"),
    [("safetensors", None), *((kind, key) for kind in ("zip", "old") for key in (None, "model", "state_dict"))],
)
def test_single_files(tmp_path: Path, kind: str, container: str | None, prefix: str) -> None:
    saved = weights(trained().model)
    state: Any = {f"{prefix}{name}": tensor.contiguous() for name, tensor in saved.items()}
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.bin")
    if kind == "safetensors":
        save_file(state, path)
    else:
        content = {container: state, "epoch": 3} if container else state
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    model = Small()
    TorchCheckpointLoading().load_model(path, model)
    assert same(weights(model), saved)
    assert model.head.weight is model.embedding.weight


def test_each_rank_reads_its_shards(tmp_path: Path) -> None:
    saved = weights(trained().model)
    save_file({name: t.contiguous() for name, t in saved.items()}, tmp_path / "model.safetensors")
    torch.save(saved, tmp_path / "model.pt")
    for path in (tmp_path, tmp_path / "model.pt"):
        for loaded in run_ranks(2, load_sharded, path, TorchCheckpointLoading()):
            assert same(loaded, saved)


def test_values_become_the_models_dtype_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = {name: tensor.bfloat16() for name, tensor in weights(trained().model).items()}
    torch.save(saved, tmp_path / "model.pt")
    model = Small()
    with caplog.at_level("INFO", logger="modlib"):
        TorchCheckpointLoading().load_model(tmp_path / "model.pt", model)
    assert same(weights(model), {name: tensor.float() for name, tensor in saved.items()})
    assert "cast from bfloat16 to float32" in caplog.text


def test_all_differences_are_named_with_the_nearest_names(tmp_path: Path) -> None:
    state = weights(trained().model)
    state["blocks.0.wieght"] = state.pop("blocks.0.weight")
    state["norm.weight"] = torch.ones(13)
    state["mask"] = torch.ones(2)
    state["head.weight"] = state["embedding.weight"] + 1
    torch.save(state, tmp_path / "model.pt")
    model = Small()
    before = weights(model)
    with pytest.raises(CheckpointError) as caught:
        TorchCheckpointLoading().load_model(tmp_path / "model.pt", model)
    text = str(caught.value)
    assert "must be Small's; choose the model that was saved, or name what it does not need in" in text
    assert "1 missing from the file: blocks.0.weight (the file has blocks.0.wieght)" in text
    assert "2 only in the file: blocks.0.wieght, mask" in text
    assert "1 of another shape: norm.weight (file (13,), model (12,))" in text
    assert "1 tied in the model but different in the file: embedding.weight and head.weight" in text
    assert same(weights(model), before)


def test_names_that_the_model_does_not_need_can_be_ignored(tmp_path: Path) -> None:
    state = weights(trained().model)
    torch.save(state | {"blocks.0.mask": torch.ones(2)}, tmp_path / "model.pt")
    TorchCheckpointLoading(ignore=[r".*\.mask"]).load_model(tmp_path / "model.pt", Small())
    with pytest.raises(ConfigError, match=r"ignore \('\('\) must be a regular expression"):
        TorchCheckpointLoading(ignore=["("])


class Malicious:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, zipped: bool) -> None:
    content = {"weight": torch.ones(2), "x": Malicious(tmp_path / "trace")}
    torch.save(content, tmp_path / "model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds something that would run code when it is loaded; save the state"):
        TorchCheckpointLoading().load_model(tmp_path / "model.bin", Small())
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "trace")))
    with pytest.raises(CheckpointError):
        TorchCheckpointLoading().load_model(tmp_path / "plain.pt", Small())
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("weights.npz", b"", "must be a .safetensors, .bin, .pt, .pth, .ckpt file or a folder with one"),
        ("model.safetensors", b"1234", "cannot be read"),
        ("model.bin", b"", "cannot be read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(text)):
        TorchCheckpointLoading().load_model(tmp_path / name, Small())


def test_a_folder_without_weights_and_a_file_without_a_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold model.safetensors, its index, or pytorch_model.bin"):
        TorchCheckpointLoading().load_model(tmp_path, Small())
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(
        CheckpointError,
        match=r"index.json must have 'weight_map'; its weight_map must say which file holds each tensor",
    ):
        TorchCheckpointLoading().load_model(tmp_path, Small())
    torch.save({"weight": torch.ones(2), "epoch": 3}, tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match=r"it holds beside tensors epoch \(int\)"):
        TorchCheckpointLoading().load_model(tmp_path / "mixed.pt", Small())
    torch.save({"norm.bias": torch.ones(2), "_orig_mod.norm.bias": torch.ones(2)}, tmp_path / "twice.pt")
    with pytest.raises(CheckpointError, match=r"must hold norm.bias once; two of its names stand for it"):
        TorchCheckpointLoading().load_model(tmp_path / "twice.pt", Small())
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"must hold a state dict \(name -> tensor\).*it holds list"):
        TorchCheckpointLoading().load_model(tmp_path / "list.pt", Small())


def load_where_one_rank_sees_nothing(path: Path) -> str:
    model = Run(seed=5, sharded=True).model
    with pytest.raises(CheckpointError) as caught:
        TorchCheckpointLoading().load_model(path if torch.distributed.get_rank() == 0 else path / "none", model)
    return str(caught.value)


def test_what_one_rank_cannot_read_is_raised_on_all(tmp_path: Path) -> None:
    save_file({name: t.contiguous() for name, t in weights(trained().model).items()}, tmp_path / "model.safetensors")
    for text in run_ranks(2, load_where_one_rank_sees_nothing, tmp_path):
        assert "none" in text
