"""What was chosen for a run comes first: the command line, macros, learning rates, then the rest of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.config.projects import Project


def test_the_order_and_the_values(project: Project) -> None:
    config = project.load(
        "LAYERS = 3\nTWICE = 2 * %LAYERS\nModel.ffn_dim = %TWICE\nModel.betas = (0.5, 0.6)\nRUN.optimizer = @AdamW\n"
        "AdamW.lr = 0.1\nRUN.steps = 5",
        ["RUN.log_every=7", "LAYERS=4"],
    )
    assert list(config.chosen.items()) == [
        ("LAYERS", 4),
        (f"{project.run}.log_every", 7),
        ("TWICE", 8),
        ("AdamW.lr", 0.1),
        (f"{project.run}.model", "@Model"),
        (f"{project.run}.optimizer", "@AdamW"),
        (f"{project.run}.steps", 5),
        ("Model.dim", 8),
        ("Model.betas", "(0.5, 0.6)"),
    ]


def test_it_is_in_provenance_without_secrets(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = project.load("Model.path = 'a/canary-value'")
    monkeypatch.setenv("SOME_PAT", "canary-value")  # set after the config was read
    config.to_run_folder(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["chosen"]["Model.path"] == "a/***"
