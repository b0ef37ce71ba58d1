"""`modlib show`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modlib.cli.main import app
from tests.config.projects import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    made.forget()


def run(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["show", *words])
    assert done.exit_code == code, done.output
    return done


def test_values_with_their_origins(project: Project) -> None:
    path = project.write("D = 4\nModel.ffn_dim = 2 * %D\nModel.dropout = 0.1")
    lines = run(str(path), "--gin_param", "Model.dropout=0.2").stdout.replace(f"{project.folder}/", "").splitlines()
    assert "Model.ffn_dim\t8\ta.gin:5 -> D a.gin:4" in lines
    assert "Model.dropout\t0.2\ta.gin:6 -> --gin_param #1, was 0.1" in lines
    assert "Model.bias\tTrue\tdefault" in lines


def test_several_files_and_parameters(project: Project, tmp_path: Path) -> None:
    """Given one by one, or joined by +; the later one wins."""
    first, second = project.write("Model.dropout = 0.1\nModel.bias = False"), tmp_path / "b.gin"
    second.write_text("Model.dropout = 0.2\n")
    flags = ("--gin_file", str(first), "--gin-file", str(second))
    for words in ((f"{first}+{second}",), (str(first), "--gin_file", str(second)), flags):
        lines = run(*words).stdout.splitlines()
        assert f"Model.dropout\t0.2\t{first}:4 -> {second}:1, was 0.1" in lines
        assert f"Model.bias\tFalse\t{first}:5" in lines
    assert (
        f"Model.dropout\t0.3\t{first}:4 -> {second}:1 -> --gin_param #1, was 0.2"
        in run(*flags, "--gin_param", "Model.dropout=0.3").stdout
    )
    assert "give a run or a gin file, as in: modlib show quickstart.gin" in " ".join(run(code=2).output.split())


def test_a_run_by_the_beginning_of_its_name_and_a_change_to_it(project: Project, tmp_path: Path) -> None:
    project.load("", ["Model.dropout=0.5"]).to_run_folder(tmp_path / "runs" / "mine")
    change = tmp_path / "change.gin"
    change.write_text("Model.dropout = 0.25\n")
    folder = ("--runs_dir", str(tmp_path / "runs"))
    assert "Model.dropout\t0.5\t--gin_param #1" in run("mi", *folder).stdout.splitlines()
    assert "Model.dropout\t0.25\t" in run(f"mi+{change}", *folder).stdout
    said = run("mien", *folder, code=4).stderr
    assert said == (
        f"RunFolderError: RUN_OR_FILE (mien) must be a run in {tmp_path}/runs/, the path of one, or a gin file; "
        "did you mean mine?\n"
    )
    assert "did you mean quickstart.gin?" in run("quickstart", *folder, code=4).stderr


def test_json(project: Project) -> None:
    record = json.loads(run(str(project.write("Model.dropout = 0.1")), "--json").stdout)
    assert record["parameters"]["Model.dropout"]["value"] == "0.1"
    assert record["parameters"]["Model.dropout"]["science"] is True
    assert re.fullmatch("2:[0-9a-f]{64}", record["hash"])


def test_run_folder_keeps_the_first_origins(project: Project, tmp_path: Path) -> None:
    project.load("", ["Model.dropout=0.5"]).to_run_folder(tmp_path / "run")
    assert "Model.dropout\t0.5\t--gin_param #1" in run(str(tmp_path / "run")).stdout.splitlines()
    text = run(str(tmp_path / "run"), "--gin_param", "Model.dropout=0.25").stdout
    assert "Model.dropout\t0.25\t" in text


def test_problems_end_with_exit_code_2(project: Project) -> None:
    done = run(str(project.write("Model.dropuot = 0.1\nZZ = 1")), code=2)
    assert "2 config errors; nothing was started" in done.stderr
    assert "a.gin:4: Model has no parameter 'dropuot'" in done.stderr
    assert "a.gin:5: the macro ZZ is defined but never used" in done.stderr
