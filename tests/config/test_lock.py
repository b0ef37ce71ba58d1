"""Locks: what they keep of a configuration, and what they say when a default changes under it."""

from __future__ import annotations

from pathlib import Path

from modlib.config.lock import drift, lock_entry
from tests.config.projects import COMPONENTS, Project


def entry(folder: Path, source: str, text: str = "") -> tuple[dict[str, object], str]:
    """The lock entry of a gin file over a module of this source, and the module's own name, which differs each time."""
    folder.mkdir()
    project = Project(folder, source)
    try:
        made = lock_entry(project.load(text))
    finally:
        project.forget()
    own = {kind: {name.replace(project.run, "RUN"): value for name, value in made[kind].items()}
           for kind in ("science", "other")}  # fmt: skip
    return {"hash": made["hash"], **own}, project.run


def test_every_parameter_is_kept_defaults_included(tmp_path: Path) -> None:
    made, _ = entry(tmp_path / "a", COMPONENTS, "Model.dropout = 0.5\n")
    assert made["science"]["Model.dropout"] == "0.5"
    assert made["science"]["Model.activation"] == "'gelu'"
    assert made["science"]["RUN.model"] == "@Model"
    assert "RUN.log_every" in made["other"]
    assert "Local.num_processes" in made["other"]


def test_a_changed_default_is_named(tmp_path: Path) -> None:
    before, _ = entry(tmp_path / "a", COMPONENTS)
    changed = COMPONENTS.replace("dropout: float = 0.0", "dropout: float = 0.1").replace(
        "log_every: int = 1", "log_every: int = 2"
    )
    after, _ = entry(tmp_path / "b", changed)
    assert [(str(one), one.science) for one in drift(before, after)] == [
        ("Model.dropout: 0.0 -> 0.1", True),
        ("RUN.log_every: 1 -> 2", False),
    ]
    assert drift(before, before) == []


def test_a_new_and_a_removed_parameter_are_named(tmp_path: Path) -> None:
    before, _ = entry(tmp_path / "a", COMPONENTS)
    after, _ = entry(tmp_path / "b", COMPONENTS.replace("bias: bool = True,", "gain: float = 1.0,"))
    assert [str(one) for one in drift(before, after)] == [
        "Model.bias: True -> (absent)",
        "Model.gain: (absent) -> 1.0",
    ]
