"""Runs that are made longer, and runs that branch: to the bit as one that was as long from the start, or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modlib.cli.start.launch import app as launch_app
from modlib.cli.start.longer import change_of
from modlib.config import Config, load
from modlib.launching import lengthening
from modlib.launching.identity import identify
from modlib.launching.prepare import prepare
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder
from tests.cli.commands import modlib
from tests.launching.begun import begun
from tests.launching_command import launch, metrics, numbers

TINY = "debug/tiny.gin"
WSD = ("--gin_file", "optim/wsd.gin")
PARAMS = ["train.sample=None", "CHECKPOINT_EVERY=4", "SaveKMostRecent.k=-1", "EVAL_EVERY=5"]
FILES = {"wsd": [TINY, "optim/wsd.gin"], "cosine": [TINY], "constant": [TINY]}
MORE = {"constant": ["train.scheduler=@DummyLR"]}


def planned(kind: str, steps: int, *params: str) -> Config:
    config = load(FILES[kind], [*MORE.get(kind, []), f"NUM_STEPS={steps}", *params])
    return identify(config, 1, runs_dir=Path("nowhere"))[0]


def told(call: Callable[[], Any], error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# ------------------------------------------------------------------------------------------- decided without training


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [("constant", (4, 8, 20), 20), ("wsd", (8, 16, 20), 16), ("wsd", (8, 12), 12), ("cosine", (4,), 4)],
    ids=["constant", "wsd, finished", "wsd, before its decay", "cosine, in its warm-up"],
)
def test_the_newest_checkpoint_before_the_rates_part(
    kind: str, steps: tuple[int, ...], expected: int, tmp_path: Path
) -> None:
    run = begun(planned(kind, 20), tmp_path, "run", *steps)
    config = planned(kind, 40)
    change = change_of(config, run, None, None)
    assert change is not None
    assert (change.kind, change.step, change.done, change.from_steps, change.to_steps) == (
        "extended", expected, steps[-1], 20, 40,
    )  # fmt: skip
    if expected == steps[-1]:
        assert (
            change.text() == f"run run is extended from 20 to 40 steps, from its newest checkpoint, of step {expected}"
        )
    else:
        assert change.text() == (
            "run run is extended from 20 to 40 steps, from the checkpoint of step 16, the newest before its schedule "
            f"changes: steps 17 to 20 are done again with the new one; what was there is kept in {run.path}/"
            "before_extension/0001"
        )


def test_a_cosine_is_refused_with_the_step_from_which_a_branch_is_allowed(tmp_path: Path) -> None:
    run = begun(planned("cosine", 20), tmp_path, "run", 4, 8, 20)
    begin = (
        "num_steps (40) of run 'run' must be 20, for which its schedule was planned: from update 6 on "
        "LinearWarmupCosine has other rates (0.0009983 with 40 steps, 0.0009914 with 20), and 20 are done; a branch is "
        "allowed from step 5 at most"
    )
    assert told(lambda: change_of(planned("cosine", 40), run, None, None)) == (
        f"{begin}: --branch_from run --step 4 --name NEW"
    )
    shutil.rmtree(run.checkpoints_path / "step-00000004")
    assert told(lambda: change_of(planned("cosine", 40), run, None, None)) == (
        f"{begin}, and its checkpoints are of 20, 8: start a new run with another --name"
    )


def test_what_is_no_extension_stays_refused(tmp_path: Path) -> None:
    run = begun(planned("wsd", 20), tmp_path, "run", 8)
    for other in (planned("wsd", 10), planned("wsd", 40, "LR=3e-3"), planned("cosine", 40)):
        assert change_of(other, run, None, None) is None
        with pytest.raises(ConfigError, match="run 'run' exists with a different config"):
            prepare(other, runs_dir=tmp_path, name="run")
    assert change_of(planned("wsd", 20), run, None, None) is None
    assert change_of(planned("wsd", 40), RunFolder(tmp_path / "none"), None, None) is None


def test_another_schedule_within_a_sequence_is_another_run(tmp_path: Path) -> None:
    def sequence(steps: int, second: str) -> Config:
        config = load([TINY, "optim/sequence.gin"], [f"NUM_STEPS={steps}", *second.split("|")])
        return identify(config, 1, runs_dir=Path("nowhere"))[0]

    constant = "SequentialSchedules.schedulers=[@LinearLR, @ConstantLR]|ConstantLR.factor=1.0"
    run = begun(sequence(20, constant), tmp_path, "run", 8)
    assert change_of(sequence(40, constant), run, None, None) is not None
    assert change_of(sequence(40, "LOG_EVERY=1"), run, None, None) is None


def test_a_length_that_is_computed_from_tokens_can_be_larger(tmp_path: Path) -> None:
    """Where the components that compute it compute nothing else."""

    def of_tokens(tokens: int) -> Config:
        files = [TINY, "training/steps_from_tokens.gin"]
        params = [f"NUM_TOKENS={tokens}", "train.scheduler=@WarmupStableDecay", "WarmupStableDecay.warmup_steps=4"]
        params += ["WarmupStableDecay.num_steps=%NUM_STEPS", "WarmupStableDecay.decay_steps=4"]
        return identify(load(files, params), 1, runs_dir=Path("nowhere"))[0]

    run = begun(of_tokens(20 * 128), tmp_path, "run", 8, 16, 20)
    change = change_of(of_tokens(40 * 128), run, None, None)
    assert change is not None
    assert (change.step, change.from_steps, change.to_steps) == (16, 20, 40)
    written = planned("wsd", 40, "WarmupStableDecay.decay_steps=4")
    change = change_of(written, run, None, None)
    assert change is not None
    assert (change.step, change.to_steps) == (16, 40)


def test_an_extension_on_other_processes_keeps_the_runs_global_batch(tmp_path: Path) -> None:
    run = begun(planned("wsd", 20), tmp_path, "run", 8)
    longer, _ = identify(
        load(FILES["wsd"], ["NUM_STEPS=40", "MICRO_BATCH_SIZE=2"]), 2, runs_dir=tmp_path, name=run.name
    )
    assert longer.resolved["train.global_batch_size"] == 4  # but its micro-batch is another number of the hash
    longer, _ = identify(load(FILES["wsd"], ["NUM_STEPS=40"]), 1, runs_dir=tmp_path, name=run.name)
    assert change_of(longer, run, None, None) is not None


def test_branches_that_are_refused(tmp_path: Path) -> None:
    source = begun(planned("wsd", 20), tmp_path, "old", 8, 16, 20)
    new = RunFolder(tmp_path / "new")
    longer = planned("wsd", 40)
    assert told(lambda: change_of(longer, new, source, 20)) == (
        "--step (20) must be at most 17 for a run of 40 steps that branches from 'old', since from update 18 on "
        "WarmupStableDecay has other rates (0.001 with 40 steps, 0.0005 with 20); the newest step from which it is "
        "allowed is 16, of 20, 16, 8"
    )
    assert told(lambda: change_of(longer, new, source, 9)) == "--step (9) must be a checkpoint of run 'old': 20, 16, 8"
    assert told(lambda: change_of(planned("wsd", 10), new, source, 16)) == (
        "--step (16) must be below num_steps (10); raise NUM_STEPS, or branch from before"
    )
    assert told(lambda: change_of(planned("wsd", 40, "LR=3e-3"), new, source, 8)).startswith(
        "run 'new' must be like 'old', which it branches from, but for its length and schedule:\n    AdamW.lr: 0.001 ->"
    )
    empty = prepare(planned("wsd", 20), runs_dir=tmp_path, name="empty")
    assert (
        told(lambda: change_of(longer, new, empty, None)) == "--branch_from (empty) must have a checkpoint; it has none"
    )
    other = begun(planned("wsd", 40), tmp_path, "other", 8)
    assert told(lambda: change_of(longer, other, source, 8), RunFolderError) == (
        f"name (other) must be of a new run, or of one that branched from 'old', but {other.path} is another; choose "
        "another --name"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--branch_from", "old"], "--branch_from goes with --name, the new run's, and not with --sweep"),
        (["--branch_from", "old", "--name", "n", "--sweep", "LR=[1e-3]"], "goes with --name, the new run's, and not"),
        (["--step", "4"], "--step goes with --branch_from"),
        (["--branch_from", "old", "--name", "n"], "RUN (old) must be a run in"),
    ],
)
def test_flags_that_do_not_go_together(words: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(launch_app, ["--gin_file", TINY, "--runs_dir", str(tmp_path), *words])
    assert done.exit_code in (2, 4)
    assert said in " ".join(done.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_folder_without_its_configuration_is_no_source(tmp_path: Path) -> None:
    source = RunFolder(tmp_path / "old")
    source.create()
    assert (
        told(lambda: change_of(planned("wsd", 40), RunFolder(tmp_path / "new"), source, None), RunFolderError)
        == f"--branch_from ({source.path}) must have a config.gin; there is none"
    )


def test_an_earlier_decay_is_a_branch_too(tmp_path: Path) -> None:
    """The use of a constant rate: several decays from one long run."""
    source = begun(planned("wsd", 40), tmp_path, "old", 8, 16, 24)
    change = change_of(planned("wsd", 20), RunFolder(tmp_path / "new"), source, None)
    assert change is not None
    assert change.step == 16


@pytest.mark.slow
def test_an_interrupted_branch_and_extension_are_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = begun(planned("wsd", 20), tmp_path, "old", 8, 16, 20, status="finished")
    longer = planned("wsd", 40)
    new = RunFolder(tmp_path / "new")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    change = change_of(longer, new, source, 16)
    with monkeypatch.context() as patched:
        patched.setattr("modlib.launching.prepare.branch_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(longer, runs_dir=tmp_path, name="new", change=change)
    assert "must have its checkpoints to continue from step 16" in told(
        lambda: prepare(longer, runs_dir=tmp_path, name="new"), Exception
    )
    prepare(longer, runs_dir=tmp_path, name="new", change=change_of(longer, new, source, 16))
    assert [path.name for path in new.checkpoints_path.iterdir()] == ["step-00000016"]
    assert change_of(longer, new, source, 16) is None
    assert told(lambda: change_of(longer, new, source, 8), RunFolderError) == (
        "--step (8) must be 16, from which run 'new' has branched already; choose another --name"
    )

    change = change_of(longer, source, None, None)
    with monkeypatch.context() as patched:
        patched.setattr("modlib.launching.prepare.write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(longer, runs_dir=tmp_path, name="old", change=change)
    assert [step for step, _ in lengthening.step_folders(source.checkpoints_path)] == [16, 8]
    prepare(longer, runs_dir=tmp_path, name="old", change=change_of(longer, source, None, None))
    (record,) = source.read()["extended"]
    assert (record["at_step"], record["from_steps"], record["to_steps"]) == (16, 20, 40)
    provenance = json.loads(source.provenance_path.read_text())
    assert provenance["extended"] == [record]
    assert provenance["same_as"] == [record["from_hash"]]
    assert provenance["hash"] == record["to_hash"] == source.read()["config_hash"] == longer.identity
    assert prepare(longer, runs_dir=tmp_path, name="old").read()["extended"] == [record]


# -------------------------------------------------------------------------------------------------- with real training


def trained(folder: Path, name: str, steps: int, *flags: str, params: list[str] | None = None) -> RunFolder:
    arguments = [*PARAMS, *(params or []), f"NUM_STEPS={steps}"]
    done = launch(TINY, arguments, *flags, "--runs_dir", str(folder), "--name", name)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps whose decay begins after 8, and one of 16."""
    folder = tmp_path_factory.mktemp("made")
    trained(folder, "short", 10, *WSD)
    trained(folder, "long", 16, *WSD)
    return folder


