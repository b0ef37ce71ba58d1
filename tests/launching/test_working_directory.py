"""Relative paths of a run lead from where it was trained, from whichever folder a command about it is called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modlib.cli.start.launch import app as launch_app
from modlib.data.corpora import corpus
from modlib.launching.working_directory import working_directory
from modlib.runtime.run_folder import RunFolder
from tests import forked
from tests.cli.commands import modlib
from tests.launching_command import ROOT, launch, numbers

DATA = ["DATA='data/train.packed'", "VAL_DATA='data/validation.packed'"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of four steps, whose configuration names the data by relative paths."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("train", "validation"):
        packed = corpus.prepare(f"stdlib:{name}")
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{name}.packed").symlink_to(packed)
        shutil.copy(packed.with_name("tokenizer.json"), folder / "data" / "tokenizer.json")
    (folder / "elsewhere").mkdir()
    done = launch(
        "debug/tiny.gin", [*DATA, "NUM_STEPS=4", "CHECKPOINT_EVERY=2"], "--runs_dir", "runs", "--name", "r", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def elsewhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project / "elsewhere")
    return project / "elsewhere"


@pytest.mark.usefixtures("elsewhere")
def test_generate_reads_the_tokenizer_of_the_runs_data() -> None:
    assert modlib("generate", "../runs/r", "--prompt", "def ", "--max_new_tokens", "4").stdout.startswith("def ")


def test_export_has_the_tokenizer_wherever_it_is_called(elsewhere: Path) -> None:
    done = modlib("export", "../runs/r", "out")
    assert "without a tokenizer" not in done.output
    assert (elsewhere / "out" / "tokenizer.json").is_file()
    assert done.stdout.startswith("out: ")


@pytest.mark.usefixtures("elsewhere")
def test_a_batch_is_shown_as_text() -> None:
    assert "\\n" in modlib("data", "batch", "../runs/r", "2").stdout  # text, not ids
    assert modlib("track", "../runs/r", "--to", "tensorboard").stdout.startswith("../runs/r/tb is written anew")


@pytest.mark.usefixtures("elsewhere")
def test_a_runs_own_config_is_planned_with_its_data() -> None:
    words = ["--gin_file", "../runs/r/config.gin", "--runs_dir", "../runs", "--dry_run", "--json"]
    done = CliRunner().invoke(launch_app, words)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["dataset"]["path"] == "data/train.packed"
    assert plan["dataset"]["num_tokens"] > 1000
    assert Path.cwd().name == "elsewhere"


@pytest.mark.slow
def test_resume_goes_there_first(project: Path, elsewhere: Path) -> None:
    """Its command line is one that works from anywhere."""
    run = RunFolder(project / "runs" / "r")
    before = numbers(run.path)
    shutil.rmtree(run.checkpoints_path / "step-00000004")
    run.update(status="stopped", step=2)
    words = [sys.executable, "-m", "modlib", "resume", "../runs/r"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = forked.run(
        words, cwd=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"cd {project} && {sys.executable} {ROOT / 'launch.py'} --gin_file" in done.stderr
    assert numbers(run.path) == before
    assert run.read()["working_directory"] == str(project)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_reproduce_finds_the_data() -> None:
    done = modlib("reproduce", "../runs/r", "--runs_dir", "../runs", "--name", "again")
    assert "are equal, bit for bit" in done.stdout


def test_a_project_that_moved_is_found_where_the_command_is_called(project: Path, tmp_path: Path) -> None:
    """Its old folder may be gone, or be there without the data."""
    moved = tmp_path / "moved"
    shutil.copytree(project, moved, symlinks=True)
    run = RunFolder(moved / "runs" / "r")
    old = tmp_path / "old"
    old.mkdir()
    home = Path.cwd()
    try:
        os.chdir(moved)
        assert working_directory(run) == project
        run.update(working_directory=str(old))
        assert working_directory(run) == moved
        run.update(working_directory=str(tmp_path / "gone"))
        assert working_directory(run) == moved
        os.chdir(old)
        run.update(working_directory=str(moved))
        assert working_directory(run) == moved
    finally:
        os.chdir(home)
