"""`modlib generate`, on a run that was really trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from typer.testing import CliRunner

from modlib.cli.main import app
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.runtime.logs import stop_logging
from tests.launching_command import launch

pytestmark = pytest.mark.slow  # each asks a run that was trained

TINY = "debug/tiny.gin"
PROMPT = "def __init__(self"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of debug/tiny.gin, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("runs")
    done = launch(TINY, ["NUM_STEPS=2", "CHECKPOINT_EVERY=1", "LR=0.1"], "--runs_dir", str(folder), "--name", "tiny")
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """The run, to be spoiled."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    yield
    stop_logging()


def generate(*words: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["generate", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_writes_the_runs_own_sample_alone_on_stdout_and_changes_nothing(trained: Path) -> None:
    sample = json.loads((trained / "run.json").read_text())["sample"]
    assert sample.startswith(PROMPT)
    before = files(trained)
    command = [sys.executable, "-c", "from modlib.cli.main import main; main()", "generate", str(trained)]
    words = ["--prompt", PROMPT, "--max_new_tokens", "8"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, sample + "\n", "")
    assert files(trained) == before


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_end_of_a_run_names_it_only_where_a_tokenizer_made_the_data(with_tokenizer: bool, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be: " * 100)
    dataset = {"path": f"'{text}'"} if with_tokenizer else {"num_samples": 64, "vocab_size": 64}
    name = "CharacterDataset" if with_tokenizer else "DummyDataset"
    params = [f"{name}.{key}={value}" for key, value in {**dataset, "seq_len": 32}.items()]
    params += [f"train.dataset=@{name}", "train.evaluators=[]", "train.sample=None", "NUM_STEPS=1"]
    done = launch(TINY, params, "--runs_dir", str(tmp_path / "runs"), "--name", "run")
    assert done.returncode == 0, done.stderr
    assert ("modlib generate" in done.stderr) == with_tokenizer


def test_sampling_options_reach_the_sampler(trained: Path) -> None:
    def text(*words: str) -> str:
        return generate(trained, "--prompt", PROMPT, "--max_new_tokens", "12", *words).stdout

    greedy = text("--temperature", "0")
    assert greedy == text("--temperature", "0", "--seed", "3")
    assert text("--top_k", "1") == greedy
    assert text("--top_p", "1e-9") == greedy
    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")
    assert text("--top_k", "0") != text("--top_k", "50")
    assert generate(trained, "--prompt", PROMPT, "--max_new_tokens", "0").stdout == PROMPT + "\n"


def test_a_text_ends_with_the_token_named_or_that_of_the_datas_documents(run_copy: Path, tmp_path: Path) -> None:
    words = "--prompt", PROMPT, "--temperature", "0", "--max_new_tokens", "12"
    tokenizer = load_tokenizer("stdlib:train")
    first = generate(run_copy, *words, "--max_new_tokens", "1").stdout.removesuffix("\n").removeprefix(PROMPT)
    (stop,) = (number for number in range(tokenizer.vocab_size) if tokenizer.decode([number]) == first)
    begin = PROMPT + "\n"
    assert generate(run_copy, *words).stdout != begin
    token = tokenizers.Tokenizer.from_file(str(tokenizer.path)).id_to_token(stop)
    assert generate(run_copy, *words, "--stop", token).stdout == begin

    data = tmp_path / "data.packed"
    fingerprint = tokenizer.fingerprint
    with PackedFileWriter(data, vocab_size=4096, tokenizer_fingerprint=fingerprint, end_of_document_id=stop) as writer:
        writer.write(np.arange(200))
    shutil.copyfile(tokenizer.path, tmp_path / "data.tokenizer.json")
    config = run_copy / "config.gin"
    config.write_text(config.read_text().replace("'stdlib:train'", f"'{data}'"))
    assert generate(run_copy, *words).stdout == begin
    assert (
        "token ('<|im_end|>') must be one token of" in generate(run_copy, *words, "--stop", "<|im_end|>", code=2).stderr
    )


def test_several_samples_are_those_of_following_seeds(trained: Path) -> None:
    words = trained, "--prompt", "import ", "--max_new_tokens", "6"
    done = generate(*words, "--seed", "4", "--num_samples", "3")
    assert done.stdout == "\n".join(generate(*words, "--seed", str(seed)).stdout for seed in (4, 5, 6))
    assert done.stderr.splitlines() == [f"sample {number + 1} of 3, seed {4 + number}" for number in range(3)]


def test_an_empty_prompt_starts_a_document(trained: Path) -> None:
    assert generate(trained, "--max_new_tokens", "5").stdout.strip()


def test_a_step_is_that_checkpoint(run_copy: Path) -> None:
    words = run_copy, "--prompt", PROMPT, "--max_new_tokens", "20", "--top_k", "0"
    first, newest = generate(*words, "--step", "1").stdout, generate(*words).stdout
    assert first != newest
    assert generate(*words, "--step", "2").stdout == newest
    shutil.rmtree(run_copy / "checkpoints" / "step-00000002")
    assert generate(*words).stdout == first


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(run_copy: Path) -> None:
    words = run_copy, "--prompt", PROMPT, "--max_new_tokens", "20", "--top_k", "0"
    first = generate(*words, "--step", "1").stdout
    for damaged in sorted((run_copy / "checkpoints").iterdir(), reverse=True):
        largest = max(damaged.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 20] ^= 1
        largest.write_bytes(content)
        if damaged.name.endswith("2"):
            done = generate(*words)
            assert done.stdout == first
            assert "checkpoint step-00000002 is damaged and skipped" in done.stderr
    done = generate(*words, code=4)
    assert f"checkpoints in {run_copy}/checkpoints must have at least one that is undamaged" in done.stderr
    assert done.stdout == ""


def test_a_run_by_the_beginning_of_its_name(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "some-name").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    words = ("--prompt", "import", "--max_new_tokens", "4", "--temperature", "0")
    assert generate("some", *words).stdout == generate(trained, *words).stdout


def test_runs_that_are_not_there(trained: Path, tmp_path: Path) -> None:
    text = generate(f"{trained}y", code=4).stderr
    assert text == (
        f"RunFolderError: RUN ({trained}y) must be a run in runs/ or the path of one; did you mean {trained}?\n"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    said = generate(empty, code=4).stderr
    assert f"; {empty} is a folder without run.json, config.gin and attempts/\n" in said
    assert f"; there is no folder {tmp_path}/none" in generate("one", "--runs_dir", tmp_path / "none", code=4).stderr
    (empty / "attempts").mkdir()
    assert f"run ({empty}) must have a config.gin to load its model; there is none" in generate(empty, code=4).stderr


def test_runs_without_this_checkpoint(run_copy: Path) -> None:
    assert (
        f"--step (7) must be a checkpoint of {run_copy}, which has 1, 2"
        in generate(run_copy, "--step", "7", code=4).stderr
    )
    shutil.rmtree(run_copy / "checkpoints")
    assert generate(run_copy, code=4).stderr == (
        f"CheckpointError: run ({run_copy}) must have a checkpoint, and {run_copy}/checkpoints has none; train it up "
        "to its first one, which CHECKPOINT_EVERY sets\n"
    )


def test_a_checkpoint_of_another_shape(run_copy: Path) -> None:
    config = run_copy / "config.gin"
    config.write_text(config.read_text().replace("\n    dim = 32\n", "\n    dim = 64\n"))
    assert "token_embedding.weight" in generate(run_copy, code=4).stderr


def test_data_without_its_tokenizer(run_copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.packed"
    with PackedFileWriter(data, vocab_size=4096, tokenizer_fingerprint="0" * 64) as writer:
        writer.write(np.arange(200), num_bytes_of_text=800)
    config = run_copy / "config.gin"
    config.write_text(config.read_text().replace("'stdlib:train'", f"'{data}'"))
    assert generate(run_copy, code=3).stderr == (
        f"DataError: training data ({data}) must have its tokenizer beside it, as tokenizer.json "
        "or NAME.tokenizer.model, with the fingerprint in the data's header; put it there\n"
    )
    data.unlink()
    assert f"path ('{data}') must be a corpus" in generate(run_copy, code=2).stderr


def test_data_that_changed_is_told(run_copy: Path, tmp_path: Path) -> None:
    config = run_copy / "config.gin"
    config.write_text(config.read_text().replace("'stdlib:train'", "'stdlib:validation'"))
    done = generate(run_copy, "--prompt", PROMPT, "--max_new_tokens", "2")
    assert "the training data (stdlib:validation) changed since step 2: is its tokenizer the same?" in done.stderr


def test_wrong_values_are_refused_together() -> None:
    words = ["--max_new_tokens=-1", "--temperature=-1", "--top_k=-1", "--top_p=0", "--seed=-1", "--num_samples=0"]
    assert generate("anything", *words, code=2).stderr.splitlines() == [
        "6 config errors; nothing was started",
        "  --max_new_tokens (-1) must be at least 0",
        "  --temperature (-1.0) must be at least 0; 0 is greedy",
        "  --top_k (-1) must be at least 0; 0 samples among all tokens",
        "  --top_p (0.0) must be in (0, 1]; 1 samples among all tokens",
        "  --num_samples (0) must be at least 1",
        "  --seed (-1) must be in [0, 2^63 - num_samples)",
    ]
    assert "must be at least 0; 0 is greedy" in generate("anything", "--temperature", "nan", code=2).stderr
    generate("anything", "--top_k", "many", code=2)