@pytest.fixture
def short(made: Path, tmp_path: Path) -> RunFolder:
    """A copy of the run of 10 steps."""
    return RunFolder(shutil.copytree(made / "short", tmp_path / "run"))


@pytest.mark.slow
def test_a_finished_run_is_extended_to_the_bit(made: Path, short: RunFolder, tmp_path: Path) -> None:
    run = trained(tmp_path, "run", 16, *WSD)
    assert numbers(run.path) == numbers(made / "long")
    assert len([line for line in metrics(run.path) if "train/loss" in line]) == 16
    state = run.read()
    assert (state["status"], state["step"], state["extended"][0]["at_step"]) == ("finished", 16, 8)
    kept = RunFolder(short.path / lengthening.BEFORE / "0001")
    assert metrics(kept.path)[-1]["step"] == 10
    assert [path.name for path in kept.checkpoints_path.iterdir()] == ["step-00000010"]
    assert modlib("generate", kept.path, "--prompt", "def ", "--max_new_tokens", "2").stdout.startswith("def ")
    assert "finished" in modlib("ls", "--runs_dir", tmp_path).stdout
    again = launch(TINY, [*PARAMS, "NUM_STEPS=16"], *WSD, "--runs_dir", str(tmp_path), "--name", "run")
    assert "is finished: 16 steps are done" in again.stderr
    assert "are equal, bit for bit" in modlib("reproduce", run.path, "--runs_dir", tmp_path, "--name", "again").stdout


