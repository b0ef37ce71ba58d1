"""Values of which only some are allowed, given from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.data.datasets.characters import CharacterDataset
from modlib.data.datasets.modular_arithmetic import ModularArithmetic
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packing.pack import pack
from modlib.runtime.errors import ConfigError

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
