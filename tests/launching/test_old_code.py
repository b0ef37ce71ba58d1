"""The code of a run, from its commit, its changes or its snapshot; and what is said when it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modlib.launching.old_code import old_code
from modlib.launching.prepare import code_state
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder
from tests.launching.projects import commit_all, git, new_project

SETTINGS = "modlib/settings.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    project = new_project(tmp_path / "source")
    (project / SETTINGS).write_text("NUMBER = 1\n")
    commit_all(project, "one")
    return project


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "runs" / "a")
    made.create()
    return made


def edit(source: Path, text: str) -> None:
    (source / SETTINGS).write_text(text)


def test_an_older_commit(source: Path, run: RunFolder) -> None:
    run.update(**code_state(run, source))
    edit(source, "NUMBER = 2\n")
    commit_all(source, "two")
    edit(source, "NUMBER = 3\n")
    with old_code(run, source) as code:
        assert (code.source / SETTINGS).read_text() == "NUMBER = 1\n"
        assert (code.source / "launch.py").is_file()
        assert code.python_paths == (code.source,)
        assert code.what == f"commit {run.read()['git_commit'][:12]}"
    assert not code.source.exists()
    assert (source / SETTINGS).read_text() == "NUMBER = 3\n"


def test_changes_since_the_commit(source: Path, run: RunFolder) -> None:
    edit(source, "NUMBER = 1.5\n")
    (source / "image.bin").write_bytes(bytes(range(256)))
    git(source, "add", "image.bin")
    run.update(**code_state(run, source))
    git(source, "reset", "--hard", "--quiet")
    with old_code(run, source) as code:
        assert (code.source / SETTINGS).read_text() == "NUMBER = 1.5\n"
        assert (code.source / "image.bin").read_bytes() == bytes(range(256))
        assert code.what.endswith(" with dirty.patch")


def test_untracked_files_are_named(source: Path, run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(7):
        (source / f"new{number}.py").write_text("")
    run.update(**code_state(run, source))
    with old_code(run, source):
        pass
    (line,) = caplog.messages
    assert line.endswith("not in what it recorded: new0.py, new1.py, new2.py, new3.py, new4.py and 2 more")


def test_a_commit_that_is_not_there(source: Path, run: RunFolder) -> None:
    run.update(git_commit="0" * 40, git_dirty=False)
    with pytest.raises(RunFolderError) as caught, old_code(run, source):
        pass
    assert str(caught.value) == (
        f"commit ({'0' * 40}) of the run must be in the repository {source}, but is not; fetch it, or call modlib "
        "from a checkout that has it"
    )


def test_no_code(source: Path, run: RunFolder) -> None:
    run.update(git_commit=None)
    with pytest.raises(RunFolderError, match="must have recorded its code to be reproduced"), old_code(run, source):
        pass


def test_changes_that_were_not_recorded_in_full(source: Path, run: RunFolder) -> None:
    run.update(**code_state(run, source) | {"git_dirty": None})
    with pytest.raises(RunFolderError, match="git diff failed when it began"), old_code(run, source):
        pass
    run.update(git_dirty=True, git_patch_cut_from_bytes=10**8)
    with pytest.raises(RunFolderError, match="was cut when the run began"), old_code(run, source):
        pass


def test_a_patch_that_does_not_apply(source: Path, run: RunFolder) -> None:
    edit(source, "NUMBER = 1.5\n")
    run.update(**code_state(run, source))
    patch = run.path / "dirty.patch"
    patch.write_text(patch.read_text().replace("-NUMBER = 1\n", "-NUMBER = 7\n"))
    text = "must apply to the commit of run a, but does not: error: patch failed"
    with pytest.raises(RunFolderError, match=text), old_code(run, source):
        pass


def test_a_snapshot_goes_before_the_commit_and_is_verified(source: Path, run: RunFolder) -> None:
    from modlib.config import load
    from modlib.launching.snapshot import take_snapshot

    snapshot = take_snapshot(run, load(["debug/tiny.gin"]), source)
    run.update(git_commit="0" * 40, git_dirty=False, code=snapshot.sha256)
    with old_code(run, source) as code:
        assert code.source == snapshot.path / "project"
        assert code.python_paths == snapshot.python_paths
        assert code.what == f"code/{snapshot.sha256[:12]} of the run folder"
    again = RunFolder(source.parent / "elsewhere" / "again")
    again.create()
    again.update(code=snapshot.sha256, reproduces=str(run.path))
    with old_code(again, source) as code:
        assert code.source == snapshot.path / "project"
    file = snapshot.path / "project" / SETTINGS
    file.chmod(0o644)
    file.write_text("NUMBER = 9\n")
    text = r"was edited \(changed: project/modlib/settings.py\)"
    with pytest.raises(RunFolderError, match=text), old_code(run, source):
        pass


def test_the_record_is_what_run_json_says(source: Path, run: RunFolder) -> None:
    run.update(**code_state(run, source))
    assert json.loads(run.run_json_path.read_text())["git_dirty"] is False