@pytest.mark.slow
def test_a_branch_equals_one_long_run_to_the_bit(made: Path, tmp_path: Path) -> None:
    new = trained(tmp_path, "new", 16, *WSD, "--branch_from", str(made / "short"), "--step", "4")
    assert numbers(new.path) == numbers(made / "long")
    record = new.read()["branched_from"]
    assert (record["run"], record["at_step"], record["path"]) == ("short", 4, str(made / "short"))
    assert modlib("resume", new.path).output.count("is finished") == 1


@pytest.mark.slow
def test_a_constant_rate_goes_on_from_the_newest_checkpoint_to_the_bit(tmp_path: Path) -> None:
    constant = ["train.scheduler=@DummyLR"]
    run = trained(tmp_path, "run", 6, params=constant)
    trained(tmp_path, "run", 10, params=constant)
    long = trained(tmp_path, "long", 10, params=constant)
    ends = {(6, "val/validation/loss")}  # of the run of 6 steps
    assert [one for one in numbers(run.path) if (one[0], one[2]) not in ends] == numbers(long.path)
    assert not (run.path / lengthening.BEFORE).exists()


@pytest.mark.slow
def test_extended_twice_and_killed_before_the_first_new_checkpoint(made: Path, tmp_path: Path) -> None:
    """The old checkpoint is taken up a second time: its schedule's state must not come back with it."""
    run = trained(tmp_path, "run", 6, *WSD)
    trained(tmp_path, "run", 10, *WSD)
    for step in (8, 10):
        shutil.rmtree(run.checkpoints_path / f"step-{step:08d}")
    run.update(status="stopped", step=4)
    trained(tmp_path, "run", 10, *WSD)
    trained(tmp_path, "run", 16, *WSD)
    ends = {(6, "val/validation/loss")}  # of the run of 6 steps, whose last is before its decay
    assert [one for one in numbers(run.path) if (one[0], one[2]) not in ends] == numbers(made / "long")
    assert [one["to_steps"] for one in run.read()["extended"]] == [10, 16]


