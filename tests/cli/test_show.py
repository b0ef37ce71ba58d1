"""`modlib show`."""

from __future__ import annotations

import json
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


def test_json(project: Project) -> None:
    record = json.loads(run(str(project.write("Model.dropout = 0.1")), "--json").stdout)
    assert record["parameters"]["Model.dropout"]["value"] == "0.1"
    assert record["parameters"]["Model.dropout"]["science"] is True
    assert len(record["hash"]) == 64


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
