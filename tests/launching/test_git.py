"""What git tracks below a folder, submodules included."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.launching.git import commit_of, tracked
from tests.launching.projects import commit_all, git, new_project


def test_tracked_files_are_those_of_the_index(tmp_path: Path) -> None:
    source = new_project(tmp_path / "source")
    (source / "staged ä.py").write_text("")
    git(source, "add", "staged ä.py")
    (source / "untracked.py").write_text("")
    assert tracked(source) == ["gin_configs/a.gin", "launch.py", "modlib/__init__.py", "staged ä.py"]
    assert tracked(source / "modlib") == ["__init__.py"]
    assert commit_of(source) == git(source, "rev-parse", "HEAD")


def test_files_of_submodules_are_listed_at_any_depth(tmp_path: Path) -> None:
    for name in ("inner", "outer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text("")
        if name == "outer":
            git(tmp_path / name, "init", "--quiet")
            git(tmp_path / name, "submodule", "--quiet", "add", str(tmp_path / "inner"), "deep")
        commit_all(tmp_path / name)
    source = new_project(tmp_path / "source")
    git(source, "submodule", "--quiet", "add", str(tmp_path / "outer"), "libs")
    commit_all(source)
    assert "libs/deep" in (tracked(source) or ())  # not checked out yet
    git(source, "submodule", "--quiet", "update", "--init", "--recursive")
    names = tracked(source) or []
    assert {"libs/outer.py", "libs/deep/inner.py", ".gitmodules", "libs/.gitmodules"} <= set(names)
    assert not {"libs", "libs/deep"} & set(names)


def test_a_conflict_lists_a_file_once(tmp_path: Path) -> None:
    source = new_project(tmp_path / "source")
    git(source, "checkout", "--quiet", "-b", "other")
    (source / "launch.py").write_text("other\n")
    commit_all(source)
    git(source, "checkout", "--quiet", "-")
    (source / "launch.py").write_text("this\n")
    commit_all(source)
    with pytest.raises(Exception, match="merge"):
        git(source, "merge", "other")
    assert (tracked(source) or []).count("launch.py") == 1


def test_no_repository_tracks_nothing_that_is_known(tmp_path: Path) -> None:
    assert tracked(tmp_path) is None
    assert commit_of(tmp_path) is None
