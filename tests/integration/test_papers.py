"""The recipes that run on a CPU: shortened, repeated to the bit; nanoGPT's in full where its text is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching_command import launch, metrics, numbers

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
GROKKING = "2022_grokking/addition.gin"
NANOGPT = "2022_nanogpt/shakespeare_char_cpu.gin"


def run(recipe: str, folder: Path, *params: str) -> Path:
    done = launch(recipe, params, "--runs_dir", str(folder), "--name", "run", timeout_s=1500)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def last(run: Path, name: str) -> float:
    return next(float(line[name]) for line in reversed(metrics(run)) if name in line)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_grokking_knows_the_training_pairs_first_and_repeats_to_the_bit(tmp_path: Path) -> None:
    first, second = (run(GROKKING, tmp_path / name, "NUM_STEPS=400") for name in ("first", "second"))
    assert last(first, "val/train/accuracy") >= 0.99
    assert last(first, "val/validation/accuracy") <= 0.5
    assert numbers(first) == numbers(second)


@pytest.mark.slow
def test_nanogpt_learns_another_text_and_repeats_to_the_bit(tmp_path: Path) -> None:
    text = "".join(f"{number} and {number + 1} make {2 * number + 1}.\n" for number in range(9000))
    (tmp_path / "text.txt").write_text(text)
    params = (f"TEXT='{tmp_path / 'text.txt'}'", "CharacterDataset.sha256=None", "NUM_STEPS=150", "EVAL_EVERY=75")
    first, second = (run(NANOGPT, tmp_path / name, *params) for name in ("first", "second"))
    assert last(first, "val/validation/loss") < 1.5
    assert numbers(first) == numbers(second)


if SHAKESPEARE.is_file():

    @pytest.mark.slow
    @pytest.mark.timeout(1500)
    def test_nanogpt_in_full(tmp_path: Path) -> None:
        done = run(NANOGPT, tmp_path, f"TEXT='{SHAKESPEARE}'")
        assert last(done, "val/validation/loss") == pytest.approx(1.88, abs=0.06)
