"""`modlib diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modlib.cli.main import app
from tests.cli.configs.test_show import project  # noqa: F401  a fixture
from tests.config.projects import Project


def run(*words: str | Path, code: int) -> Any:
    done = CliRunner().invoke(app, ["diff", *map(str, words)])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def two(project: Project) -> tuple[Path, Path]:  # noqa: F811
    return project.write("Model.dropout = 0.1"), project.write("Model.dropout = 0.2", "b.gin")


def test_same(two: tuple[Path, Path]) -> None:
    done = run(two[0], two[0], code=0)
    assert done.stdout == ""
    assert done.stderr == "the two configurations mean the same\n"


def test_different(two: tuple[Path, Path]) -> None:
    line = run(*two, code=1).stdout.replace(f"{two[0].parent}/", "")
    assert line == "Model.dropout\t0.1\t0.2\ta.gin:4; b.gin:4\n"


def test_json(two: tuple[Path, Path]) -> None:
    (one,) = json.loads(run(*two, "--json", code=1).stdout)
    assert (one["name"], one["a_value"], one["b_value"]) == ("Model.dropout", "0.1", "0.2")


def test_not_a_run(tmp_path: Path) -> None:
    assert "holds no config.gin; give a run folder or a gin file" in run(tmp_path, tmp_path, code=2).stderr


def test_files_joined_by_a_plus(two: tuple[Path, Path]) -> None:
    line = run(f"{two[0]}+{two[1]}", two[0], code=1).stdout.replace(f"{two[0].parent}/", "")
    assert line == "Model.dropout\t0.2\t0.1\ta.gin:4 -> b.gin:4; a.gin:4\n"
    run(f"{two[0]}+{two[1]}", two[1], code=0)


def test_a_name_with_a_plus(two: tuple[Path, Path]) -> None:
    odd = two[0].rename(two[0].with_name("a+b.gin"))
    run(odd, two[1], code=1)


def test_a_run_by_its_name(two: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.gin").write_text(two[0].read_text())
    assert run(two[1], "mine", "--runs_dir", tmp_path / "runs", code=1).stdout.startswith("Model.dropout\t0.2\t0.1\t")
