"""The plan and the banner: the numbers a person checks before a run."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from modlib.tracking.banner import start_banner
from modlib.tracking.run_plan import Plan

PLAN = Plan(
    run_name="quickstart-1a2b3c4d",
    config_hash="1a2b3c4d" * 8,
    resolved={
        "AdamW.lr": 6e-4,
        "AdamW.betas": (0.9, 0.95),
        "t.model": "@GPT2",
        "x.inf": math.inf,
        "x.p": Path("a"),
    },
    num_steps=600,
    tokens_per_step=8192,
    world_size=2,
    global_batch_size=32,
    micro_batch_size=8,
    grad_accum_steps=2,
    seq_len=256,
    parameters={"total": 4_275_200, "trainable": 4_000_000, "non_embedding": 3_161_088},
    parameter_table=[("token_embedding", 1_048_576), ("4 x attention", 1_052_672)],
    flops_per_token=28e6,
    memory_per_rank_bytes={"parameters": 2**23, "gradients": 2**23, "optimizer": 2**24, "activations": 2**28},
    checkpoint_bytes=49 * 2**20,
    learning_rates=[6e-4 * (1 - step / 600) for step in range(600)],
    roles=["matrix: 3.2M in 16 parameters, weight decay 0.1", "bias: 9k in 16 parameters, no weight decay"],
    dataset={"path": "stdlib:train", "num_tokens": 6_100_000, "num_documents": 1234},
    device="cpu",
    num_threads=1,
    peak_flops=152e9,
    peak_source="measured matmul peak (float32, 1 thread)",
    outputs={"run folder": Path("runs/q"), "metrics": Path("runs/q/metrics.jsonl")},
    disk_free_bytes=80 * 2**30,
    versions={"modlib": "0.1.0", "torch": "2.13.0"},
    notes=("the corpus is made first",),
)


def shown(plan: Plan, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(width=width, file=io.TextIOWrapper(raw, encoding=encoding), color_system=None)
    console.print(start_banner(plan))
    console.file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 120])
def test_every_number_is_in_the_banner(width: int) -> None:
    text = shown(PLAN, width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.replace("│", " ").split())
    for expected in [
        "quickstart-1a2b3c4d",
        "token_embedding 1,048,576 24.5%",
        "4 x attention 1,052,672 24.6%",
        "total 4,275,200 100.0%",
        "trainable 4,000,000 93.6%",
        "non-embedding 3,161,088 73.9%",
        "8,192 = 8 sequences x 256 tokens x 2 accumulation steps x 2 ranks",
        "steps 600",
        "4,915,200 = 4.92M, 0.806 epochs, 1.15 per parameter",
        "data stdlib:train, 6,100,000 tokens, 1,234 documents",
        "138 TFLOP in total, 28 MFLOP per token (6N + attention, as in PaLM)",
        "about 18m 52s if training reaches 40% of the peak",
        "about 288 MiB: parameters 8 MiB, gradients 8 MiB, optimizer 16 MiB, activations 256 MiB",
        "checkpoint 49 MiB; 80 GiB free on the disk",
        "2 x cpu, 1 thread each, float32, 152 GFLOP/s per rank (measured matmul peak (float32, 1 thread))",
        "run folder runs/q",
        "metrics runs/q/metrics.jsonl",
        "config hash 1a2b3c4d1a2b3c4d",
        "versions modlib 0.1.0, torch 2.13.0",
        "note the corpus is made first",
        "optimizer matrix: 3.2M in 16 parameters, weight decay 0.1 bias: 9k in 16 parameters, no weight decay",
    ]:
        assert expected in words
    assert "learning rate over steps" in text
    assert "0.0006 ┤█" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_plain_characters(encoding: str) -> None:
    text = shown(PLAN, 80, encoding)
    assert text.isascii()
    assert "0.0006 +#" in text


def test_what_is_not_known_is_left_out() -> None:
    plan = dataclasses.replace(
        PLAN, peak_flops=None, dataset={"path": "stdlib:train", "note": "made on the first run"}, learning_rates=(),
        parameter_table=(), disk_free_bytes=None, versions={}, notes=(), outputs={}, run_name="", num_threads=None,
    )  # fmt: skip
    text = shown(plan, 80)
    assert "epochs" not in text
    assert "learning rate" not in text
    assert "per rank (" not in text
    assert "stdlib:train, made on the first run" in text
    assert plan.estimated_seconds is None
    assert plan.num_epochs is None


def test_a_resumed_run_says_what_is_done() -> None:
    assert "600, of which 200 are done" in shown(dataclasses.replace(PLAN, start_step=200), 80)


def test_the_plan_as_json() -> None:
    text = json.dumps(PLAN.to_json(), allow_nan=False)
    plan = json.loads(text)
    assert plan["parameters"] == {"total": 4_275_200, "trainable": 4_000_000, "non_embedding": 3_161_088}
    assert plan["flops_per_token"] == 28e6
    assert plan["tokens_per_step"] == 8192
    assert plan["num_steps"] == 600
    assert plan["num_tokens"] == 4_915_200
    assert plan["checkpoint_bytes"] == 49 * 2**20
    assert set(plan["memory_per_rank_bytes"]) == {"parameters", "gradients", "optimizer", "activations"}
    assert plan["config_hash"] == "1a2b3c4d" * 8
    assert plan["resolved"] == {
        "AdamW.lr": 6e-4,
        "AdamW.betas": [0.9, 0.95],
        "t.model": "@GPT2",
        "x.inf": "inf",
        "x.p": "a",
    }
    assert (plan["world_size"], plan["global_batch_size"]) == (2, 32)
    assert (plan["micro_batch_size"], plan["grad_accum_steps"]) == (8, 2)
    assert len(plan["learning_rates"]) == 600
    assert plan["dataset"]["path"] == "stdlib:train"
    assert plan["num_flops"] == pytest.approx(28e6 * 4_915_200)
    assert plan["num_epochs"] == pytest.approx(4_915_200 / 6_100_000)
    assert plan["estimated_seconds"] == pytest.approx(28e6 * 4_915_200 / (2 * 152e9 * 0.4))
    assert plan["device_hours"] == pytest.approx(plan["estimated_seconds"] * 2 / 3600)
    assert plan["outputs"] == {"run folder": "runs/q", "metrics": "runs/q/metrics.jsonl"}


def test_mfu_is_a_share_or_nothing() -> None:
    assert PLAN.mfu(5e3) == pytest.approx(28e6 * 5e3 / 304e9)
    assert PLAN.mfu(3 * 304e9 / 28e6) is None
    assert dataclasses.replace(PLAN, peak_flops=None).mfu(5e3) is None
