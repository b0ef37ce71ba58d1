"""Every shipped gin file is read, checked, and built on the meta device."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from modlib.cli.start.launch import app
from modlib.components import known_components
from modlib.config import load
from modlib.config.files import MOVED, find
from modlib.data.packed.writer import PackedFileWriter
from tests.rows import assets_data, assets_huggingface
from tests.test_catalogue import CATALOGUE

ROOT = Path(__file__).parents[1] / "gin_configs"
KNOBS = [
    "SEED",
    "DATA",
    "VAL_DATA",
    "SEQ_LEN",
    "MICRO_BATCH_SIZE",
    "GRAD_ACCUM_STEPS",
    "NUM_STEPS",
    "LR",
    "WARMUP_STEPS",
]
KNOBS += ["LOG_EVERY", "EVAL_EVERY", "CHECKPOINT_EVERY"]


def is_whole_run(path: Path) -> bool:
    return "SEED = " in path.read_text() or path.parent.name == "debug"


SWEEPS = sorted((ROOT / "sweeps").glob("*.gin"))  # axes for --sweep, no gin files
COMMANDS = sorted((ROOT / "commands").glob("*.gin"))  # for `modlib data`: tests/cli/data/test_configured.py
FILES = sorted(set(ROOT.rglob("*.gin")) - set(SWEEPS) - set(COMMANDS))
WHOLE = [path for path in FILES if is_whole_run(path)]
PARTS = [path for path in FILES if not is_whole_run(path)]


@cache
def files_of_whole_runs() -> set[Path]:
    return {path for whole in WHOLE for path in load([whole]).files}


def test_every_file_says_first_what_it_is_for() -> None:
    """Run: train it. Part: whole runs include it. Change: goes after a run's file. Sweep, Command: not for a run."""
    included = files_of_whole_runs() - set(WHOLE)
    for path in ROOT.rglob("*.gin"):
        role = "Run" if path in WHOLE else "Sweep" if path in SWEEPS else "Command" if path in COMMANDS else None
        role = role or ("Part" if path in included or path.stem in ("coca_base", "gpt2_124m") else "Change")
        assert path.read_text().startswith(f"# {role}: "), path


def test_runs_are_directly_in_the_folder() -> None:
    assert {path.parent for path in WHOLE} == {ROOT, ROOT / "debug"}
    assert set(ROOT.glob("*.gin")) <= set(WHOLE)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_still_finds_its_file(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "modlib"):
        assert find(old) == ROOT / new
    assert find(new) == ROOT / new
    assert caplog.messages == [f"{old} is now {new}; use the new name"]


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_whole_run_builds_on_meta(path: Path) -> None:
    result = CliRunner().invoke(app, ["--gin_file", str(path.relative_to(ROOT)), "--dry_run", "--json"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_whole_run_exposes_the_knobs(path: Path) -> None:
    before = load([path])
    own_data = "\nDATA = " not in path.read_text() and path.parent.name != "debug"  # makes its data itself
    values = {"DATA": "'stdlib:validation'", "VAL_DATA": "'stdlib:train'", "LR": "1.25e-3"}
    for knob in KNOBS[:1] + KNOBS[3:] if own_data else KNOBS:
        after = load([path], [f"{knob}={values.get(knob, 17)}"])
        assert after.resolved != before.resolved, f"{knob} changes nothing in {path.name}"


def narrow_data(folder: Path) -> Path:
    """Tokens of a vocabulary of 64, as the tiny Llama's."""
    path = folder / "narrow.packed"
    if not path.exists():
        with PackedFileWriter(path, vocab_size=64) as writer:
            writer.write(np.arange(2000) % 64)
    return path


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_row_group_is_in_a_file(kind: str) -> None:
    """A user can include one that chooses a component of this type, by reference or by setting it."""
    text = "\n".join(line.partition("#")[0] for path in ROOT.rglob("*.gin") for line in path.read_text().splitlines())
    names = [name for name, entry in known_components().items() if entry.type == kind]
    assert re.search(rf"@(\w+/)?({'|'.join(names)})\b|^(\w+/)?({'|'.join(names)})[.:]", text, re.MULTILINE)


@pytest.mark.parametrize(
    "path",
    [  # one reads and tokenizes a corpus
        pytest.param(path, marks=[pytest.mark.slow] if path.name == "jsonl.gin" else [], id=str(path.relative_to(ROOT)))
        for path in PARTS
    ],
)
def test_a_part_goes_with_a_whole_run(path: Path, tmp_path: Path) -> None:
    """Either one includes it, or it is given after one; what it asks the user for is given too."""
    if path in files_of_whole_runs():
        return
    flags = ["--gin_file", "debug/tiny.gin", "--gin_file", str(path.relative_to(ROOT)), "--dry_run", "--json"]
    text = path.read_text()
    if "%CHECKPOINT\n" in text:
        flags += ["--gin_param", f"CHECKPOINT='{tmp_path}'"]
    if "%BASE\n" in text:
        assets_huggingface.make(tmp_path)
        flags += ["--gin_param", f"BASE='{tmp_path / 'huggingface_llama'}'", "--gin_param", "SEQ_LEN=8"]
        flags += [
            "--gin_param",
            f"DATA='{narrow_data(tmp_path)}'",
            "--gin_param",
            f"VAL_DATA='{narrow_data(tmp_path)}'",
        ]
    if "@PretrainedSPTokenizer\n" in text:
        assets_data.make(tmp_path)
        flags += ["--gin_param", f"TOKENIZER='{tmp_path / 'data.sentencepiece.model'}'"]
    result = CliRunner().invoke(app, flags)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_sweep_goes_with_a_whole_run(path: Path) -> None:
    """The command in its first lines, on a smaller run: every point is built."""
    (written,) = re.findall(r"#   python launch.py (--gin_file .*)", path.read_text())
    words = written.replace("quickstart.gin", "debug/tiny.gin").split()
    result = CliRunner().invoke(app, [*words, "--dry_run"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) > 2


def test_resolved_config_fed_back_is_the_same_run(tmp_path: Path) -> None:
    for path in WHOLE:
        config = load([path], ["LR=3.5e-4"])
        (tmp_path / "config.gin").write_text(config.text)
        again = load([tmp_path / "config.gin"])
        assert again.hash == config.hash
        assert again.resolved == config.resolved
        assert again.text == config.text
