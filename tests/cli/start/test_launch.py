"""launch.py's own flags: help, --dry_run, --json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from modlib.cli.start.launch import app
from tests import forked
from tests.launching_command import ROOT, command

HEAVY = ("torch", "numpy", "tensorboard", "transformers", "matplotlib", "wandb")


def imported_by(*words: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The heavy packages that a fresh process of launch.py imports."""
    code = (
        "import runpy, sys, atexit\n"
        f"atexit.register(lambda: print('IMPORTED', *[m for m in {HEAVY!r} if m in sys.modules]))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "launch.py"), *words], capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.rsplit("IMPORTED", 1)[1].split()), done


def test_help_imports_nothing_heavy() -> None:
    heavy, done = imported_by("--help")
    assert done.returncode == 0
    assert heavy == set()
    for flag in ("--gin_file", "--gin_param", "--name", "--dry_run", "--json", "--resume", "--runs_dir"):
        assert flag in done.stdout


def test_a_config_error_in_files_without_torch_objects_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "wrong.gin").write_text("Local.num_proceses = 2\nLocal.threads_per_process = 'two'\n")
    heavy, done = imported_by("--gin_file", str(tmp_path / "wrong.gin"))
    assert done.returncode == 2
    assert heavy == set()
    assert "wrong.gin:1" in done.stderr
    assert "wrong.gin:2" in done.stderr


def dry_run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """launch.py --dry_run in an empty folder, with an empty home and cache."""
    environment = {**os.environ, "HOME": str(folder / "home"), "MODLIB_CACHE": str(folder / "cache")}
    words = [*command("gpt2.gin"), "--dry_run", *flags]
    return forked.run(words, cwd=folder, capture_output=True, text=True, timeout=90, env=environment)


def test_dry_run_json_has_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = dry_run(tmp_path, "--json", "--gin_param", "Local.num_processes=8")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["parameters"] == {"total": 124439808, "trainable": 124439808, "non_embedding": 85056000}
    assert plan["world_size"] == 8
    assert plan["tokens_per_step"] == 8 * 4 * 1024
    assert plan["num_steps"] == 600000
    assert plan["num_tokens"] == 600000 * 8 * 4 * 1024
    # PaLM appendix B: 6 N + 12 L H D T, N without the position table
    assert plan["flops_per_token"] == 6 * (124439808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert plan["checkpoint_bytes"] == 3 * 4 * 124439808
    assert set(plan["memory_per_rank_bytes"]) == {"parameters", "gradients", "optimizer", "activations"}
    assert plan["memory_per_rank_bytes"]["optimizer"] == 2 * 4 * 124439808 // 8
    assert len(plan["config_hash"]) == 64
    assert plan["resolved"]["AdamW.lr"] == 6e-4
    assert max(plan["learning_rates"]) == pytest.approx(6e-4, rel=0.01)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_banner_and_writes_nothing(tmp_path: Path) -> None:
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("124,439,808", "learning rate over steps", "memory per rank", "checkpoint", "run folder"):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an sbatch on the PATH that refuses in these words."""

    def put(words: str) -> None:
        program = tmp_path / "bin" / "sbatch"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat > /dev/null\necho 'sbatch: error: {words}' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def dry_run_here(*flags: str, code: int) -> Result:
    done = CliRunner().invoke(app, ["--dry_run", *flags])
    assert done.exit_code == code, done.output
    return done


SMALL = ("--gin_file", "debug/tiny.gin", "--executor", "slurm")


@pytest.mark.parametrize(
    "words", ["Unable to contact slurm controller (connect failure)", "Could not establish a configuration source"]
)
def test_dry_run_where_no_slurm_answers_is_no_error(words: str, sbatch: Callable[[str], None]) -> None:
    sbatch(words)
    text = f"not checked by SLURM: error: {words}"
    assert text in " ".join(dry_run_here(*SMALL, code=0).stdout.split())
    assert json.loads(dry_run_here(*SMALL, "--json", code=0).stdout)["slurm"] == text


def test_dry_run_prints_plan_and_script_before_what_slurm_refuses(sbatch: Callable[[str], None]) -> None:
    sbatch("invalid partition specified: nowhere")
    done = dry_run_here(*SMALL, code=1)
    assert "memory per rank" in done.stdout
    assert "#SBATCH --nodes=1" in done.stdout
    assert "SLURM would refuse the job: sbatch: error: invalid partition specified: nowhere" in done.stderr
    assert json.loads(dry_run_here(*SMALL, "--json", code=1).stdout)["slurm"] is None


def test_dry_run_prints_the_plan_before_the_data_that_is_missing(tmp_path: Path) -> None:
    flags = ("--gin_file", "debug/tiny.gin", "--gin_param", f"DATA='{tmp_path}/gone.packed'")
    done = dry_run_here(*flags, code=2)
    assert "not there" in done.stdout
    assert "memory per rank" in done.stdout
    assert f"path ('{tmp_path}/gone.packed') must be a corpus" in done.stderr


def test_a_text_that_is_missing_is_said_to_be_one() -> None:
    done = dry_run_here("--gin_file", "2022_nanogpt/shakespeare_char_cpu.gin", "--gin_param", "TEXT='no.txt'", code=2)
    said = " ".join(done.stderr.split())
    assert (
        f"path ('no.txt') must be the file that CharacterDataset reads, but there is no file {Path.cwd()}/no.txt"
        in said
    )
    assert "; name yours with: --gin_param \"TEXT='...'\"" in said
    assert said.count("no.txt') must be") == 1


def test_json_without_dry_run_is_refused() -> None:
    done = subprocess.run([*command("debug/tiny.gin"), "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--json goes with --dry_run" in done.stderr
