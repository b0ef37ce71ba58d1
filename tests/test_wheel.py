"""modlib as a wheel: built from the tree, installed into an empty environment, used from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launching_command import ROOT, metrics

pytestmark = pytest.mark.slow
PROJECT = """include 'debug/tiny.gin'
NUM_STEPS = 6
CHECKPOINT_EVERY = 3
"""
Modlib = Callable[..., subprocess.CompletedProcess[str]]


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command with nothing of this checkout in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and the other packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # building writes beside the sources
    tree.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    if not names:
        shutil.copytree(ROOT, tree, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "build", "runs"))
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    built = run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ".", cwd=tree)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("modlib-*.whl")
    assert run(python, "-m", "pip", "install", "--no-deps", wheel, cwd=folder).returncode == 0
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    others = folder / "env" / "lib" / version / "site-packages" / "others.pth"
    others.write_text("\n".join(path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")))
    return python.parent


@pytest.fixture
def modlib(installed: Path, tmp_path: Path) -> Modlib:
    return lambda *words: run(installed / "modlib", *words, cwd=tmp_path)


def test_a_project_includes_what_is_shipped_and_trains(modlib: Modlib, tmp_path: Path) -> None:
    (tmp_path / "my.gin").write_text(PROJECT)
    done = modlib("train", "--gin_file", "my.gin", "--name", "first")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "runs" / "first")[-1]["step"] == 6
    assert "modlib train --gin_file my.gin --name first" in done.stderr  # what it says continues the run
    again = modlib("resume", "first")
    assert (again.returncode, again.stderr.strip()) == (
        0,
        "run first is finished: 6 steps are done and saved in runs/first",
    )
    assert modlib("ls").stdout.splitlines()[1].split("\t")[:2] == ["first", "finished"]


def test_the_package_is_also_a_program(installed: Path, tmp_path: Path) -> None:
    as_module = run(installed / "python", "-m", "modlib", "list", "AdamW", cwd=tmp_path)
    assert as_module.returncode == 0
    assert as_module.stdout == run(installed / "modlib", "list", "AdamW", cwd=tmp_path).stdout
    assert "weight_decay" in as_module.stdout


def test_site_profiles_experiments_and_the_test_cluster_are_there(
    installed: Path, modlib: Modlib, tmp_path: Path
) -> None:
    (tmp_path / "my.gin").write_text(PROJECT)
    words = ("train", "--gin_file", "my.gin", "--gin_file", "testcluster.gin", "--dry_run", "--write_script", "job.sh")
    planned = modlib(*words)
    assert planned.returncode == 0, planned.stderr
    assert "#SBATCH" in (tmp_path / "job.sh").read_text()
    assert modlib("show", "2019_gpt2/gpt2_124m.gin").returncode == 0
    where = "from modlib.components import SHIPPED; print(SHIPPED / 'slurm' / 'testcluster')"
    cluster = run(installed / "python", "-c", where, cwd=tmp_path).stdout.strip()
    assert installed.parent in Path(cluster).parents
    assert os.access(cluster, os.X_OK)


def test_the_wheel_holds_what_the_tree_holds(installed: Path) -> None:
    (shipped,) = installed.parent.glob("lib/*/site-packages/modlib/shipped")
    for folder in ("gin_configs", "slurm", "experiments"):
        expected = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"}
        assert {path.relative_to(shipped) for path in (shipped / folder).rglob("*")} == expected
    assert (shipped.parent / "py.typed").is_file()
    assert not any(path.name in ("tests", "benchmarks") for path in shipped.parent.parent.iterdir() if path.is_dir())


def test_a_sweep_and_an_interrupted_run_continue(modlib: Modlib, tmp_path: Path) -> None:
    (tmp_path / "my.gin").write_text(PROJECT)
    swept = modlib("train", "--gin_file", "my.gin", "--sweep", "LR=[1e-3,2e-3]", "--name", "s")
    assert swept.returncode == 0, swept.stderr
    assert modlib("sweep", "s", "--json").returncode == 0