@pytest.mark.slow
def test_an_extension_is_decided_on_the_login_node(
    made: Path, short: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that SLURM starts later finds the folder as if the run had always been so long."""
    run = short
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun"):  # a job that waits for ever
        (programs / name).write_text("#!/bin/sh\ncat > /dev/null\necho 'Submitted batch job 12'\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    submitted = trained(tmp_path, "run", 16, *WSD, "--executor", "slurm", params=["Slurm.gpus_per_node=0"])
    state = submitted.read()
    assert (state["status"], state["step"], state["num_steps"]) == ("queued", 8, 16)
    assert state["slurm"]["job_ids"] == ["12"]
    assert load([run.config_path]).resolved["train.num_steps"] == 16
    run.update(status="stopped", slurm={})
    assert modlib("show", run.path).output
    assert numbers(trained(tmp_path, "run", 16, *WSD).path) == numbers(made / "long")


@pytest.mark.slow
def test_two_processes_extend_a_run_that_left_its_global_batch_open(tmp_path: Path) -> None:
    two = ["Local.num_processes=2"]
    run = trained(tmp_path, "run", 5, *WSD, params=two)
    trained(tmp_path, "run", 7, *WSD, params=two)
    assert numbers(run.path) == numbers(trained(tmp_path, "long", 7, *WSD, params=two).path)
    (record,) = run.read()["extended"]
    assert record["to_hash"] == run.read()["config_hash"]
