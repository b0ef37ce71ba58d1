"""What README.md and CONTRIBUTING.md say is true."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.launching_command import ROOT, launch, metrics

MODLIB = [sys.executable, "-c", "from modlib.cli.main import main; main()"]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
LORA = (ROOT / "docs" / "lora.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)


def test_readme_has_exactly_the_two_set_up_commands() -> None:
    indented = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert indented == [
        "pip install -e . -c constraints.txt && python launch.py --gin_file quickstart.gin",
        "pip install -e '.[test]' -c constraints.txt && pytest",
    ]


@pytest.mark.parametrize("command", re.findall(r"`python launch.py (--gin_file [^`]*)`", README))
def test_readme_launch_commands_are_valid(command: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from modlib.cli.start.launch import app

    words = shlex.split(command)
    result = CliRunner().invoke(app, [*words, *(() if "--dry_run" in words else ("--dry_run",))])
    assert result.exit_code == 0, result.output


def test_files_that_the_documents_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture
def users_project(tmp_path: Path) -> Path:
    """CONTRIBUTING.md's example, typed into a folder outside the repository."""
    model, config = blocks(CONTRIBUTING)[:2]
    (tmp_path / "my_project").mkdir()
    (tmp_path / "my_project" / "my_model.py").write_text(model)
    (tmp_path / "my.gin").write_text(config.replace("quickstart.gin", "debug/tiny.gin"))
    return tmp_path


@pytest.mark.slow
def test_the_commands_of_docs_lora_give_transformers_the_same_logits(tmp_path: Path) -> None:
    """Typed one after the other as they stand there, in a folder outside the repository."""
    pytest.importorskip("transformers")
    lines = [line.strip() for line in LORA.splitlines() if line.startswith("    ")]
    typed = [line for line in lines if line.startswith(("python launch.py", "modlib "))]
    assert [line.split()[1] for line in typed] == ["launch.py", "export"] * 2
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for line in typed:
        words = shlex.split(line)
        start = [sys.executable, str(ROOT / "launch.py")] if words[0] == "python" else [*MODLIB, words[1]]
        done = forked.run([*start, *words[2:]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    (snippet,) = re.findall(r"```python\n(.*?)```", LORA, re.DOTALL)
    done = forked.run([sys.executable, "-c", snippet], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    difference = {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}
    assert difference["tuned"] < 1e-5
    assert difference["base"] > 1e-2


def test_a_users_own_model_trains_from_outside_the_repository(users_project: Path) -> None:
    done = launch("./my.gin", ["NUM_STEPS=4", "CHECKPOINT_EVERY=2"], "--name", "own", cwd=users_project)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(users_project / "runs" / "own") if "train/loss" in line] == [1, 2, 3, 4]
    plan = launch("./my.gin", [], "--dry_run", "--json", cwd=users_project)
    cost = json.loads(plan.stdout)
    assert cost["parameters"]["total"] == 4096 * 4096
    assert (cost["num_flops"], cost["estimated_seconds"]) == (0, None), "a table is looked up, not multiplied"
    assert cost["notes"] == ["memory is without activations: the model estimates none"]


def test_a_wrong_parameter_of_a_users_model_is_caught_before_anything_runs(users_project: Path) -> None:
    done = launch("./my.gin", ["Bigram.vocab_sizes=4"], "--name", "own", cwd=users_project)
    assert done.returncode == 2
    assert "--gin_param #1: Bigram has no parameter 'vocab_sizes'. Did you mean 'vocab_size'" in done.stderr
    assert not (users_project / "runs").exists()
    wrong_type = launch("./my.gin", ["Bigram.vocab_size='many'"], "--name", "own", cwd=users_project)
    assert wrong_type.returncode == 2
    assert "Bigram.vocab_size" in wrong_type.stderr
