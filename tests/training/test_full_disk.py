"""What cannot be written costs a warning and what it would have told, not the run; the end says what is missing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modlib.checkpointing.loading import newest
from modlib.cli.start.launch import app
from modlib.data.corpora.corpus import open_packed, prepare
from modlib.runtime import faults
from modlib.runtime.run_folder import RunFolder
from tests.launching_command import metrics

PARAMS = ("NUM_STEPS=12", "LOG_EVERY=1", "CHECKPOINT_EVERY=4", "EVAL_EVERY=4", "train.subscribers=[@JSONL]",
          "train.sample=None", "MICRO_BATCH_SIZE=1")  # fmt: skip


def launch(runs: Path, *params: str) -> tuple[int, str]:
    words = [word for param in (*PARAMS, *params) for word in ("--gin_param", param)]
    result = CliRunner().invoke(app, ["--gin_file", "debug/tiny.gin", *words, "--name", "run", "--runs_dir", str(runs)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.replace("│", " ").split())  # the table is broken into lines


def refusing(number: int, refused: Callable[[str], bool]) -> Callable[[str, str], None]:
    """An action for `fs.operation`: what is refused fails with this error."""

    def act(name: str, operation: str) -> None:
        if refused(operation):
            raise OSError(number, os.strerror(number))

    return act


def after(part: str, refused: Callable[[str], bool]) -> Callable[[str], bool]:
    """Refuse only from the first operation on that has this part."""
    begun = []

    def decide(operation: str) -> bool:
        if part in operation:
            begun.append(operation)
        return bool(begun) and refused(operation)

    return decide


def test_training_goes_on_without_the_checkpoint(tmp_path: Path) -> None:
    full = refusing(errno.ENOSPC, lambda operation: operation.startswith("write") and "step-00000008" in operation)
    with faults.installed("fs.operation", full):
        code, said = launch(tmp_path)
    assert code == 0, said
    assert "training goes on without a checkpoint of step 8" in said
    assert "No space left on device" in said
    assert metrics(tmp_path / "run")[-1]["step"] == 12
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000012"]
    found = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.step == 12


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_run_json_that_cannot_be_written_for_a_while(tmp_path: Path, number: int) -> None:
    refused = after("rename", lambda operation: "run.json" in operation and "step-00000004" not in operation)
    left = [2]

    def twice(operation: str) -> bool:
        fails = left[0] > 0 and "step-0" not in operation and refused(operation)
        left[0] -= fails
        return fails

    begun = after("step-00000004", twice)
    with faults.installed("fs.operation", refusing(number, begun)):
        code, said = launch(tmp_path)
    assert code == 0, said
    assert f"run.json could not be written ({os.strerror(number)}); that ends nothing" in said
    assert "incomplete" not in said  # the next write brought it
    record = RunFolder(tmp_path / "run").read()
    assert (record["step"], record["status"], record["exit_code"]) == (12, "finished", 0)


@pytest.mark.slow
def test_lines_of_metrics_that_could_not_be_written(tmp_path: Path) -> None:
    code, said = launch(tmp_path / "whole")
    assert code == 0, said
    last = metrics(tmp_path / "whole" / "run")
    losses = {line["step"]: line["train/loss"] for line in last if "train/loss" in line}
    written: list[str] = []
    run = RunFolder(tmp_path / "run")

    def from_the_sixth_on(operation: str) -> bool:
        if operation.startswith("write") and operation.endswith("metrics.jsonl"):
            written.append(operation)
        return len(written) > 5 and operation.endswith("metrics.jsonl")

    with faults.installed("fs.operation", refusing(errno.EDQUOT, from_the_sixth_on)):
        code, said = launch(tmp_path)
        assert code == 4, said
        lost = len(last) - 5
        text = f"warning: {lost} lines of {run.metrics_path} could not be written and are lost; checkpoints are whole"
        assert said.endswith(text)
        table = re.search(r"train loss +([\d.]+)", said)
        assert table is not None
        assert float(table[1]) == pytest.approx(losses[12], abs=1e-4)
        assert float(table[1]) != pytest.approx(losses[4], abs=1e-4)
        assert re.search(r"best loss [\d.]+ at step \d+", said)
    assert len(metrics(tmp_path / "run")) == 5
    assert (run.read()["status"], run.read()["exit_code"], run.read()["lost_metrics"]) == ("finished", 4, lost)
    assert run.current_attempt().ending()["reason"] == "finished"
    code, said = launch(tmp_path)
    assert (code, run.num_attempts) == (0, 1)
    assert "is finished" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(errno.ENOSPC, marks=pytest.mark.slow), errno.EROFS])
def test_nothing_can_be_written_any_more(tmp_path: Path, number: int) -> None:
    """The needed save fails: one clear error, whatever of the bookkeeping fails after it."""
    begun = after("step-00000008", lambda operation: not operation.startswith(("fsync", "unlink", "rmdir")))
    with faults.installed("fs.operation", refusing(number, begun)):
        code, said = launch(tmp_path)
    assert code == 4, said
    assert os.strerror(number) in said
    assert "run.json could not be written" in said
    found = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.step == 4
    code, said = launch(tmp_path)  # there is room again
    assert code == 0, said
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == list(range(1, 13))


def test_the_table_at_the_end_needs_no_file(tmp_path: Path) -> None:
    code, said = launch(tmp_path, "train.subscribers=[]")
    assert code == 0, said
    assert re.search(r"train loss +\d+\.\d+", said)
    assert re.search(r"best loss \d+\.\d+ at step (4|8|12)", said)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tokenizer_that_breaks_during_the_run_costs_the_sample_alone(tmp_path: Path) -> None:
    data, tokenizer = tmp_path / "data.packed", tmp_path / "data.tokenizer.json"
    prepare("stdlib:validation")
    corpus = open_packed("stdlib:validation").path.parent
    shutil.copy(corpus / "validation.packed", data)
    shutil.copy(corpus / "tokenizer.json", tokenizer)

    def break_it(name: str, operation: str) -> None:
        if "step-00000012" in operation:
            tokenizer.write_text("{")
            data.unlink(missing_ok=True)

    with faults.installed("fs.operation", break_it):
        code, said = launch(tmp_path, f"DATA='{data}'", f"VAL_DATA='{data}'", "train.sample=@TextSample")
    assert code == 0, said
    assert "warning: no text sample: " in said
    assert RunFolder(tmp_path / "run").read()["status"] == "finished"


@pytest.mark.slow
def test_the_first_of_several_ranks_tells_what_came_of_it(tmp_path: Path) -> None:
    code, said = launch(tmp_path, "train.subscribers=[]", "Local.num_processes=2")
    assert code == 0, said
    assert re.search(r"train loss +\d+\.\d+", said)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
