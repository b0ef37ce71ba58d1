"""A whole run on documents that do not see each other, killed and continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modlib.data.packed.writer import PackedFileWriter
from tests.launching_command import launch, metrics, numbers, started, wait_for_step

TINY = "debug/tiny.gin"
PARTS = ("--gin_file", "data/intra_document_masking.gin")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_continued_equals_one_run_bit_for_bit(tmp_path: Path, workers: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 400)
    with PackedFileWriter(tmp_path / "short.packed", vocab_size=4096) as writer:
        tokens = np.random.default_rng(1).integers(0, 4096, int(lengths.sum()))
        writer.write_documents(tokens, lengths, int(lengths.sum()))
    data = str(tmp_path / "short.packed")
    params = [f"DATA='{data}'", f"VAL_DATA='{data}'", "SEQ_LEN=64", "train.sample=None", "NUM_STEPS=24"]
    flags = (*PARTS, "--runs_dir", str(tmp_path))
    whole = launch(TINY, params, *flags, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    assert "% of them is padding" in whole.stderr + whole.stdout
    params += [f"DataLoader.num_workers={workers}"]
    with started(TINY, params, *flags, "--name", "parts") as process:
        wait_for_step(tmp_path / "parts", 10, process)
        process.kill()
        process.wait()
    assert metrics(tmp_path / "parts")[-1]["step"] < 24, "killed too late to show anything"
    again = launch(TINY, params, *flags, "--name", "parts")
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert {line["attempt"] for line in metrics(tmp_path / "parts")} >= {2}
