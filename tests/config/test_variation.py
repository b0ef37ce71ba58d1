"""The parameter that the end of a run proposes to change: it exists, has another value, and makes another run."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.config import load
from modlib.config.variation import variation


@pytest.mark.parametrize(
    ("files", "params", "expected"),
    [
        (["quickstart.gin"], [], "LR=0.00075"),
        (["debug/tiny.gin"], [], "LR=0.0005"),
        (["debug/tiny.gin"], ["LR=3e-4"], "LR=0.00015"),
        (["debug/tiny.gin", "optim/muon.gin"], [], None),
        (["debug/tiny.gin"], ["BASE=2e-3", "LR=%BASE"], "BASE=0.001"),
        (["debug/tiny.gin"], ["LR=1e-3 * 2"], "SEED=1"),
    ],
)
def test_it_makes_another_run(files: list[str], params: list[str], expected: str | None) -> None:
    config = load(files, params)
    binding = variation(config)
    assert binding is not None
    assert expected in (None, binding)
    key = binding.partition("=")[0]
    changed = load(files, [*(one for one in params if not one.startswith(f"{key}=")), binding])
    assert changed.hash != config.hash


def test_the_config_of_a_run(tmp_path: Path) -> None:
    """From which the point of a sweep is trained."""
    load(["debug/tiny.gin"], ["AdamW.lr=2e-3", "train.seed=7"]).to_run_folder(tmp_path)
    config = load([tmp_path / "config.gin"])
    assert variation(config) == "AdamW.lr=0.001"
    assert load([tmp_path / "config.gin"], ["AdamW.lr=0.001"]).hash != config.hash
