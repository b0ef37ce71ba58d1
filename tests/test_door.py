"""modlib from Python: what `import modlib` gives, its page and its notebook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import modlib
from modlib.config import Config
from modlib.data.packed.writer import PackedFileWriter
from modlib.door import Run, RunFailedError
from modlib.runtime.errors import CheckpointError, ConfigError, RunFolderError
from tests.launching_command import ROOT

PAGE, NOTEBOOK = ROOT / "docs" / "python.md", ROOT / "docs" / "python.ipynb"
SMALL = {"NUM_STEPS": 4, "CHECKPOINT_EVERY": 2}


@pytest.fixture(scope="module")
def config() -> Config:
    return modlib.load_config("debug/tiny.gin", SMALL)


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return modlib.train(config, runs_dir=tmp_path_factory.mktemp("door"), name="small")


def test_the_import_alone_imports_nothing() -> None:
    code = (
        "import sys; import modlib; print([name for name in ('gin', 'torch', 'numpy', 'typer') if name in sys.modules])"
    )
    code += "; print(sorted(set(modlib.__all__) - set(dir(modlib))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_every_name_is_there_and_another_is_not() -> None:
    assert all(callable(getattr(modlib, name)) for name in modlib.__all__ if not name.startswith("_"))
    with pytest.raises(AttributeError, match="module 'modlib' has no attribute 'load_runs'"):
        modlib.load_runs  # noqa: B018


def test_a_configuration_by_files_and_values(config: Config) -> None:
    assert config.resolved["train.num_steps"] == 4
    assert config.hash == modlib.load_config(["debug/tiny.gin"], ["NUM_STEPS=4", "CHECKPOINT_EVERY=2"]).hash
    assert re.fullmatch(rf"Config\('tiny', \d+ settings, hash {config.hash[:8]}\)", repr(config))
    with pytest.raises(ConfigError, match="GPT2 has no parameter 'dimm'"):
        modlib.load_config("debug/tiny.gin", {"GPT2.dimm": 3})


def test_steps_by_hand_are_those_of_training(config: Config, run: Run) -> None:
    built = modlib.build(config)
    assert re.fullmatch(r"Built\(Config\(.*\), GPT2 of [\d,]+ parameters on (cpu|cuda)\)", repr(built))
    losses = [built.update(batch, step).mean_loss() for step, batch in zip(range(1, 5), built.batches())]
    steps, logged = run.curve("train/loss")
    assert steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(losses, logged, rtol=1e-6)
    trained = run.model().state_dict()
    assert all(torch.allclose(value, trained[name], atol=1e-6) for name, value in built.model.state_dict().items())


def test_a_run_that_was_trained(run: Run, config: Config) -> None:
    assert repr(run) == "Run('small', finished, step 4)"
    assert (run.steps, run.status) == ([2, 4], "finished")
    assert run.config.resolved["train.num_steps"] == config.resolved["train.num_steps"]
    assert [row["step"] for row in run.metrics() if "train/loss" in row] == [1, 2, 3, 4]
    assert not run.model().training
    again = modlib.load_run(str(run.path))
    text = modlib.generate(again, "def ", max_new_tokens=4)
    assert text.startswith("def ")
    assert text == modlib.generate(run.path, "def ", max_new_tokens=4)
    with pytest.raises(ConfigError, match=r"metric \(loss\) must be one that small logged; it has .*train/loss"):
        run.curve("loss")
    with pytest.raises(CheckpointError, match=r"3.*must be a checkpoint"):
        run.model(step=3)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"must be a folder with a config\.gin, but there is none"):
        modlib.load_run(tmp_path)


def test_a_checkpoint_into_a_model(run: Run, config: Config, tmp_path: Path) -> None:
    built = modlib.build(config)
    loaded = modlib.load_checkpoint(run.path / "checkpoints" / "step-00000002", built.model, built.optimizer)
    assert loaded.step == 2
    expected = run.model(step=2).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in built.model.state_dict().items())
    assert modlib.load_checkpoint(run.path, built.model).step == 4
    with pytest.raises(CheckpointError, match="must be a checkpoint's folder, or a run's that has one"):
        modlib.load_checkpoint(tmp_path, built.model)


def test_a_run_that_fails_raises(tmp_path: Path) -> None:
    config = modlib.load_config("debug/tiny.gin", {"NUM_STEPS": 4, "LR": 1e30})
    with pytest.raises(RunFailedError, match="ended with exit code 5") as caught:
        modlib.train(config, runs_dir=tmp_path, name="nan")
    assert caught.value.exit_code == 5


def test_a_packed_file_as_a_dataset(tmp_path: Path) -> None:
    with PackedFileWriter(tmp_path / "a.packed", vocab_size=100) as writer:
        writer.write(np.arange(41) % 100)
    data = modlib.open_dataset(tmp_path / "a.packed", seq_len=10)
    assert len(data) == 4
    assert data[1].tolist() == list(range(10, 21))


def code_of(page: Path) -> str:
    """The code of the page or notebook, as one program."""
    if page.suffix == ".md":
        return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
    return "\n".join(
        "".join(cell["source"]) for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"
    )


def test_page_and_notebook_hold_the_same_code() -> None:
    assert [line for line in code_of(PAGE).splitlines() if line] == [
        line for line in code_of(NOTEBOOK).splitlines() if line
    ]


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code_of(NOTEBOOK)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "in 20 steps" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("3 ")
