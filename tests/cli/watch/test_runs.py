"""Which run a word means, and what is said when it means none."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.cli.watch.runs import find_run, run_folders, states_of
from modlib.launching import scheduler
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Two runs, a sweep of two points, and folders that are none."""
    folder = tmp_path / "runs"
    for name in ("gpt2-0123abcd", "gpt2-4567cdef", "lr/lr-1e-3", "lr/lr-1e-4"):
        run = RunFolder(folder / name)
        run.create()
        run.update(name=run.name, status="created")
    for name in ("notes", "lr/plots", ".trash"):
        (folder / name).mkdir()
    (folder / "file").write_text("")
    return folder


def test_all_runs(runs_dir: Path) -> None:
    assert list(run_folders(runs_dir)) == ["gpt2-0123abcd", "gpt2-4567cdef", "lr/lr-1e-3", "lr/lr-1e-4"]
    assert run_folders(runs_dir / "nowhere") == run_folders(runs_dir / "file") == {}


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("gpt2-0123abcd", "gpt2-0123abcd"),
        ("gpt2-4", "gpt2-4567cdef"),
        ("lr/lr-1e-3", "lr/lr-1e-3"),
        ("lr-1e-4", "lr/lr-1e-4"),
        ("lr/lr-1e-4/", "lr/lr-1e-4"),
    ],
)
def test_a_name_or_the_beginning_of_one(runs_dir: Path, word: str, path: str) -> None:
    assert find_run(word, runs_dir).path == runs_dir / path


def test_a_path_wherever_it_is(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs_dir / "gpt2-0123abcd"
    assert find_run(str(run), Path("elsewhere")).path == run
    monkeypatch.chdir(run)
    assert find_run(".", Path("elsewhere")).name == "gpt2-0123abcd"
    monkeypatch.chdir(run / "checkpoints")
    assert find_run("..", Path("elsewhere")).name == "gpt2-0123abcd"


def test_several_runs_begin_so(runs_dir: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        find_run("gpt2", runs_dir)
    assert str(caught.value) == (
        "RUN (gpt2) must mean one run, and may mean gpt2-0123abcd, gpt2-4567cdef; write more of the name"
    )


def test_did_you_mean(runs_dir: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        find_run("gpt-0123abcd", runs_dir)
    assert str(caught.value) == (
        f"RUN (gpt-0123abcd) must be a run in {runs_dir}/ or the path of one; did you mean gpt2-0123abcd?"
    )


@pytest.mark.parametrize("word", ["zzz", "notes", ""])
def test_no_such_run(runs_dir: Path, word: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        find_run(word, runs_dir)
    assert str(caught.value) == (
        f"RUN ({word}) must be a run in {runs_dir}/ or the path of one; "
        "the runs there: gpt2-0123abcd, gpt2-4567cdef, lr/lr-1e-3, lr/lr-1e-4"
    )


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=f"there are no runs in {tmp_path}$"):
        find_run("one", tmp_path)
    with pytest.raises(RunFolderError, match=f"there is no folder {tmp_path}/runs: give the right one with --runs_dir"):
        find_run("one", tmp_path / "runs")


def test_slurm_is_asked_only_about_runs_with_jobs(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A squeue that writes down how it was called stands on the path."""
    programs = runs_dir.parent / "bin"
    programs.mkdir()
    for name in ("squeue", "sacct"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{programs}/calls\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    runs = run_folders(runs_dir)
    assert [one.state for one in states_of(runs.values())] == ["created"] * 4
    assert not (programs / "calls").exists()
    for name, status, job in (("gpt2-0123abcd", "queued", "12"), ("gpt2-4567cdef", "stopped", "13")):
        runs[name].update(status=status, executor="slurm", slurm={"job_ids": [job]})
    runs["lr/lr-1e-3"].update(status="finished", executor="slurm", slurm={"job_ids": ["14"]})
    found = states_of(runs.values())
    assert [one.state for one in found] == ["queued", "stopped", "finished", "created"]
    assert found[0].job == scheduler.JobState("12", scheduler.UNKNOWN)
    calls = (programs / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["squeue", "sacct"]
    assert calls[0].endswith("--jobs=12,13")
    assert calls[1].endswith("--jobs=12")  # whatever a stopped run's job came to changes nothing
