"""The global batch of a run, new or old, and its name; a run folder of the first hash rule is made by that code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modlib.config import Config, load
from modlib.config.hashing import GLOBAL_BATCH
from modlib.launching.continuing import require_same
from modlib.launching.identity import default_name, global_batch_of, identify
from modlib.launching.prepare import prepare
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder
from tests.launching.begun import begun

TINY = "debug/tiny.gin"
ROOT = Path(__file__).parents[1]
FIRST_HASH_RUN = ROOT / "integration" / "first_hash_run"
"""A run with a checkpoint at step 8 of 12, killed at step 10, as modlib of commit bf2e823 left it."""


@pytest.fixture(scope="module")
def config() -> Config:
    return load([TINY])


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, RunFolder]:
    """The gin file and the folder of a run that was made by the first rule, under its default name."""
    run = RunFolder(tmp_path / "runs" / "old-5f43a6de")
    shutil.copytree(FIRST_HASH_RUN, run.path)
    return Path(shutil.copy(run.config_path, tmp_path / "old.gin")), run


def test_a_new_run_has_the_global_batch_of_its_ranks_in_its_hash_and_name(config: Config, tmp_path: Path) -> None:
    one, name_of_one = identify(config, 1, runs_dir=tmp_path)
    two, name_of_two = identify(config, 2, runs_dir=tmp_path)
    assert (one.resolved[GLOBAL_BATCH], two.resolved[GLOBAL_BATCH]) == (4, 8)
    assert (name_of_one, name_of_two) == (f"tiny-{one.hash[:8]}", f"tiny-{two.hash[:8]}")
    assert one.hash != two.hash
    assert two.provenance[GLOBAL_BATCH] == ["micro_batch_size 4 x grad_accum_steps 1 x 2 processes"]


def test_accumulation_counts_and_a_number_that_is_given_stays(tmp_path: Path) -> None:
    assert identify(load([TINY], ["GRAD_ACCUM_STEPS=3"]), 2, runs_dir=tmp_path)[0].resolved[GLOBAL_BATCH] == 24
    given = load([TINY], ["train.global_batch_size=8"])
    assert identify(given, 1, runs_dir=tmp_path) == identify(given, 2, runs_dir=tmp_path)
    assert identify(given, 1, runs_dir=tmp_path)[0].hash == identify(load([TINY]), 2, runs_dir=tmp_path)[0].hash


def test_a_run_that_exists_keeps_its_global_batch(config: Config, tmp_path: Path) -> None:
    planned, _ = identify(config, 2, runs_dir=tmp_path, name="run")
    run = prepare(planned, runs_dir=tmp_path, name="run")
    kept, name = identify(config, 1, runs_dir=tmp_path, name="run")
    assert name == "run"
    assert kept.hash == planned.hash
    assert kept.text == planned.text  # so its config.gin is not written again
    assert identify(load([run.config_path]), 1, runs_dir=tmp_path) == (load([run.config_path]), "run")


def test_a_number_of_ranks_that_does_not_divide_it_is_refused_before_anything_starts(
    config: Config, tmp_path: Path
) -> None:
    prepare(identify(config, 1, runs_dir=tmp_path, name="run")[0], runs_dir=tmp_path, name="run")
    with pytest.raises(ConfigError) as caught:
        identify(config, 2, runs_dir=tmp_path, name="run")
    assert str(caught.value) == (
        "global_batch_size (4) of run 'run' must be a multiple of micro_batch_size (4) x 2 processes = 8; continue it "
        "on 1 process, or start a new run with another --name"
    )
    prepare(identify(config, 6, runs_dir=tmp_path, name="six")[0], runs_dir=tmp_path, name="six")
    with pytest.raises(ConfigError, match=r"continue it on 1, 2, 3 or 6 processes, or"):
        identify(config, 4, runs_dir=tmp_path, name="six")


def test_another_configuration_under_the_name_is_told_as_that(config: Config, tmp_path: Path) -> None:
    prepare(identify(config, 1, runs_dir=tmp_path, name="run")[0], runs_dir=tmp_path, name="run")
    other, _ = identify(load([TINY], ["MICRO_BATCH_SIZE=3"]), 1, runs_dir=tmp_path, name="run")
    with pytest.raises(ConfigError, match=r"train.micro_batch_size: 4 -> 3"):
        prepare(other, runs_dir=tmp_path, name="run")


def test_the_checkpoint_knows_the_global_batch_even_without_a_config(config: Config, tmp_path: Path) -> None:
    planned, _ = identify(config, 2, runs_dir=tmp_path, name="run")
    run = begun(planned, tmp_path, "run", batch=8)
    run.config_path.unlink()
    assert global_batch_of(run) == 8
    assert identify(config, 1, runs_dir=tmp_path, name="run")[0].hash == planned.hash


def test_a_run_of_the_first_rule_continues_under_its_old_name(old: tuple[Path, RunFolder]) -> None:
    file, run = old
    config = load([file])
    kept, name = identify(config, 1, runs_dir=run.path.parent)
    assert name == run.name
    assert kept.resolved[GLOBAL_BATCH] == 2
    stored = run.read()["config_hash"]
    continued = require_same(kept, run)
    assert continued.changed == continued.placing == ()
    assert continued.same_as == (stored,)
    prepare(kept, runs_dir=run.path.parent, name=name)
    assert run.read()["config_hash"] == kept.identity == f"2:{kept.hash}"
    again, name = identify(config, 1, runs_dir=run.path.parent)  # its config.gin is written anew by now
    assert (again.hash, name) == (kept.hash, run.name)
    assert require_same(again, run).same_as == (stored,)


def test_two_processes_are_another_run_than_the_old_one_of_one(old: tuple[Path, RunFolder]) -> None:
    file, run = old
    config, name = identify(load([file]), 2, runs_dir=run.path.parent)
    assert config.resolved[GLOBAL_BATCH] == 4
    assert name == f"old-{config.hash[:8]}" != run.name
    with pytest.raises(ConfigError, match=r"global_batch_size \(2\) of run 'old-5f43a6de' must be a multiple of"):
        identify(load([file]), 2, runs_dir=run.path.parent, name=run.name)


def test_the_old_runs_own_config_is_the_old_run(old: tuple[Path, RunFolder]) -> None:
    _, run = old
    config, name = identify(load([run.config_path]), 1, runs_dir=run.path.parent)
    assert name == run.name == default_name(config, run.path.parent)
    assert config.resolved[GLOBAL_BATCH] == 2


def test_an_old_run_that_never_began_takes_the_ranks_of_now(old: tuple[Path, RunFolder]) -> None:
    file, run = old
    shutil.rmtree(run.checkpoints_path)
    run.run_json_path.write_text('{"name": "old-5f43a6de", "status": "created"}')
    config, name = identify(load([file]), 3, runs_dir=run.path.parent)
    assert (name, config.resolved[GLOBAL_BATCH]) == (run.name, 6)


def test_a_run_is_named_after_its_whole_run_file(tmp_path: Path) -> None:
    site = tmp_path / "site.gin"
    site.write_text("Slurm.partition = 'long'\n")
    assert identify(load([site, TINY]), 1, runs_dir=tmp_path)[1].startswith("tiny-")
