"""Values of which only some are allowed, given from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.data.datasets.characters import CharacterDataset
from modlib.data.datasets.modular_arithmetic import ModularArithmetic
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packing.pack import pack
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.launching.slurm import Slurm
from modlib.optim.muon import MuonWithAdamW
from modlib.runtime.errors import ConfigError
from modlib.tracking.rich_progress import RichProgress
from modlib.tracking.rich_results import RichResults
from modlib.tracking.weights_and_biases import WandB
from modlib.training.number_conversion import num_samples_from_num_tokens

CALLS: dict[str, Callable[[str], object]] = {
    "long_documents ('drop') must be 'refuse', 'truncate' or 'cut'; choose one of them": lambda path: PackedDocuments(
        path=path, seq_len=8, long_documents="drop"  # type: ignore[arg-type]
    ),
    "packing ('best') must be 'in_order' or 'best_fit'; choose one of them": lambda path: PackedDocuments(
        path=path, seq_len=8, packing="best"  # type: ignore[arg-type]
    ),
    "split ('test') must be 'train', 'validation' or 'all'; choose one of them": lambda path: CharacterDataset(
        path=path, seq_len=8, split="test"  # type: ignore[arg-type]
    ),
    "split ('test') must be 'train' or 'validation'; choose one of them": lambda _: ModularArithmetic(
        split="test"  # type: ignore[arg-type]
    ),
    "gpu_option ('gpus') must be 'gpus-per-node', 'gres' or 'none'; choose one of them": lambda _: Slurm(
        gpu_option="gpus"  # type: ignore[arg-type]
    ),
    "adjust_lr_fn ('adamw') must be 'original' or 'match_rms_adamw'; choose one of them": lambda _: MuonWithAdamW(
        [], adjust_lr_fn="adamw"  # type: ignore[arg-type]
    ),
    "mode ('off') must be 'auto', 'online' or 'offline'; choose one of them": lambda path: WandB(
        Path(path), mode="off"  # type: ignore[arg-type]
    ),
    "style ('line') must be 'auto', 'live' or 'lines'; choose one of them": lambda _: RichProgress(
        style="line"  # type: ignore[arg-type]
    ),
    "every ('step') must be 'evaluation' or 'log'; choose one of them": lambda _: RichResults(
        every="step"  # type: ignore[arg-type]
    ),
    "leftover ('drop') must be 'report' or 'error'; choose one of them": lambda _: num_samples_from_num_tokens(
        num_tokens=9, seq_len=3, leftover="drop"  # type: ignore[arg-type]
    ),
    "padding ('longest') must be False, True or 'max_length'; choose one of them": lambda path: PretrainedHFTokenizer(
        path, padding="longest"  # type: ignore[arg-type]
    ),
    "on_error ('ignore') must be 'fail' or 'skip'; choose one of them": lambda path: pack(
        [path], "out.packed", "tokenizer", on_error="ignore"  # type: ignore[arg-type]
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", CALLS)
def test_a_misspelt_choice_is_refused_without_gin_too(problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789")
    with pytest.raises(ConfigError) as caught:
        CALLS[problem](str(tmp_path / "a.txt"))
    assert caught.value.problems == [problem]
