"""`modlib import`, from the command line to a run and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import modlib
from tests.cli.models.test_imported_folder import saved
from tests.launching_command import launch


def test_a_folder_is_imported_or_refused(tmp_path: Path) -> None:
    saved(tmp_path / "theirs")
    out = tmp_path / "ours"
    done = modlib("import", tmp_path / "theirs", out)
    assert f"{out}: GPT2 of " in done.stdout
    assert done.stdout.endswith(f"train: python launch.py --gin_file quickstart.gin --gin_file {out}/model.gin\n")
    assert (out / "model.gin").is_file()
    again = modlib("import", tmp_path / "theirs", out, code=2)
    assert f"OUT ({out}) must be a new or empty folder" in again.stderr
    missing = modlib("import", tmp_path / "nothing", tmp_path / "other", code=2)
    assert "must be an existing local folder" in missing.stderr


@pytest.mark.slow
def test_a_run_of_it_is_exported_to_the_same_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "theirs", model_type="gpt2", vocab_size=4096, n_positions=64)
    modlib("import", tmp_path / "theirs", tmp_path / "ours")
    flags = ["NUM_STEPS=1", "LR=0.0", "train.sample=None", "MICRO_BATCH_SIZE=1", "SEQ_LEN=32", "WARMUP_STEPS=0"]
    more = ["--gin_file", str(tmp_path / "ours" / "model.gin"), "--runs_dir", str(tmp_path), "--name", "run"]
    done = launch("quickstart.gin", [*flags, "validation/Evaluator.num_sequences=2"], *more)
    assert done.returncode == 0, done.stderr
    modlib("export", tmp_path / "run", tmp_path / "back")
    files = [tmp_path / name / "model.safetensors" for name in ("theirs", "back")]
    assert files[0].read_bytes() == files[1].read_bytes()
