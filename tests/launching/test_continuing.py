"""A run folder is continued by what its checkpoints say: the configuration, and whether they are there at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.checkpointing.run_checkpoints import newest_saved as newest
from modlib.checkpointing.run_checkpoints import require_config
from modlib.config import Config, load
from modlib.launching import continuing
from modlib.launching.continuing import is_finished
from modlib.launching.identity import identify
from modlib.launching.prepare import prepare
from modlib.runtime.errors import CheckpointError, ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder
from tests.launching.begun import begun

TINY = "debug/tiny.gin"


@pytest.fixture(scope="module")
def config() -> Config:
    return planned()


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    return lambda: "\n".join(caplog.messages)


def planned(*params: str) -> Config:
    return identify(load([TINY], params), 1, runs_dir=Path("nowhere"))[0]


def contents(run: RunFolder) -> dict[str, bytes]:
    files = (path for path in run.path.rglob("*") if path.is_file() and path.name != "lease.json")
    return {str(path): path.read_bytes() for path in files}


def continued(config: Config, run: RunFolder) -> RunFolder:
    return prepare(config, runs_dir=run.path.parent, name=run.name)


# ----------------------------------------------------------------------------------------------- the configuration


def test_without_config_gin_the_checkpoints_configuration_continues(
    config: Config, tmp_path: Path, messages: Callable[[], str]
) -> None:
    run = begun(config, tmp_path, "run")
    text = run.config_path.read_text()
    run.config_path.unlink()
    continued(config, run)
    assert run.config_path.read_text() == text
    assert (
        f"{run.config_path} was missing and is written again: this configuration is the one of step-00000012"
        in messages()
    )


def test_without_config_gin_another_configuration_is_refused_with_the_difference(
    config: Config, tmp_path: Path
) -> None:
    run = begun(config, tmp_path, "run")
    run.config_path.unlink()
    before, other = contents(run), planned("SEED=7", "LR=2e-3", "LOG_EVERY=2")
    with pytest.raises(RunFolderError) as caught:
        continued(other, run)
    assert caught.value.exit_code == 4
    first, *shown, last = str(caught.value).split("\n")
    assert first == (
        f"config hash ({other.hash[:8]}) must be that of step-00000012 of run 'run' ({config.hash[:8]}), whose "
        "config.gin is missing:"
    )
    assert any(line.startswith("    AdamW.lr: 0.001 -> 0.002") for line in shown)
    assert any(line.startswith("    train.seed: 0 -> 7") for line in shown)
    assert last == (
        "    put config.gin back or give the settings that the run was started with, or choose another --name"
    )
    assert contents(run) == before
    run.provenance_path.unlink()
    with pytest.raises(RunFolderError, match="is missing: the settings of then are not recorded\n"):
        continued(other, run)


@pytest.mark.parametrize("own", [False, True], ids=["the same command", "its own config.gin"])
def test_an_edited_config_gin_is_not_what_the_checkpoint_was_trained_with(
    config: Config, tmp_path: Path, own: bool
) -> None:
    run = begun(config, tmp_path, "run")
    run.config_path.write_text(run.config_path.read_text().replace("\nLR = 0.001\n", "\nLR = 0.25\n"))
    before = contents(run)
    with pytest.raises(RunFolderError) as caught:
        continued(load([run.config_path]) if own else config, run)
    assert caught.value.exit_code == 4
    text = str(caught.value)
    edited = load([run.config_path]).hash[:8]
    assert text.startswith(
        f"{run.config_path} (config hash {edited}) must be the configuration that step-00000012 was trained with "
        f"(config hash {config.hash[:8]}, global batch 4), but is another:\n    AdamW.lr: 0.001 -> 0.25"
    )
    assert text.endswith("\n    set these values back in it, or start a new run with another --name")
    assert contents(run) == before
    saved = newest(run)
    assert saved is not None
    with pytest.raises(RunFolderError, match="but is another"):  # as a rank sees it
        require_config(load([run.config_path]), run, saved)


def test_an_edited_global_batch_is_seen_too(config: Config, tmp_path: Path) -> None:
    run = begun(config, tmp_path, "run")
    saved = newest(run)
    assert saved is not None
    old = saved._replace(extra={**saved.extra, "config_hash": load([TINY]).hash})  # of the first rule: left open
    require_config(config, run, old)
    with pytest.raises(RunFolderError, match=r"\(config hash \w{8}, global batch 4\), but is another"):
        require_config(load([TINY], ["train.global_batch_size=8"]), run, old)


def test_an_edit_that_changes_no_number_is_taken(
    config: Config, tmp_path: Path, messages: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modlib")
    run = begun(config, tmp_path, "run")
    run.config_path.write_text(run.config_path.read_text().replace("\nLOG_EVERY = 1\n", "\nLOG_EVERY = 5\n"))
    continued(config, run)
    assert "this run continues with changed settings that change no number:\ntrain.log_every: 5 -> 1" in messages()


def test_a_hash_that_today_nobody_can_compute_is_trusted_where_the_folder_recorded_it(
    config: Config, tmp_path: Path
) -> None:
    """Code changes the hash of a configuration, by a rename for one; the run folder says what it was."""
    run = begun(config, tmp_path, "run")
    record = json.loads(run.provenance_path.read_text())
    run.provenance_path.write_text(json.dumps({**record, "hash": "1" * 64}))
    saved = newest(run)
    assert saved is not None
    before = saved._replace(extra={**saved.extra, "config_hash": "1" * 64})
    require_config(config, run, before)
    continued(planned("LOG_EVERY=3"), run)  # config.gin and provenance.json are written anew
    record = json.loads(run.provenance_path.read_text())
    assert record["hash"] == config.identity
    assert "1" * 64 in record["same_as"]
    require_config(config, run, before)
    run.config_path.write_text(run.config_path.read_text() + "\n# edited\n")
    with pytest.raises(RunFolderError):
        require_config(config, run, before)


def test_a_damaged_provenance_is_no_record(config: Config, tmp_path: Path) -> None:
    run = begun(config, tmp_path, "run")
    record = json.loads(run.provenance_path.read_text())
    for broken in ("{", "[]", json.dumps({**record, "same_as": 3}), json.dumps({**record, "hash": 3})):
        run.provenance_path.write_text(broken)
        continued(config, run)


# ------------------------------------------------------------------------------------------------- the checkpoints


@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(config: Config, tmp_path: Path, status: str) -> None:
    run = begun(config, tmp_path, "run", status=status)
    run.metrics_path.write_text('{"step": 1, "train/loss": 2.0}\n')
    shutil.rmtree(run.checkpoints_path / "step-00000012")
    before = contents(run)
    with pytest.raises(CheckpointError) as caught:
        continued(config, run)
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        f"run 'run' must have its checkpoints to continue from step 12, but {run.checkpoints_path} has none; put them "
        "back, or start anew: with another --name, or with this run folder moved away"
    )
    assert contents(run) == before
    run.update(step=0)
    continued(config, run)


def test_a_newest_checkpoint_that_is_gone_is_named(config: Config, tmp_path: Path, messages: Callable[[], str]) -> None:
    run = begun(config, tmp_path, "run", 8, 12)
    shutil.rmtree(run.checkpoints_path / "step-00000012")
    continued(config, run)
    assert (
        f"step-00000012, which run.json names, is gone from {run.checkpoints_path}: the newest is step-00000008"
        in messages()
    )


def test_a_finished_run_is_finished_where_its_last_checkpoint_is_whole(config: Config, tmp_path: Path) -> None:
    run = begun(config, tmp_path, "run", 8, 40, status="finished")
    assert is_finished(run, 40)
    assert not is_finished(run, 41)
    run.update(status="stopped")
    assert not is_finished(run, 40)


def damage_gone(path: Path) -> None:
    shutil.rmtree(path)


def damage_cut(path: Path) -> None:
    file = next(path.glob("data-*"))
    file.write_bytes(file.read_bytes()[:-1])


def damage_flip(path: Path) -> None:
    file = next(path.glob("data-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x99")


@pytest.mark.parametrize("damage", [damage_gone, damage_cut, damage_flip])
def test_a_finished_run_without_its_last_checkpoint_says_so(
    config: Config, tmp_path: Path, damage: Callable[[Path], None], messages: Callable[[], str]
) -> None:
    run = begun(config, tmp_path, "run", 8, 40, status="finished")
    damage(run.checkpoints_path / "step-00000040")
    before = contents(run)
    with pytest.raises(CheckpointError) as caught:
        is_finished(run, 40)
    text = str(caught.value)
    assert text.startswith("run 'run', finished at step 40, must have an undamaged checkpoint of it, but ")
    assert str(run.checkpoints_path / "step-00000040") in text
    assert text.endswith("; put it back, or train the steps since step-00000008 again with --resume must")
    assert contents(run) == before
    assert not is_finished(run, 40, "must")
    assert "what is missing is trained again" in messages()
    shutil.rmtree(run.checkpoints_path / "step-00000008")
    with pytest.raises(CheckpointError, match=r"put it back, or start a new run with --name$"):
        is_finished(run, 40)


def test_a_very_large_checkpoint_is_not_hashed(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(config, tmp_path, "run", 40, status="finished")
    damage_flip(run.checkpoints_path / "step-00000040")
    monkeypatch.setattr(continuing, "MOST_HASHED_BYTES", 10)
    assert is_finished(run, 40)


def test_a_finished_run_does_not_continue_and_keeps_its_config(
    config: Config, tmp_path: Path, messages: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modlib")
    run = begun(config, tmp_path, "run", 40, status="finished")
    text = run.config_path.read_text()
    prepare(planned("LOG_EVERY=7"), runs_dir=tmp_path, name="run")
    assert "continues" not in messages()
    assert run.config_path.read_text() == text
    with pytest.raises(ConfigError, match="exists with a different config"):
        prepare(planned("LR=1.0"), runs_dir=tmp_path, name="run")
