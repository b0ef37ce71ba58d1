"""What a user gets wrong, through launch.py: the exit code, and a text that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from modlib.cli.start.launch import app
from modlib.data.packed.writer import PackedFileWriter
from tests.launching_command import launch, started, wait_for_step

TINY = "debug/tiny.gin"
pytestmark = pytest.mark.usefixtures("embedded_corpus")


def refused(params: Sequence[str] = (), *flags: str, gin_file: str = TINY) -> tuple[int, str]:
    """(exit code, everything printed) of launch.py with these parameters."""
    words = ["--gin_file", gin_file]
    for param in params:
        words += ["--gin_param", param]
    result = CliRunner().invoke(app, [*words, *flags])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def packed(path: Path, *, tokens: int, largest: int = 4095, vocab_size: int = 4096, fingerprint: str = "") -> Path:
    ids = np.random.default_rng(0).integers(0, largest, tokens)
    ids[-1] = largest
    with PackedFileWriter(path, vocab_size=vocab_size, tokenizer_fingerprint=fingerprint) as writer:
        writer.write(ids, num_bytes_of_text=4 * tokens)
    return path


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (["Local.num_proceses=2"], "did you mean 'num_processes'"),
        (["GTP2.dim=64"], "did you mean"),
        (["vaildation/Evaluator.every=5"], "validation"),
        (["LEARNING_RATE=1e-3"], "LEARNING_RATE"),
        (["GPT2.dim='64'"], "GPT2.dim"),
        (["GPT2.activation=gelu"], "quotes"),
        (["GPT2.vocab_size=%gin.REQUIRED"], "GPT2.vocab_size"),
    ],
)
def test_a_wrong_binding_is_refused_by_number_of_its_flag(params: list[str], expected: str) -> None:
    code, text = refused(params, "--dry_run")
    assert code == 2
    assert "--gin_param #1" in text
    assert expected.lower() in text.lower()
    assert "nothing was started" in text


def test_all_problems_are_reported_at_once() -> None:
    code, text = refused(["GPT2.dmi=64", "AdamW.lr='x'", "NUM_STEP=4"], "--dry_run")
    assert code == 2
    assert "3 config errors" in text


def test_unknown_file_names_where_it_looked_and_what_is_similar() -> None:
    code, text = refused(gin_file="quickstrat.gin")
    assert code == 2
    assert "quickstart.gin" in text
    assert "gin_configs" in text


def test_include_cycle_shows_the_chain(tmp_path: Path) -> None:
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    code, text = refused(gin_file=str(tmp_path / "a.gin"))
    assert code == 2
    assert re.search(r"cycle.*a\.gin.*b\.gin.*a\.gin", text, re.IGNORECASE | re.DOTALL)


@pytest.mark.parametrize("name", ["../x", "a/b", "a;rm", "$(x)", ".hidden", "x" * 65, ""])
@pytest.mark.parametrize("flags", [(), ("--dry_run",)])
def test_a_name_with_a_path_in_it_is_refused(name: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    code, text = refused([], "--name", name, "--runs_dir", str(tmp_path / "runs"), *flags)
    assert code == 2
    assert "it is a name, not a path: choose the place with --runs_dir" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("param", "problem", "origin"),
    [
        ("CHECKPOINT_EVERY=0", "every (0) must be at least 1; set k", "SaveKMostRecent.every = 0 was set at"),
        ("EVAL_EVERY=0", "every (0) must be at least 1 step", "validation/Evaluator.every = 0 was set at"),
        ("MICRO_BATCH_SIZE=0", "micro_batch_size (0) must be at least 1", "train.micro_batch_size = 0 was set at"),
        ("GradientClipper.max_norm=0.0", "max_norm (0.0) must be above 0", "GradientClipper.max_norm = 0.0 was set at"),
        ("TextSample.top_k=0", "top_k (0) must be at least 1", "TextSample.top_k = 0 was set at"),
        ("ComposedInitializer.std=-1.0", "std (-1.0) must be", "ComposedInitializer.std = -1.0 was set at"),
        ("ComposedInitializer.rules={'x': 1.0}", "rules ('x') must match the whole name of a parameter", ""),
        ("LR=-1", "Invalid learning rate: -1.0", "AdamW.lr = -1.0 was set at"),
        ("train.global_batch_size=10", "global_batch_size (10) must be", "train.global_batch_size = 10 was set at"),
        (
            "train.subscribers=[@AdamW]",
            "a subscriber must take run_path",
            "train.subscribers = [@AdamW] was set",
        ),
    ],
)
def test_a_wrong_value_of_any_part_is_found_before_the_run_with_its_origin(
    param: str, problem: str, origin: str
) -> None:
    code, text = refused([param], "--dry_run")
    assert code == 2
    assert problem in text
    assert origin in text
    assert not origin or re.search(rf"{re.escape(origin)}.*--gin_param #1", text)


@pytest.mark.parametrize(
    ("param", "problem"),
    [
        ("train.model=@GPT2()", "train.model = @GPT2() is the result of a component, expected a component, not what"),
        ("train.model=@AdamW", "train.model = @AdamW is a component, expected one that is called with no argument"),
        ("train.optimizer=@GPT2", "expected one that is called with 1 argument; GPT2 takes none"),
        ("GPT2.norm=@GPT2", "expected one that is called with 1 argument; GPT2 takes none"),
    ],
)
def test_a_component_in_the_place_of_another_kind(param: str, problem: str) -> None:
    code, text = refused([param], "--dry_run")
    assert code == 2
    assert problem in text
    assert "--gin_param #1" in text


def test_heads_that_do_not_divide_dim_name_the_nearest_and_the_place() -> None:
    code, text = refused(["GPT2.num_heads=5"], "--dry_run")
    assert code == 2
    assert "num_heads (5) must divide dim (32); nearest valid: 4" in text
    assert "GPT2.num_heads = 5" in text
    assert "--gin_param #1" in text


def test_batch_that_does_not_divide_names_the_nearest() -> None:
    code, text = refused(["train.global_batch_size=10"], "--dry_run")
    assert code == 2
    assert "global_batch_size (10) must be a multiple of micro_batch_size (4) x 1 processes = 4" in text
    assert "nearest valid: 8 or 12" in text


def test_data_that_is_neither_a_corpus_nor_a_file() -> None:
    code, text = refused(["DATA='stdlib:trian'"], "--dry_run")
    assert code == 2
    assert "did you mean 'stdlib:train'" in text


def test_truncated_token_file(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.packed", tokens=4000)
    path.write_bytes(path.read_bytes()[:-7])
    code, text = refused([f"DATA='{path}'"], "--dry_run")
    assert code == 3
    assert str(path) in text
    assert f"train/PackedDataset.path = '{path}' was set at data/packed.gin:5" in text
    assert "configurable" not in text, "gin's own words"


def test_token_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.packed", tokens=4000, largest=5000, vocab_size=6000)
    code, text = refused([f"DATA='{path}'"], "--dry_run")
    assert code == 3
    assert "(5000) must be below the model's vocab_size (4096)" in text
    assert text.count("GPT2.vocab_size = 4096 was set at") == 1


def test_training_and_validation_of_different_tokenizers(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.packed", tokens=4000, fingerprint="f" * 64)
    code, text = refused([f"DATA='{path}'"], "--runs_dir", str(tmp_path / "runs"))
    assert code == 3
    assert "tokenizer" in text
    assert "ffffffffffff" in text


def test_dataset_shorter_than_one_batch(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.packed", tokens=3 * 32 + 1)
    code, text = refused([f"DATA='{path}'"], "--dry_run")
    assert code == 3
    assert "windows in the dataset (3) must be at least one global batch (4" in text


def test_runs_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, text = refused([], "--runs_dir", str(tmp_path / "file" / "runs"))
    assert code == 4
    assert "must be a folder that can be written" in text
    assert "choose another with --runs_dir" in text


def test_disk_too_small_for_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    code, text = refused([], "--runs_dir", str(tmp_path / "runs"))
    assert code == 4
    assert "1000 B) must be at least one checkpoint (1." in text


def test_run_that_exists_with_another_config_shows_the_difference_and_two_ways_out(tmp_path: Path) -> None:
    flags = ("--name", "run", "--runs_dir", str(tmp_path))
    assert refused(["NUM_STEPS=1"], *flags)[0] == 0
    code, text = refused(["NUM_STEPS=1", "LR=5e-3"], *flags)
    assert code == 2
    assert "run 'run' exists with a different config" in text
    assert re.search(r"AdamW\.lr.*0\.001 -> 0\.005", text)
    assert "another --name" in text
    assert "set these values back" in text
    assert refused(["NUM_STEPS=1", "LOG_EVERY=5"], *flags)[0] == 0  # changes no number


def test_resume_never_and_must(tmp_path: Path) -> None:
    flags = ("--name", "run", "--runs_dir", str(tmp_path))
    code, text = refused(["NUM_STEPS=1"], *flags, "--resume", "must")
    assert code == 4
    assert "must have a checkpoint with --resume must" in text
    assert refused(["NUM_STEPS=1"], *flags)[0] == 0
    code, text = refused(["NUM_STEPS=1"], *flags, "--resume", "never")
    assert code == 4
    assert "must be new with --resume never" in text


@pytest.mark.slow
def test_a_second_process_in_the_same_run_folder(tmp_path: Path) -> None:
    arguments = (TINY, ["NUM_STEPS=100000"], "--runs_dir", str(tmp_path), "--name", "run")
    with started(*arguments) as process:
        wait_for_step(tmp_path / "run", 1, process)
        second = launch(*arguments)
        assert process.poll() is None, "the first one was disturbed"
    assert second.returncode == 4
    assert f"process {process.pid} on" in second.stderr
    assert "must have one trainer at a time" in second.stderr


def test_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    flags = ("--runs_dir", str(tmp_path))
    assert refused(["NUM_STEPS=2"], "--name", "small", *flags)[0] == 0
    assert refused(["NUM_STEPS=2", "GPT2.dim=64"], "--name", "large", *flags)[0] == 0
    shutil.rmtree(tmp_path / "large" / "checkpoints")
    shutil.copytree(tmp_path / "small" / "checkpoints", tmp_path / "large" / "checkpoints")
    state = json.loads((tmp_path / "large" / "run.json").read_text())
    (tmp_path / "large" / "run.json").write_text(json.dumps(state | {"status": "stopped"}))
    code, text = refused(["NUM_STEPS=2", "GPT2.dim=64"], "--name", "large", *flags)
    assert code == 4
    assert "must be the configuration that step-00000002 was trained with" in text


def test_data_that_changed_since_the_checkpoint(tmp_path: Path) -> None:
    path = packed(tmp_path / "data.packed", tokens=4000)
    params = [f"DATA='{path}'", f"VAL_DATA='{path}'"]
    flags = ("--name", "run", "--runs_dir", str(tmp_path / "runs"))
    assert refused([*params, "NUM_STEPS=2"], *flags)[0] == 0
    path.unlink()
    packed(path, tokens=4000, largest=4094)
    run_json = tmp_path / "runs" / "run" / "run.json"
    run_json.write_text(json.dumps(json.loads(run_json.read_text()) | {"status": "stopped"}))
    code, text = refused([*params, "NUM_STEPS=2"], *flags)
    assert code == 3
    assert f"contents of {path}, data of train (SHA-256 " in text
    assert "must be what the checkpoint of step 2 read" in text
    assert "start a new run with --name" in text
