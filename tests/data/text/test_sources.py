from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.text import sources
from modlib.data.text.fields import Field
from modlib.data.text.sources import MOST_DOCUMENT_BYTES, decoded, find_sources, read_blocks
from modlib.runtime.errors import ConfigError, DataError

TEXT = Field("text")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda data: data,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": lambda data: b"".join(
        zstandard.compress(part) for part in (data[: len(data) // 2], data[len(data) // 2 :])
    ),
}


def test_files_come_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl", "a/z.txt", ".hidden/x.txt", "a/notes.md", "c.parquet", "b.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(*inputs: str | Path) -> list[str]:
        return [str(source.path.relative_to(tmp_path)) for source in find_sources(inputs)]

    assert names(tmp_path) == ["a/z.txt", "b/10.jsonl", "b/2.jsonl", "b.jsonl.gz", "c.parquet"]
    assert names(tmp_path / "c.parquet", tmp_path / "a") == ["c.parquet", "a/z.txt"]  # inputs keep their order
    assert names(f"{tmp_path}/b/*.jsonl") == ["b/10.jsonl", "b/2.jsonl"]
    assert names(f"{tmp_path}/**/*.txt") == ["a/z.txt"]


def test_wrong_inputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, text in {
        "a.csv": r"input \(a.csv\) must end in .jsonl, .ndjson, .jsonl.gz, .jsonl.zst, .txt, .parquet; rename it",
        "b.txt": r"input \(b.txt\) cannot be read: No such file or directory; check the path",
        "empty": r"input \(empty\) must hold files of documents; it has none that ends in .jsonl",
        "*.jsonl": r"input \(\*.jsonl\) must match a file; it matches none in ",
    }.items():
        with pytest.raises(ConfigError, match=text):
            find_sources([name])
    with pytest.raises(ConfigError, match=r"input \(.*a.txt\) must be named once; its documents would be in the out"):
        find_sources(["a.txt", tmp_path / "a.txt"])
    with pytest.raises(ConfigError, match=r"inputs \(none\) must be at least one file"):
        find_sources([])


@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    st.booleans(),
    st.sampled_from(sorted(COMPRESS)),
    st.integers(1, 60),
)
@settings(max_examples=100)
def test_blocks_are_the_file_wherever_reading_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[bytes], last: bool, suffix: str, size: int
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", size << 4)
    contents = b"\n".join(lines) + (b"\n" if last and lines else b"")
    (tmp_path / f"a{suffix}").write_bytes(COMPRESS[suffix](contents))
    found = find_sources([tmp_path / f"a{suffix}"])
    blocks = list(read_blocks(found, TEXT))
    assert b"".join(block.data for block in blocks) == contents  # type: ignore[misc]
    assert all(block.data.endswith(b"\n") for block in blocks[:-1])  # type: ignore[union-attr]
    assert [block.start.row for block in blocks] == [
        contents[: block.start.position].count(b"\n") + 1 for block in blocks
    ]
    for number, block in enumerate(blocks):
        assert [(one.start, one.data) for one in read_blocks(found, TEXT, block.start)] == [
            (one.start, one.data) for one in blocks[number:]
        ]


def test_text_files_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 10)
    for number, size in enumerate([4, 5, 3, 30, 1]):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * size)
    blocks = list(read_blocks(find_sources([tmp_path]), TEXT))
    assert [[len(one) for one in block.data] for block in blocks] == [[4, 5], [3], [30], [1]]
    assert [block.bytes_read for block in blocks] == [9, 12, 42, 43]
    assert [block.end.source for block in blocks] == [2, 3, 4, 5]


def test_rows_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_ROWS", 4)
    rows = [{"text": f"t{n}", "meta": {"n": n}} for n in range(10)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=6)
    found = find_sources([tmp_path / "a.parquet"])
    blocks = list(read_blocks(found, TEXT))
    assert [row for block in blocks for row in block.data] == [{"text": row["text"]} for row in rows]
    again = list(read_blocks(found, TEXT, blocks[1].start))
    assert [(one.start, one.data) for one in again] == [(one.start, one.data) for one in blocks[1:]]
    assert next(read_blocks(found, Field("json:dumps"))).data[:2] == rows[:2]
    with pytest.raises(DataError, match=r"a.parquet must have a column 'body'; it has text, meta"):
        list(read_blocks(found, Field("body.x")))
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"input \(.*a.parquet\) is damaged or truncated"):
        list(read_blocks(find_sources([tmp_path / "a.parquet"]), TEXT))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](b"".join(json.dumps({"text": str(n)}).encode() + b"\n" for n in range(1000)))
    path = tmp_path / f"a{suffix}"
    for contents in (whole[:-5], whole[: len(whole) // 3], b"what is this?" * 5):
        path.write_bytes(contents)
        with pytest.raises(DataError, match=rf"input \(.*a{suffix}\) is damaged or truncated \(.*\); copy it again"):
            list(read_blocks(find_sources([path]), TEXT))


def test_a_file_that_changes_is_an_error(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n')
    found = find_sources([tmp_path])
    blocks = read_blocks(found, TEXT)
    next(blocks)
    (tmp_path / "b.jsonl").write_text('{"text": "longer"}\n')
    with pytest.raises(DataError, match=r"input \(.*b.jsonl\) must stay as it is while it is packed; it was changed"):
        next(blocks)


def test_text_is_read_without_its_mark_and_only_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert decoded("\ufeffthree\r\n".encode(), path) == "three\r\n"
    with pytest.raises(DataError, match=r"a.txt must be UTF-8 text; byte 3 is not \(.*\): convert it first"):
        decoded(b"caf\xe9!", path)


@pytest.mark.slow
@pytest.mark.parametrize("ending", COMPRESS)
def test_a_line_that_is_too_long_when_unpacked_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(sources, "MOST_DOCUMENT_BYTES", 1 << 24)
    path = tmp_path / f"a{ending}"
    path.write_bytes(COMPRESS[ending](b'{"text": "short"}\n' * 3 + b'{"text": "' + b"a" * (200 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            list(read_blocks(find_sources([path]), TEXT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value) == (
        f"line 4 of input ({path}) must have at most {1 << 24} bytes when unpacked (MOST_DOCUMENT_BYTES); split it "
        "into several documents"
    )
    assert peak < 100 << 20


def test_a_text_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with open(path, "wb") as file:
        file.truncate(5 << 30)  # of no size on the disk
    with pytest.raises(DataError) as caught:
        find_sources([path])
    assert str(caught.value) == (
        f"input ({path}, {5 << 30} bytes) is one document, which must have at most {MOST_DOCUMENT_BYTES} bytes "
        "(MOST_DOCUMENT_BYTES); split it into several files, or into lines of a .jsonl"
    )


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"input \(.*a\.jsonl\) must be a regular file; copy what it gives into one"):
        find_sources([tmp_path / "a.jsonl"])
