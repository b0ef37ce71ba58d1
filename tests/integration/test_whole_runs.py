"""Parts that only a whole run shows: an image captioner, and a loader that ends after its epochs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modlib.cli.start.launch import app
from tests.launching_command import launch, metrics, numbers, started, wait_for_step


@pytest.mark.slow
def test_the_captioners_run_evaluates_and_shows_captions(tmp_path: Path) -> None:
    """coca.gin at a few small steps: held-out losses by term, accuracies, and captions beside the truth."""
    sizes = ["NUM_STEPS=3", "MICRO_BATCH_SIZE=8", "LOG_EVERY=1", "EVAL_EVERY=2", "CHECKPOINT_EVERY=2"]
    sizes += ["held_out/CaptionedShapes.num_samples=16", "CaptionSample.num_images=2"]
    flags = ("--runs_dir", str(tmp_path), "--name", "run")
    done = launch("coca.gin", sizes, *flags)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "run")
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    names = {name for line in lines if line["step"] == 3 for name in line}
    kinds = ("caption", "token", "image_to_text", "text_to_image")
    assert {f"val/held_out_captions/{kind}_accuracy" for kind in kinds} <= names
    assert {"val/held_out/loss", "val/held_out/captioning", "val/held_out/contrastive"} <= names
    (sample,) = [json.loads(line)["text"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    captions = sample.splitlines()
    assert len(captions) == 2
    assert all(re.fullmatch(r"right: a .*|wrong: .* \(it is a .*\)", caption) for caption in captions)


@pytest.mark.slow
@pytest.mark.parametrize("remainder", ["drop", "carry"])
def test_so_many_epochs_and_no_more_also_after_a_kill(tmp_path: Path, small_corpus: Path, remainder: str) -> None:
    """101 windows at 8 a step: 12 steps in an epoch and a rest. Killed in the second epoch, and as if it were not."""
    params = [f"DATA='{small_corpus}'", f"VAL_DATA='{small_corpus}'", "MICRO_BATCH_SIZE=8", "train.sample=None"]
    params += [f"NUM_STEPS={24 if remainder == 'drop' else 25}", f"BatchSampler.remainder='{remainder}'"]
    flags = ("--gin_file", "data/repeating.gin", "--runs_dir", str(tmp_path))
    whole = launch("debug/tiny.gin", params, *flags, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    arguments = ("debug/tiny.gin", params, *flags, "--name", "parts")
    with started(*arguments) as process:
        wait_for_step(tmp_path / "parts", 14, process)
        process.kill()
        process.wait()
    assert metrics(tmp_path / "parts")[-1]["step"] < 24, "killed too late to show anything"
    again = launch(*arguments)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert {line["attempt"] for line in metrics(tmp_path / "parts")} >= {2}


def test_more_steps_than_the_epochs_have_are_refused_before_the_run(small_corpus: Path) -> None:
    params = [f"DATA='{small_corpus}'", f"VAL_DATA='{small_corpus}'", "MICRO_BATCH_SIZE=8", "NUM_STEPS=25"]
    flags = [word for param in params for word in ("--gin_param", param)]
    words = ["--gin_file", "debug/tiny.gin", "--gin_file", "data/repeating.gin", *flags, "--dry_run"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "the steps of num_epochs (2) over 101 windows at 8 per step" in " ".join(refused.output.split())
