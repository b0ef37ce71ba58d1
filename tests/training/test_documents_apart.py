"""Documents kept apart in training: on several ranks, compiled, replayed, and refused where a part cannot."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from typer.testing import CliRunner

from modlib.cli.start.launch import app
from modlib.config import load
from modlib.data.batches.batch import Batch
from modlib.data.batches.fingerprint import batch_fingerprint
from modlib.distributed.clipping import GradientClipper
from modlib.distributed.compilation import compile_blocks
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.runtime.run_folder import RunFolder
from modlib.training.building import build_experiment
from modlib.training.data_loading import build_loader
from modlib.training.parts import assemble
from modlib.training.plan import make_plan
from modlib.training.replay import replay
from modlib.training.step import update
from tests.workers import run_ranks

VOCAB, LENGTH, ROWS = 59, 16, 8
LOSSES: dict[str, Any] = {"whole": CLMCrossEntropyLoss, "chunked": partial(ChunkedCLMCrossEntropyLoss, num_chunks=2)}


def batch(rows: slice) -> Batch:
    """Documents of random lengths, whose last token has no target."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    targets = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    begins = torch.rand(ROWS, LENGTH, generator=generator) < 0.3
    begins[:, 0] = False
    targets[:, :-1][begins[:, 1:]] = -100
    inputs = {"input_ids": tokens, "document_ids": begins.cumsum(1).int()}
    return {name: value[rows] for name, value in inputs.items()}, targets[rows]


def train_on_ranks(
    position: str, loss: str, *, precision: str = "float32", compiled: bool = False, steps: int = 3
) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """(loss, norm) of each step and all parameters in one vector."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    with torch.device("meta"):
        model = GPT2(vocab_size=VOCAB, seq_len=LENGTH, num_layers=2, num_heads=2, dim=32, position=position)  # type: ignore[arg-type]
    if compiled and size > 1:
        compile_blocks(list(model.blocks))
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), precision)
    model.to_empty(device="cpu")
    ComposedInitializer()(model, 7)
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=1e-3, eps=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    parts = assemble(model, LOSSES[loss](), optimizer, scheduler, GradientClipper, world, precision, compiled)
    lines = []
    for step in range(steps):
        micro = ROWS // size // 2
        own = [slice((number * size + rank) * micro, (number * size + rank + 1) * micro) for number in range(2)]
        result = update(parts, [batch(rows) for rows in own], step)
        lines.append((result.mean_loss(), float(result.grad_norm)))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return lines, torch.cat([parameter.detach().flatten() for parameter in whole])


@pytest.mark.slow
@pytest.mark.parametrize(("position", "loss"), [("learned", "whole"), ("rotary", "chunked")])
def test_sharded_equals_single(position: str, loss: str) -> None:
    lines, parameters = train_on_ranks(position, loss)
    for ranks_lines, ranks_parameters in run_ranks(2, train_on_ranks, position, loss):
        for single, sharded in zip(lines, ranks_lines, strict=True):
            assert sharded == pytest.approx(single, abs=1e-5)
        assert torch.allclose(ranks_parameters, parameters, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_bfloat16_on_ranks_and_in_one_process(position: str) -> None:
    reference, _ = train_on_ranks(position, "whole")
    alone = train_on_ranks(position, "whole", precision="bfloat16")
    for lines, parameters in [alone, *run_ranks(2, train_on_ranks, position, "whole", precision="bfloat16")]:
        assert parameters.dtype == torch.float32
        assert lines != reference
        assert [line[0] for line in lines] == pytest.approx([line[0] for line in reference], rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_compiled_equals_eager(position: str) -> None:
    lines, parameters = train_on_ranks(position, "whole")
    alone = train_on_ranks(position, "whole", compiled=True)
    on_ranks = run_ranks(2, train_on_ranks, position, "whole", compiled=True, timeout_s=240)
    for compiled_lines, compiled_parameters in [alone, *on_ranks]:
        for eager, compiled in zip(lines, compiled_lines, strict=True):
            assert compiled == pytest.approx(eager, abs=1e-4)
        assert torch.allclose(compiled_parameters, parameters, atol=1e-4)


def test_a_batch_of_documents_is_replayed(tmp_path: Path) -> None:
    config = load(["debug/tiny.gin", "data/intra_document_masking.gin"], ["SEQ_LEN=4096", "MICRO_BATCH_SIZE=16"])
    experiment = build_experiment(config)
    run = RunFolder(tmp_path / "one")
    run.create()
    found = replay(run, config, experiment, 3)
    assert isinstance(found.inputs, dict)
    assert int(found.inputs["document_ids"].max()) > 0
    with build_loader(experiment, found.dataset, experiment.collate(), found.layout, 0) as loader:
        assert found.fingerprint == batch_fingerprint(next(loader.iterate(2)))


def test_the_plan_counts_the_mask() -> None:
    def memory(*files: str) -> dict[str, int]:
        config = load(["debug/tiny.gin", *files], ["SEQ_LEN=256", "MICRO_BATCH_SIZE=4", "train.compile=False"])
        config.activate()
        return make_plan(build_experiment(config), config, 1).memory_per_rank_bytes

    plain, apart = memory(), memory("data/intra_document_masking.gin")
    assert apart == plain | {"activations": plain["activations"] + 4 * 256 * 256 * 4}


@pytest.mark.parametrize(
    ("knobs", "part"),
    [
        (["--gin_file", "models/huggingface.gin"], "HuggingFacePretrainedModel"),
        (["--gin_param", "train.collate=@MaskedLMCollator", "--gin_param", "MaskedLMCollator.mask_id=1",
          "--gin_param", "MaskedLMCollator.vocab_size=4096"], "MaskedLMCollator"),
    ],
)  # fmt: skip
def test_a_part_that_would_mix_them_up_is_refused_on_the_login_node(knobs: list[str], part: str) -> None:
    if part == "HuggingFacePretrainedModel":
        pytest.importorskip("transformers")
    knobs = [*knobs, "--gin_param", "train/PackedDataset.intra_document_masking=True"]
    result = CliRunner().invoke(app, ["--gin_file", "debug/tiny.gin", *knobs, "--dry_run"])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert (
        f"train/PackedDataset.intra_document_masking (True) must be False with {part}, which takes no document_ids; "
        "leave it out, or use a model and a collator that do: GPT2, LMCollator"
    ) in said
    assert "train/PackedDataset.intra_document_masking = True was set at --gin_param #" in said


@pytest.mark.parametrize("packing", ["in_order", "best_fit"])
def test_the_plan_says_how_much_is_padding(packing: str) -> None:
    flags = ["--gin_file", "debug/tiny.gin", "--gin_file", "data/packed_documents.gin"]
    flags += ["--gin_param", f"PACKING='{packing}'", "--gin_param", "SEQ_LEN=1024", "--gin_param", "MICRO_BATCH_SIZE=1"]
    result = CliRunner().invoke(app, [*flags, "--dry_run"])
    assert result.exit_code == 0, result.output
    config = load(["debug/tiny.gin", "data/packed_documents.gin"], ["SEQ_LEN=1024", f"PACKING='{packing}'"])
    config.activate()
    padding = build_experiment(config).dataset().padding
    assert 0 < padding < 0.2
    assert f"{padding:.2%} of the windows is padding" in " ".join(result.output.replace("│", " ").split())
