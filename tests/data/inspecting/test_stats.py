from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from modlib.data.inspecting import stats as packed_stats
from modlib.data.inspecting.stats import bin_label, plot_lengths, stats
from modlib.data.packed import pieces
from modlib.data.packed.header import HEADER_BYTES
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import ConfigError, DataError
from tests.data.packed_lists import documents_of_ids, write


@given(documents_of_ids)
@settings(max_examples=40)
def test_counts_are_the_ones_of_a_slow_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]]
) -> None:
    monkeypatch.setattr(pieces, "BATCH_TOKENS", 5)
    found = stats(write(tmp_path / "a", documents))
    counts = Counter(token for document in documents for token in document)
    assert (found.documents, found.tokens, found.used_ids) == (len(documents), counts.total(), len(counts))
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:20]
    assert [(one.token_id, one.count) for one in found.frequent] == expected
    lengths = list(map(len, documents))
    assert [count for _, _, count in found.length_histogram] == [
        sum(low <= length <= high for length in lengths) for low, high, _ in found.length_histogram
    ]
    assert sum(count for _, _, count in found.length_histogram) == len(documents)
    if documents:
        assert (found.length_quantiles["0"], found.length_quantiles["1"]) == (min(lengths), max(lengths))
    first: dict[tuple[int, ...], int] = {}
    again = []
    for number, document in enumerate(documents):
        if first.setdefault(tuple(document), number) != number:
            again.append((number, first[tuple(document)]))
    assert found.duplicates is not None
    assert found.duplicates.documents == len(again)
    assert found.duplicates.tokens == sum(lengths[number] for number, _ in again)
    assert list(found.duplicates.examples) == again[:10]
    json.dumps(found.to_json())


def test_documents_with_one_hash_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SameForAll:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr(packed_stats.hashlib, "blake2b", SameForAll)
    found = stats(write(tmp_path / "a", [[1], [2], [1], [3], [2], [2]])).duplicates
    assert found is not None
    assert list(found.examples) == [(2, 0), (4, 1), (5, 1)]


def test_bytes_per_token_and_what_is_not_asked_for(tmp_path: Path) -> None:
    found = stats(write(tmp_path / "a", [[1, 2, 3]]), find_duplicates=False, num_frequent=1)
    assert found.bytes_per_token == 1.0
    assert found.duplicates is None
    assert len(found.frequent) == 1
    with PackedFileWriter(tmp_path / "b", vocab_size=300) as writer:
        writer.write([3])
    assert stats(tmp_path / "b").bytes_per_token is None


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (0, 0, "0"),
        (1, 1, "1"),
        (2, 3, "2-3"),
        (512, 1023, "512-1023"),
        (1024, 2047, "1-2Ki"),
        (2**19, 2**20 - 1, "512-1024Ki"),
        (2**20, 2**21 - 1, "1-2Mi"),
    ],
)
def test_bin_labels(low: int, high: int, label: str) -> None:
    assert bin_label(low, high) == label


def test_the_plot_has_a_bar_for_each_bin(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = stats(write(tmp_path / "a", [[1] * length for length in (1, 2, 3, 3, 9)]))
    plot_lengths(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    plot_lengths(found, tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert all(text in svg for text in ("2-3", "8-15"))
    with pytest.raises(ConfigError, match=r"--plot \(.*nowhere/a.png\) cannot be written: No such file"):
        plot_lengths(found, tmp_path / "nowhere" / "a.png")
    with pytest.raises(ConfigError, match=r"--plot \(.*a.xyz\) cannot be written: Format 'xyz' is not supported"):
        plot_lengths(found, tmp_path / "a.xyz")


def test_an_id_out_of_vocabulary_is_refused(tmp_path: Path) -> None:
    from tests.data.inspecting.test_verify import spoil

    path = write(tmp_path / "a", [[1, 2]])
    spoil(path, HEADER_BYTES, (400).to_bytes(2, "little"))
    with pytest.raises(
        DataError, match=r"token id \(400\) in .*a must be below its vocab_size \(300\); modlib data verify"
    ):
        stats(path)


def test_quantiles(tmp_path: Path) -> None:
    found = stats(write(tmp_path / "a", [[1] * length for length in range(101)]))
    assert found.length_quantiles == {"0": 0, "0.1": 10, "0.5": 50, "0.9": 90, "0.99": 99, "1": 100}
    assert found.mean_length == np.mean(range(101))


def test_trained_tokens_are_counted(tmp_path: Path) -> None:
    masked = write(tmp_path / "a", [[1, 3, 6], [4, 9]], loss_mask=True)
    assert stats(masked).trained_tokens == stats(masked).to_json()["trained_tokens"] == 3
    assert stats(write(tmp_path / "b", [[1, 3]])).trained_tokens is None
