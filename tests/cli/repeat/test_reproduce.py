"""`modlib reproduce`: the code of then, the data of then, the numbers of then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from modlib.cli.repeat.reproduce import keep_code
from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter
from modlib.launching.old_code import PATCH
from modlib.runtime.run_folder import RunFolder
from tests.cli.commands import modlib
from tests.launching.projects import commit_all, git
from tests.launching_command import ROOT, metrics

STEPS, LR, WARMUP = 6, 1e-3, 4
CURRENT = "return min(1.0, (step + 1) / (warmup_steps + 1))"
OLD = "return min(1.0, (step + 2) / (warmup_steps + 2))"


class Older(NamedTuple):
    """A copy of this project as a repository, whose first commit has another warm-up, and a run made at that commit."""

    repository: Path
    runs: Path
    data: Path

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python on the repository as it lies there now."""
        paths = os.pathsep.join([str(self.repository), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=self.repository, capture_output=True, text=True, timeout=200,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def reproduce(self, *flags: str | Path, run: Path | None = None) -> subprocess.CompletedProcess[str]:
        code = "from modlib.cli.main import main; main()"
        return self.call("-c", code, "reproduce", run or self.runs / "run", "--runs_dir", self.runs, *flags)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> Older:
    folder = tmp_path_factory.mktemp("older")
    repository, data = folder / "repository", folder / "data.packed"
    for name in ("modlib", "gin_configs"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", repository)
    shutil.copy(small_corpus, data)
    schedules = repository / "modlib" / "optim" / "schedules.py"
    now = schedules.read_text()
    assert now.count(CURRENT) == 1
    schedules.write_text(now.replace(CURRENT, OLD))
    commit_all(repository, "the warm-up as it was")
    made = Older(repository, folder / "runs", data)
    sizes = [f"DATA='{data}'", f"VAL_DATA='{data}'", f"NUM_STEPS={STEPS}", "EVAL_EVERY=2", "train.sample=None"]
    params = [word for size in sizes for word in ("--gin_param", size)]
    words = ["--gin_file", "debug/tiny.gin", *params, "--runs_dir", made.runs, "--name", "run"]
    done = made.call(repository / "launch.py", *words)
    assert done.returncode == 0, done.stderr
    schedules.write_text(now)
    commit_all(repository, "the warm-up as it is")
    return made


def lrs(run: Path) -> list[float]:
    return [line["train/lr"] for line in metrics(run) if "train/lr" in line]


@pytest.mark.slow
def test_a_run_of_an_older_commit_is_repeated_to_the_bit_with_its_own_code(older: Older) -> None:
    done = older.reproduce()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{STEPS} logged steps of 6 metrics are equal, bit for bit\n"
    again = older.runs / "run-again"
    assert lrs(again) == lrs(older.runs / "run")
    assert lrs(again)[0] == LR * 2 / (WARMUP + 2)
    assert LR * 2 / (WARMUP + 2) != LR * 1 / (WARMUP + 1), "the code of now would give another number"
    state = json.loads((again / "run.json").read_text())
    commit = git(older.repository, "rev-parse", "HEAD~1")
    assert state["reproduced_with"] == f"commit {commit[:12]}"
    assert state["status"] == "finished"
    assert (state["git_commit"], state["git_dirty"]) == (commit, False)
    assert "modlib-code-" not in done.stderr.partition("finished")[2], "the folder of the old code is gone"


@pytest.mark.slow
def test_a_run_that_repeats_another_is_repeated_too(older: Older) -> None:
    first = older.reproduce("--name", "second")
    assert first.returncode == 0, first.stderr
    assert older.reproduce("--name", "third", run=older.runs / "second").stdout == first.stdout


@pytest.mark.slow
def test_a_prefix_and_the_first_difference(older: Older, tmp_path: Path) -> None:
    path = older.runs / "run" / "metrics.jsonl"
    kept = path.read_text()
    done = older.reproduce("--steps", "2", "--json", "--name", "prefix")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["steps"], found["first_difference"]) == (2, None)
    assert max(line["step"] for line in metrics(older.runs / "prefix")) == 2, "it stops after that step, and no later"
    assert [path.name for path in (older.runs / "prefix" / "checkpoints").iterdir()][-1] == "step-00000002"
    try:
        lines = [json.loads(line) for line in kept.splitlines()]
        line = next(line for line in lines if line["step"] == 4 and "train/grad_norm" in line)
        line["train/grad_norm"] = 0.5
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = older.reproduce("--name", "differs")
    finally:
        path.write_text(kept)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("the first difference is at step 4, train/grad_norm: 0.5 in the run, ")


@pytest.fixture
def run(older: Older, tmp_path: Path) -> Path:
    """A copy of the run that reads a copy of its data."""
    copied = tmp_path / "runs" / "run"
    shutil.copytree(older.runs / "run", copied)
    shutil.copy(older.data, tmp_path / "data.packed")
    text = (copied / "run.json").read_text().replace(str(older.data), str(tmp_path / "data.packed"))
    (copied / "run.json").write_text(text)
    return copied


def reproduced(run: Path, code: int) -> str:
    """What is said of a run that must not be run again."""
    done = modlib("reproduce", run, "--runs_dir", run.parent, code=code)
    assert [path.name for path in run.parent.iterdir()] == ["run"], "something ran"
    return " ".join(done.stderr.split())


@pytest.mark.slow
def test_damaged_data_is_named_before_anything_runs(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.packed"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert f"SHA-256 of the contents of {data} (" in reproduced(run, 3)


@pytest.mark.slow
def test_other_data_is_named_before_anything_runs(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.packed"
    before = PackedFile(data).sha256
    data.unlink()
    with PackedFileWriter(data, vocab_size=4096) as writer:
        writer.write([number % 4096 for number in range(4000)])
    now = PackedFile(data).sha256
    assert (
        f"contents of {data}, data of train ({now[:12]}), must be what the run read ({before[:12]}); put that file back"
        in reproduced(run, 3)
    )


def test_missing_data_is_named_before_anything_runs(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.packed"
    data.unlink()
    assert f"data file ({data}), data of train, must be there, but is gone; put it back" in reproduced(run, 3)


def test_the_code_of_the_run_is_written_down_in_the_new_one(run: Path, tmp_path: Path) -> None:
    (run / PATCH).write_bytes(b"a patch")
    state = {"git_commit": "c0" * 20, "git_dirty": True, "git_untracked": ["x.py"], "code": "5" * 64}
    RunFolder(run).update(**state)
    again = RunFolder(tmp_path / "again")
    again.create()
    again.update(git_commit=None)
    keep_code(RunFolder(run), again)
    assert {name: again.read()[name] for name in state} == state
    assert (again.path / PATCH).read_bytes() == b"a patch"


def test_a_run_without_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    assert f"run ({run}) must have metrics to compare with; {run}/metrics.jsonl holds none" in reproduced(run, 4)


def test_steps_before_the_first_that_was_logged(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if json.loads(line)["step"] > 1))
    done = modlib("reproduce", run, "--runs_dir", run.parent, "--steps", "1", code=2)
    assert "--steps (1) must be at least 2, the first step that run has logged" in " ".join(done.stderr.split())


def test_a_name_that_is_taken(run: Path) -> None:
    done = modlib("reproduce", run, "--runs_dir", run.parent, "--name", "run", code=4)
    assert "name (run) must be of a new run, but" in " ".join(done.stderr.split())
