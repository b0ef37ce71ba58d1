from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed import header as packed_header
from modlib.data.text import line_index
from modlib.data.text.line_index import LineIndex, find_lines, write_index
from modlib.runtime.errors import ConfigError, DataError

PIECES = st.sampled_from(
    [b"\n", b"\r\n", b" ", b"\t", b"{}", b'{"text": "x"}', "äöü".encode(), b"\xff", b"\r", b"\v\f"]
)


def expected(contents: bytes) -> list[tuple[int, int, int]]:
    """(number, first byte, bytes), one line after the other."""
    mark = 3 if contents.startswith(b"\xef\xbb\xbf") else 0
    found, start = [], mark
    for number, line in enumerate(contents[mark:].split(b"\n"), 1):
        if kept := line.rstrip(b" \t\r\v\f"):
            found.append((number, start, len(kept)))
        start += len(line) + 1
    return found


@given(st.lists(PIECES, max_size=40), st.booleans(), st.integers(1, 50))
@settings(max_examples=200)
def test_every_line_is_found(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], mark: bool, chunk_bytes: int
) -> None:
    monkeypatch.setattr(line_index, "_CHUNK_BYTES", chunk_bytes)
    contents = (b"\xef\xbb\xbf" if mark else b"") + b"".join(pieces)
    columns = [column.tolist() for column in find_lines(contents)]
    assert list(zip(*columns, strict=True)) == expected(contents)


@pytest.mark.parametrize("contents", [b"", b"\n\n", b"\xef\xbb\xbf", b"a", b"a\r\n\r\n b \n\nc"])
def test_lines_are_read_by_number(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(contents)
    index = write_index(path)
    assert index.index_path == tmp_path / "a.jsonl.index"
    for one in (index, LineIndex(path), pickle.loads(pickle.dumps(index))):
        one.verify()
        assert list(one) == [contents[start : start + size] for _, start, size in expected(contents)]
        assert [one[number] for number in range(len(one))] == list(one)
        with pytest.raises(IndexError):
            one[len(one)]


@pytest.mark.parametrize(
    ("name", "contents", "text"),
    [
        ("a.jsonl.GZ", b"{}", "compressed by gzip: unpack it with gunzip, and index that"),
        ("a.jsonl", gzip.compress(b"{}\n", mtime=0), "compressed by gzip: unpack it with gunzip, and index that"),
        ("a.jsonl.zst", b"{}", "compressed by zstd: unpack it with unzstd, and index that"),
        ("a.jsonl", zstandard.compress(b"{}\n"), "compressed by zstd: unpack it with unzstd, and index that"),
        ("a.parquet", b"{}", "a Parquet file: modlib data pack reads it as it is"),
        ("a", b"PAR1\0", "a Parquet file: modlib data pack reads it as it is"),
        (
            "a.packed",
            packed_header.MAGIC,
            "a packed token file: it has an index of its own: modlib data inspect shows it",
        ),
        ("a.index", line_index.MAGIC, "an index of lines: name the file that it was made of"),
    ],
    ids=["gzip-name", "gzip-bytes", "zstd-name", "zstd-bytes", "parquet-name", "parquet-bytes", "packed", "index"],
)
def test_what_holds_no_lines_is_refused(tmp_path: Path, name: str, contents: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError) as caught:
        write_index(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} must hold lines of JSON as plain text; it is {text}"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "a.index"
    with pytest.raises(ConfigError, match=r"a.jsonl cannot be read: No such file or directory; check the path"):
        write_index(path)
    path.write_bytes(b"one\ntwo\n")
    write_index(path, out)
    with pytest.raises(ConfigError, match=r"a.index exists; choose another path, remove it, or pass --overwrite"):
        write_index(path, out)
    whole = out.read_bytes()
    for contents, text in {
        b"": r"a.index must be an index of lines; make it with modlib data index",
        b"something else altogether": r"a.index must be an index of lines",
        whole[:20]: r"a.index is truncated; make the index again",
        whole[:-1]: r"size of .*a.index \(103 bytes\) must be 104 bytes for 2 lines; make the index again",
        whole[:8] + b"\x07" + whole[9:]: r"version of .*a.index \(7\) must be 1; make the index again",
    }.items():
        out.write_bytes(contents)
        with pytest.raises(DataError, match=text):
            LineIndex(path, out)
    out.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(DataError, match=r"a.index is damaged: its SHA-256 does not match; make the index again"):
        LineIndex(path, out).verify()
    out.write_bytes(whole)
    path.write_bytes(b"one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"size of .*a.jsonl \(14 bytes\) must be the 8 bytes it had when"):
        LineIndex(path, out)
