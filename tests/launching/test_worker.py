"""Errors on one rank of a real run of two, through launch.py: the right one last, the right code, a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import forked
from tests.launching.launched import alive, wait_until
from tests.launching_command import ROOT, command, metrics

# A model outside the repository that goes wrong on rank 1, at its third training step.
MODEL = '''
import os
import signal

from modlib.components import component
from modlib.models.gpt2 import GPT2
from modlib.runtime.errors import DataError

RANK = int(os.environ.get("RANK", "0"))
if RANK == 1 and "REPLACED_BY_RANK_1" in os.environ:
    os.replace(os.environ["REPLACED_BY_RANK_1"] + ".cut", os.environ["REPLACED_BY_RANK_1"])


@component("model", "failing")
class Failing(GPT2):
    """A small GPT-2 that fails."""

    def __init__(self, how: str, vocab_size: int, seq_len: int):
        """how: What happens on rank 1."""
        super().__init__(vocab_size=vocab_size, seq_len=seq_len, num_layers=1, num_heads=1, dim=16)
        self.how, self.calls = how, 0

    def forward(self, tokens):
        self.calls += self.training
        if RANK == 1 and self.training and self.calls == 3:
            match self.how:
                case "raise":
                    raise ArithmeticError("the third step cannot be computed")
                case "refuse":
                    raise DataError("token (9) is not one of these; pack again")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(tokens)
'''
GIN = """
include 'debug/tiny.gin'
import failing
train.model = @Failing
Failing.vocab_size = 4096
Failing.seq_len = %SEQ_LEN
Failing.how = 'not at all'
Local.num_processes = 2
Local.threads_per_process = 1
MICRO_BATCH_SIZE = 2
NUM_STEPS = 6
EVAL_EVERY = 6
CHECKPOINT_EVERY = 6
"""


def launch_failing(folder: Path, data: Path, *params: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "failing.py").write_text(MODEL)
    (folder / "failing.gin").write_text(GIN)
    (folder / "tmp").mkdir()
    params = (f"DATA='{data}'", f"VAL_DATA='{data}'", *params)
    words = command("./failing.gin", params, "--name", "run", "--runs_dir", "runs")
    process = forked.Popen(
        words,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), **environment},
    )
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not alive(folder), timeout_s=10)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def test_an_unexpected_error_on_rank_1_is_last_with_its_traceback(tmp_path: Path, small_corpus: Path) -> None:
    done = launch_failing(tmp_path, small_corpus, "Failing.how='raise'")
    run = tmp_path / "runs" / "run"
    log = run / "attempts" / "0001" / "logs" / "rank-1.out"
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1] == "ArithmeticError: the third step cannot be computed"
    first = max(number for number, line in enumerate(lines) if "failed first" in line)
    assert lines[first].startswith("rank 1 on ")
    assert lines[first].endswith(f"failed first (log: {log.relative_to(tmp_path)})")
    assert lines[first + 1] == "Traceback (most recent call last):"
    assert "in forward" in "\n".join(lines[first:])
    assert "ArithmeticError: the third step cannot be computed" in log.read_text()
    assert [line["step"] for line in metrics(run) if "train/loss" in line] == [1, 2]
    state = json.loads((run / "run.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 1)
    assert json.loads((run / "attempts" / "0001" / "exit.json").read_text())["reason"] == "failed"


@pytest.mark.slow
def test_a_killed_rank_is_named_although_the_others_fail_in_its_wake(tmp_path: Path, small_corpus: Path) -> None:
    done = launch_failing(tmp_path, small_corpus, "Failing.how='die'")
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("rank "))
    assert lines[last].startswith("rank 1 was killed by SIGKILL, as the system does when memory runs out (log: ")


@pytest.mark.slow
def test_an_error_of_a_class_gives_the_code_of_the_class_and_its_text_alone(tmp_path: Path, small_corpus: Path) -> None:
    done = launch_failing(tmp_path, small_corpus, "Failing.how='refuse'")
    assert done.returncode == 3, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-2].startswith("rank 1 on ")
    assert lines[-1] == "token (9) is not one of these; pack again"
    log = (tmp_path / "runs" / "run" / "attempts" / "0001" / "logs" / "rank-1.out").read_text()
    assert "Traceback (most recent call last):" in log
    assert "DataError: token (9) is not one of these; pack again" in log


@pytest.mark.slow
def test_data_that_changes_between_the_check_and_the_start_of_the_ranks(tmp_path: Path, small_corpus: Path) -> None:
    data = tmp_path / "data.packed"
    shutil.copy(small_corpus, data)
    data.with_name("data.packed.cut").write_bytes(data.read_bytes()[:-7])
    done = launch_failing(tmp_path, small_corpus, f"DATA='{data}'", REPLACED_BY_RANK_1=str(data))
    assert done.returncode == 3, done.stderr
    last = done.stderr[done.stderr.rindex("failed first") :]
    assert str(data) in last


@pytest.mark.parametrize("closed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_or_closed_terminal_does_not_disturb_a_run(tmp_path: Path, closed: bool, small_corpus: Path) -> None:
    params = ["NUM_STEPS=2", f"DATA='{small_corpus}'", f"VAL_DATA='{small_corpus}'"]
    words = command("debug/tiny.gin", params, "--name", "run", "--runs_dir", str(tmp_path))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if closed:
        words = ["bash", "-c", 'exec "$@" 0<&- >&- 2>&-', "bash", *words]
        done = subprocess.run(words, cwd=ROOT, timeout=90, env=environment)
    else:
        with open("/dev/full", "w") as full:
            done = forked.run(words, cwd=ROOT, timeout=90, env=environment, stderr=full)
    assert done.returncode == 0
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["status"], state["step"]) == ("finished", 2)
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == [1, 2]
