"""From a config to a run folder: what is written, what is refused and with which words, and the code's own state."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.config import Config, load
from modlib.launching import prepare as module
from modlib.launching.prepare import code_state, default_name, prepare
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder

TINY = "debug/tiny.gin"


@pytest.fixture(scope="module")
def config() -> Config:
    return load([TINY])


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    return lambda: "\n".join(caplog.messages)


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """git in a new repository that holds a package modlib, with one commit."""
    source = tmp_path / "source"
    (source / "modlib").mkdir(parents=True)
    (source / "modlib" / "__init__.py").write_text("__version__ = '1'\n")

    def run(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=source, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "-m", "one")
    return run


# ------------------------------------------------------------------------------------------------- the run folder


def test_a_new_run_has_its_identity_and_its_config(config: Config, tmp_path: Path) -> None:
    run = prepare(config, runs_dir=tmp_path / "deep" / "runs")
    assert run.path == tmp_path / "deep" / "runs" / f"tiny-{config.hash[:8]}"
    assert load([run.config_path]).hash == config.hash
    assert json.loads(run.provenance_path.read_text())["hash"] == config.identity
    state = run.read()
    assert (state["name"], state["status"], state["config_hash"]) == (run.name, "created", config.identity)
    assert "git_commit" in state
    with run.lock():  # and is free
        pass


@pytest.mark.parametrize(
    ("stem", "expected"),
    [("my model (2)", "my-model-2-"), ("_x", "x"), ("...", "run"), ("ä", "run"), ("y" * 70, "y" * 50)],
)
def test_the_default_name_is_a_name_whatever_the_file_is_called(
    config: Config, tmp_path: Path, stem: str, expected: str
) -> None:
    file = tmp_path / f"{stem}.gin"
    file.write_text(f"include '{TINY}'\n")
    named = load([file])
    assert default_name(named) == f"{expected}-{config.hash[:8]}"
    prepare(named, runs_dir=tmp_path / "runs")


def test_a_runs_own_config_is_that_run(config: Config, tmp_path: Path) -> None:
    run = prepare(config, runs_dir=tmp_path, name="first")
    assert prepare(load([run.config_path]), runs_dir=tmp_path).path == run.path
    run.update(config_hash="another")
    assert default_name(load([run.config_path])) == f"config-{config.hash[:8]}"


def test_a_run_of_another_config_is_refused_with_the_difference_and_changes_nothing(
    config: Config, tmp_path: Path
) -> None:
    run = prepare(config, runs_dir=tmp_path, name="run")
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    other = load([TINY], ["LR=5e-3", "NUM_STEPS=7", "LOG_EVERY=3"])
    with pytest.raises(ConfigError) as caught:
        prepare(other, runs_dir=tmp_path, name="run")
    lines = str(caught.value).split("\n")
    assert lines[0] == f"run 'run' exists with a different config ({run.config_path}):"
    assert any(line.startswith("    AdamW.lr: 0.001 -> 0.005") and "--gin_param #1" in line for line in lines)
    assert any(line.startswith("    train.num_steps: 40 -> 7") for line in lines)
    assert lines[-1] == "    start it as a new run with another --name, or set these values back to continue this one"
    assert {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


def test_settings_that_change_no_number_may_change_and_are_shown_and_recorded(
    config: Config, tmp_path: Path, messages: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modlib")
    run = prepare(config, runs_dir=tmp_path, name="run")
    assert "changed settings" not in messages()
    other = load([TINY], ["LOG_EVERY=3", "Local.num_processes=2"])
    prepare(other, runs_dir=tmp_path, name="run")
    no_number, placing = (
        messages()
        .split("this run continues with changed settings that change no number:\n")[1]
        .split("this run continues with the same batches; rounding, and dropout where there is any, may differ:\n")
    )
    assert no_number.startswith("train.log_every: 1 -> 3")
    assert placing.startswith("Local.num_processes: None -> 2")
    assert load([run.config_path]).resolved["train.log_every"] == 3
    assert run.read()["config_hash"] == config.identity


def test_a_run_that_trains_keeps_its_config(
    config: Config, tmp_path: Path, messages: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modlib")
    run = prepare(config, runs_dir=tmp_path, name="run")
    before = run.config_path.read_bytes()
    with run.lock(), pytest.raises(RunFolderError, match="must have one trainer at a time"):
        prepare(load([TINY], ["LOG_EVERY=3"]), runs_dir=tmp_path, name="run")
    assert run.config_path.read_bytes() == before
    assert "changed settings" not in messages()


def test_a_config_that_cannot_be_read_any_more_says_so(config: Config, tmp_path: Path) -> None:
    run = prepare(config, runs_dir=tmp_path, name="run")
    run.config_path.write_text(run.config_path.read_text() + "GPT2.dmi = 3\n")
    with pytest.raises(ConfigError) as caught:
        prepare(config, runs_dir=tmp_path, name="run")
    first, *rest = caught.value.problems
    assert first == (
        "run 'run' exists, but its config cannot be read: start a new run with another --name, or "
        "repair what is named here"
    )
    assert "GPT2 has no parameter 'dmi'" in "\n".join(rest)


def test_an_identity_that_was_lost_is_written_again(config: Config, tmp_path: Path) -> None:
    run = prepare(config, runs_dir=tmp_path, name="run")
    run.run_json_path.write_text('{"name": "ru')
    prepare(config, runs_dir=tmp_path, name="run")
    assert run.read()["name"] == "run"


def test_another_commit_is_said(config: Config, tmp_path: Path, messages: Callable[[], str]) -> None:
    run = prepare(config, runs_dir=tmp_path, name="run")
    prepare(config, runs_dir=tmp_path, name="run")
    assert "another commit" not in messages()
    run.update(git_commit="0" * 40)
    prepare(config, runs_dir=tmp_path, name="run")
    assert "the code is of another commit (" in messages()
    assert f") than the run was started with ({'0' * 40})" in messages()


@pytest.mark.parametrize("name", ["", "../x", "a b"])
def test_a_name_that_is_none(config: Config, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="it is a name, not a path"):
        prepare(config, runs_dir=tmp_path / "runs", name=name)
    assert not (tmp_path / "runs").exists()


def test_resume_never_and_must(config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        prepare(config, runs_dir=tmp_path, name="run", resume="must")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert str(caught.value) == (
        f"run 'run' must have a checkpoint with --resume must, but there is none in {checkpoints}; "
        "check --name and --runs_dir, or leave --resume out to start it"
    )
    assert not (tmp_path / "run").exists()
    prepare(config, runs_dir=tmp_path, name="run", resume="never")
    prepare(config, runs_dir=tmp_path, name="run", resume="never")  # prepared, but nothing was trained
    (checkpoints / "step-00000100").mkdir()
    prepare(config, runs_dir=tmp_path, name="run", resume="must")
    prepare(config, runs_dir=tmp_path, name="run", resume="auto")
    with pytest.raises(RunFolderError) as caught:
        prepare(config, runs_dir=tmp_path, name="run", resume="never")
    assert str(caught.value) == (
        f"run 'run' must be new with --resume never, but has checkpoints in {checkpoints}; "
        "choose another --name, or leave --resume out to continue it"
    )


def test_a_disk_too_small_for_a_checkpoint_leaves_nothing_behind(config: Config, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        prepare(config, runs_dir=tmp_path / "runs", name="run", needed_bytes=1 << 60)
    text = str(caught.value)
    assert text.startswith(f"free space in {tmp_path / 'runs'} (")
    assert ") must be at least one checkpoint (" in text
    assert text.endswith("; free some or choose another --runs_dir")
    assert not (tmp_path / "runs").exists()


def test_a_runs_dir_that_cannot_be_written(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="must be a folder that can be written: Not a directory; choose another"):
        prepare(config, runs_dir=tmp_path / "file" / "runs")


# --------------------------------------------------------------------------------------------- the code's own state


def recorded(tmp_path: Path) -> tuple[dict[str, object], Path]:
    run = RunFolder(tmp_path / "run")
    run.create()
    return code_state(run, tmp_path / "source"), run.path / "dirty.patch"


def test_a_clean_commit_is_recorded(git: Callable[..., str], tmp_path: Path) -> None:
    state, patch = recorded(tmp_path)
    assert state == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": False, "git_untracked": []}
    assert not patch.exists()


def test_changes_are_recorded_as_a_patch_that_applies(git: Callable[..., str], tmp_path: Path) -> None:
    changed = tmp_path / "source" / "modlib" / "__init__.py"
    changed.write_bytes(b"__version__ = '2'  # caf\xe9 in latin-1\n")
    (tmp_path / "source" / "weights.bin").write_bytes(bytes(range(256)))
    git("add", "weights.bin")
    (tmp_path / "source" / "new file ä.py").write_text("untracked\n")
    git("config", "color.ui", "always")
    state, patch = recorded(tmp_path)
    assert state["git_dirty"] is True
    assert state["git_untracked"] == ["new file ä.py"]
    git("reset", "--quiet", "--hard")
    git("apply", str(patch))
    assert changed.read_bytes() == b"__version__ = '2'  # caf\xe9 in latin-1\n"
    assert (tmp_path / "source" / "weights.bin").read_bytes() == bytes(range(256))


def test_the_patch_is_bounded_and_says_so(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], str]
) -> None:
    monkeypatch.setattr(module, "MOST_PATCH_BYTES", 1000)
    (tmp_path / "source" / "modlib" / "__init__.py").write_text("ä = 1\n" * 1000)
    state, patch = recorded(tmp_path)
    assert patch.stat().st_size == 1000
    assert isinstance(size := state["git_patch_cut_from_bytes"], int)
    assert size > 7000
    assert f"that were changed since commit {state['git_commit']}; commit the code to record it" in messages()


def test_secrets_are_not_in_the_patch(git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
    (tmp_path / "source" / "modlib" / "__init__.py").write_text(
        "key = 'correct-horse-battery'\ntoken = 'hf_" + "a" * 30 + "'\n"
    )
    _, patch = recorded(tmp_path)
    text = patch.read_text()
    assert "+key = '***'" in text
    assert "+token = '***'" in text


def test_a_repository_that_modlib_only_lies_in_is_not_its_own(git: Callable[..., str], tmp_path: Path) -> None:
    inside = tmp_path / "source" / "venv" / "site-packages"
    (inside / "modlib").mkdir(parents=True)
    (inside / "modlib" / "__init__.py").write_text("")
    run = RunFolder(tmp_path / "run")
    run.create()
    assert code_state(run, inside) == {"git_commit": None}


def test_variables_of_a_surrounding_git_command_do_not_mislead(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert recorded(tmp_path)[0]["git_commit"] == commit


def test_without_git_a_run_is_prepared_all_the_same(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    run = prepare(config, runs_dir=tmp_path / "runs")
    assert run.read()["git_commit"] is None
    assert not (run.path / "dirty.patch").exists()


def test_a_git_that_hangs_is_given_up(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], str]
) -> None:
    commit = git("rev-parse", "HEAD")
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin" / "git"
    slow.write_text('#!/bin/sh\ncase "$*" in *diff*) exec sleep 60;; esac\nPATH="$REAL_PATH" exec git "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("modlib.launching.git.GIT_TIMEOUT_S", 1.0)
    assert recorded(tmp_path)[0] == {"git_commit": commit, "git_dirty": None}
    assert f"what was changed since commit {commit} is not recorded: git diff failed or took too long" in messages()
