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

from modlib.data.text import sources, tables
from modlib.data.text.fields import Field, row_of
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
        "a.csv": r"input \(a.csv\) must end in .jsonl, .ndjson, .jsonl.gz, .jsonl.zst, .json, "
        r".json.gz, .json.zst, .txt, .parquet, .arrow; rename it",
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
    monkeypatch.setattr(tables, "_ROWS", 4)
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


def texts(*inputs: str | Path, field: str = "text") -> list[str]:
    """The text of every row, as a pack takes it."""
    where = Field(field)
    found: list[str] = []
    for block in read_blocks(find_sources(inputs), where):
        rows = block.data.splitlines() if isinstance(block.data, bytes) else block.data
        found += [where.text(row_of(row) if isinstance(row, bytes) else row) for row in rows]
    return found


def test_a_long_window_of_zstd_is_read(tmp_path: Path) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # which does not know its size
    packed = stream.compress(b'{"text": "far"}\n') + stream.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 28
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert texts(tmp_path / "a.jsonl.zst") == ["far"]


def test_several_members_of_gzip_are_one_file(tmp_path: Path) -> None:
    members = [
        gzip.compress(b'{"text": "a"}\n{"te', mtime=0),
        gzip.compress(b"", mtime=0),
        gzip.compress(b'xt": "b"}\n', mtime=0),
    ]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(members))
    assert texts(tmp_path / "a.jsonl.gz") == ["a", "b"]


def test_numbers_of_any_length_are_no_reason_to_lose_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "b", "id": ' + 5000 * "9" + "}\n")
    assert texts(tmp_path / "a.jsonl") == ["b"]
    with pytest.raises(ValueError, match="has no text at 'id' but int"):
        texts(tmp_path / "a.jsonl", field="id")


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.zst"])
def test_a_json_file_of_lines_is_read(tmp_path: Path, suffix: str) -> None:
    pack = COMPRESS[suffix.replace(".json", ".jsonl")]
    (tmp_path / f"a{suffix}").write_bytes(pack(b'{"text": "a"}\n{"text": "b"}\n'))
    assert texts(tmp_path / f"a{suffix}") == ["a", "b"]


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        (b'[{"text": "a"},\n {"text": "b"}]', r"holds one array; write lines: cat .*a.json \| jq -c '.\[\]' > a.jsonl"),
        (
            b'{\n "text": "a"\n}\n',
            r"holds one value over several lines; write lines: cat .* \| jq -c '.' > a.jsonl",
        ),
    ],
)
def test_a_json_file_of_no_lines_is_refused_in_words(tmp_path: Path, contents: bytes, what: str) -> None:
    (tmp_path / "a.json").write_bytes(contents)
    with pytest.raises(DataError, match=rf"a.json\) must hold one JSON object per line, and {what}"):
        find_sources([tmp_path / "a.json"])


def test_a_json_file_of_another_encoding_is_not_told_as_one_value(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('{"text": "a"}\n'.encode("utf-16"))
    with pytest.raises(
        DataError, match=r"a.json\) must be UTF-8 text; its line 1 must be UTF-8; byte 0 is not: convert"
    ):
        find_sources([tmp_path / "a.json"])


def test_settings_in_a_folder_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"name its .json files by a pattern: '.*/\*\*/\*.json'"):
        find_sources([tmp_path])
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert [source.path.name for source in find_sources([tmp_path])] == ["a.jsonl"]


def test_names_and_types_of_parquet_columns(tmp_path: Path) -> None:
    binary = pyarrow.array([b"caf\xc3\xa9", b"b"], pyarrow.binary())
    table = pyarrow.table({"meta.text": ["x", "y"], "raw": binary, "meta": [{"text": "inner"}] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", field="meta.text") == ["x", "y"]
    assert texts(tmp_path / "a.parquet", field="raw") == ["caf\xe9", "b"]
    pyarrow.parquet.write_table(table.drop_columns(["meta.text"]), tmp_path / "b.parquet")
    assert texts(tmp_path / "b.parquet", field="meta.text") == ["inner", "inner"]
    pyarrow.parquet.write_table(
        pyarrow.table({"t": pyarrow.array([b"\xff"], pyarrow.binary())}), tmp_path / "c.parquet"
    )
    with pytest.raises(ValueError, match=r"has bytes at 't' that are no UTF-8 text \(byte 0\)"):
        texts(tmp_path / "c.parquet", field="t")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet must have one column 'text'; it has 2: rename all but one"):
        texts(tmp_path / "d.parquet")


def test_what_pyarrow_cannot_do_is_not_told_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")

    def refuse(*_: object, **__: object) -> object:  # as it does for a nested column of more than 2 GiB
        raise pyarrow.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", refuse)
    with pytest.raises(DataError, match=r"may be whole, but pyarrow \S+ cannot read it \(Nested data.*\); write it"):
        texts(tmp_path / "a.parquet")


def save_to_disk(folder: Path, *shards: dict[str, list[str]]) -> Path:
    """As the datasets library lays a dataset out."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, columns in zip(names, shards):
        table = pyarrow.table(columns)
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset_is_its_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS", 2)
    folder = save_to_disk(tmp_path / "set", {"text": list("abcde"), "n": list("12345")}, {"text": ["f"], "n": ["6"]})
    assert texts(folder) == list("abcdef")
    assert texts(folder / "data-00001-of-00002.arrow", field="n") == ["6"]
    found = find_sources([folder])
    blocks = list(read_blocks(found, TEXT))
    for number, block in enumerate(blocks):
        assert [one.data for one in read_blocks(found, TEXT, block.start)] == [one.data for one in blocks[number:]]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ConfigError, match=r"\(2 splits\) must be one split; name one of them: train, test"):
        find_sources([tmp_path])


def test_a_name_of_the_hub_is_answered_with_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"hf download --repo-type dataset allenai/c4 --local-dir c4$"):
        find_sources(["allenai/c4"])
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"check the path$"):
        find_sources(["mine/c4"])
