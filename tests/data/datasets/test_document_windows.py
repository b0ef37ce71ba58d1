from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.datasets.document_windows import MAX_SEQ_LEN, _sorted, make_table
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader, encode_header, layout
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import ConfigError


@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, (1 << 33) - 1)), max_size=50), st.sampled_from([8, 20, 33]))
@settings(max_examples=200)
def test_sorted_keys_of_any_width_stay_in_order_where_they_are_equal(keys: list[int], bits: int) -> None:
    limit = (1 << bits) - 1
    numbers = np.array(keys, np.int64) & limit
    assert _sorted(numbers, limit).tolist() == np.argsort(numbers, kind="stable").tolist()


@pytest.mark.parametrize("packing", ["in_order", "best_fit"])
def test_windows_beyond_sixteen_bits(tmp_path: Path, packing: str) -> None:
    """150,000 windows: pieces in the order of their windows, windows in the order of their first pieces."""
    lengths = np.tile([5, 3, 2, 4, 1], 60_000)
    path = tmp_path / "many.packed"
    with PackedFileWriter(path, vocab_size=256) as writer:
        writer.write_documents(np.zeros(lengths.sum(), np.uint8), lengths)
    table = make_table(PackedFile(path), 5, "refuse", packing)  # type: ignore[arg-type]
    starts, sizes, counts = table.pieces(np.arange(len(table)))
    assert (len(starts) if packing == "best_fit" else table.num_documents) == len(lengths)
    assert sizes.sum() == lengths.sum() == table.num_tokens
    firsts = starts[np.cumsum(counts) - counts]
    assert (np.diff(firsts) > 0).all()
    of_window = np.repeat(np.arange(len(table)), counts)
    assert (np.diff(starts)[np.diff(of_window) == 0] > 0).all()
    filled = np.bincount(of_window, sizes)
    assert filled.max() <= 6
    if packing == "best_fit":  # 5 + 1, 4 + 2, 3 + 3
        assert filled.min() == 6
        assert sorted(starts.tolist()) == (np.cumsum(lengths) - lengths).tolist()


@pytest.mark.parametrize("packing", ["in_order", "best_fit"])
def test_documents_longer_than_32_bits_count(tmp_path: Path, packing: str) -> None:
    offsets = np.cumsum([0, 5, (1 << 32) + 500, 7, (1 << 31) + 3])
    path = huge(tmp_path / "huge.packed", offsets)
    table = make_table(PackedFile(path), 1024, "truncate", packing)  # type: ignore[arg-type]
    starts, sizes, _ = table.pieces(np.arange(len(table)))
    if packing == "in_order":
        assert dict(zip(starts.tolist(), sizes.tolist(), strict=True)) == {
            0: 5, 5: 1025, int(offsets[2]): 7, int(offsets[3]): 1025,
        }  # fmt: skip
    else:
        assert sorted(sizes.tolist()) == [5, 7, 1025, 1025]
    assert table.num_truncated_tokens == offsets[-1] - 5 - 7 - 2 * 1025
    cut = make_table(PackedFile(path), 1 << 20, "cut", packing)  # type: ignore[arg-type]
    assert cut.num_documents == 1 + 4097 + 1 + 2049
    assert cut.num_tokens == offsets[-1] + 4096 + 2048  # pieces of one document share a token


def huge(path: Path, offsets: np.ndarray) -> Path:
    """A packed file of these documents that takes no place on the disk: its tokens are a hole."""
    num_tokens, num_documents = int(offsets[-1]), len(offsets) - 1
    sections = layout(num_tokens, num_documents, 1)
    header = PackedHeader(
        token_width=1, num_tokens=num_tokens, num_documents=num_documents, num_bytes_of_text=0, vocab_size=256,
        max_token_id=0, tokenizer_fingerprint="", end_of_document_id=None, sha256="0" * 64, sections=sections,
    )  # fmt: skip
    with open(path, "wb") as file:
        file.write(encode_header(header))
        file.seek(sections["documents"][0])
        file.write(offsets.astype("<i8").tobytes())
    return path


def test_a_window_s_length_is_kept_in_32_bits(tmp_path: Path) -> None:
    path = tmp_path / "one.packed"
    with PackedFileWriter(path, vocab_size=256) as writer:
        writer.write(np.zeros(9, np.uint8))
    assert make_table(PackedFile(path), MAX_SEQ_LEN, "refuse", "in_order").rows.tolist() == [(0, 9)]
    with pytest.raises(ConfigError) as caught:
        PackedDocuments(path=str(path), seq_len=MAX_SEQ_LEN + 1)
    assert str(caught.value) == "seq_len (2147483647) must be at most 2147483646; set SEQ_LEN"
