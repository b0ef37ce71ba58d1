"""Configurations compared by meaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.config import diff, render_diff
from modlib.runtime.errors import ConfigError
from tests.config.projects import Project


def test_by_meaning(project: Project) -> None:
    a = project.load("D = 4\nModel.ffn_dim = 2 * %D\nModel.betas = [0, 1]\nModel.norm = @Norm")
    b = project.load("Model.norm = @Norm\nModel.betas = (0.0, 1.0)\nModel.ffn_dim = 8\nModel.dropout = 0.0")
    assert diff(a, b) == []
    assert render_diff([]) == ""


def test_changed_added_and_gone(project: Project) -> None:
    a = project.load("Model.ffn_dim = 2")
    b = project.load("Model.norm = @Norm", ["Model.dropout=0.5"])
    found = diff(a, b)
    assert [one[:3] for one in found] == [
        ("Model.ffn_dim", "2", "None"),
        ("Model.dropout", "0.0", "0.5"),
        ("Model.norm", "None", "@Norm"),
        ("Norm.eps", "(absent)", "1e-05"),
    ]
    assert render_diff(found).replace(f"{project.folder}/", "").splitlines() == [
        "Model.ffn_dim: 2 -> None  (a.gin:4; default)",
        "Model.dropout: 0.0 -> 0.5  (default; --gin_param #1)",
        "Model.norm: None -> @Norm  (default; a.gin:4)",
        "Norm.eps: (absent) -> 1e-05  (not there; default)",
    ]


def test_run_folders_and_files(project: Project, tmp_path: Path) -> None:
    config = project.load("Model.ffn_dim = 2")
    config.to_run_folder(tmp_path / "run")
    gin_file = project.write("Model.ffn_dim = 3", "b.gin")
    for run in (tmp_path / "run", tmp_path / "run" / "config.gin", config):
        (one,) = diff(run, gin_file)
        assert one[:3] == ("Model.ffn_dim", "2", "3")
    assert diff(tmp_path / "run", str(tmp_path / "run")) == []


def test_a_run_of_components_that_are_gone_is_still_compared(project: Project, tmp_path: Path) -> None:
    project.load("Model.ffn_dim = 2").to_run_folder(tmp_path / "old")
    project.load("Model.ffn_dim = 3").to_run_folder(tmp_path / "new")
    (project.folder / f"{project.module}.py").unlink()
    project.forget()
    assert [one[:3] for one in diff(tmp_path / "old", tmp_path / "new")] == [("Model.ffn_dim", "2", "3")]


def test_a_config_changed_by_hand_is_read_again(project: Project, tmp_path: Path) -> None:
    config = project.load("Model.ffn_dim = 2")
    config.to_run_folder(tmp_path / "run")
    path = tmp_path / "run" / "config.gin"
    path.write_text(path.read_text().replace("ffn_dim = 2", "ffn_dim = 5"))
    assert [one[:3] for one in diff(config, tmp_path / "run")] == [("Model.ffn_dim", "2", "5")]


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.gin; give a run folder or a gin file"):
        diff(tmp_path, tmp_path)
