from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.datasets import jsonl_index
from modlib.data.datasets.jsonl_index import (
    JSONLFile,
    JSONLIndex,
    build,
    load_or_build,
)
from modlib.data.text.fields import text_of
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import DataError
from tests.data.small_tokenizers import word_level

JSON = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def index_of(path: Path, tokenizer: Tokenizer, key: str = "text", on_bad_line: str = "raise") -> JSONLIndex:
    return build(JSONLFile(path), tokenizer, key=key, special_tokens=False, on_bad_line=on_bad_line)  # type: ignore[arg-type]


@given(st.lists(st.tuples(JSON, st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\n"])), max_size=6), st.booleans())
@settings(max_examples=60)
def test_every_line_is_found_whatever_ends_it(
    tokenizer: Tokenizer, tmp_path: Path, lines: list[tuple[str, str]], mark: bool
) -> None:
    path = tmp_path / "data.jsonl"
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text, end in lines)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + content.rstrip("\r\n").encode())  # the last has no line end
    index = index_of(path, tokenizer)
    raw = path.read_bytes()
    found = [
        raw[start : start + length] for start, length in zip(index.starts.tolist(), index.lengths.tolist(), strict=True)
    ]
    texts = [text for text, _ in lines]
    assert [text_of(line, "text") for line in found] == texts
    assert index.num_tokens.tolist() == [len(tokenizer.encode(text)) for text in texts]
    assert index.num_bytes_of_text == sum(len(text.encode()) for text in texts)
    assert index.max_token_id == max((token for text in texts for token in tokenizer.encode(text)), default=-1)


def test_the_index_modalities_writes_for_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "ab"}\n{"text": "c"}\n')
    index = index_of(path, tokenizer)
    assert list(zip(index.starts.tolist(), index.lengths.tolist(), strict=True)) == [(0, 14), (15, 13)]


def test_small_batches_give_the_same_index(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": "ab " * number}) + "\n" for number in range(20)))
    whole = index_of(path, tokenizer)
    monkeypatch.setattr(jsonl_index, "_BATCH_CHARACTERS", 10)
    assert index_of(path, tokenizer).num_tokens.tolist() == whole.num_tokens.tolist()


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n"])
def test_files_without_documents(tokenizer: Tokenizer, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    index = index_of(path, tokenizer)
    assert (len(index), index.num_bytes_of_text, index.max_token_id, index.num_skipped) == (0, 0, -1, 0)


@pytest.mark.parametrize(
    ("key", "text"),
    [("text", "a"), (".text", "a"), ("meta.title", "b"), ("turns.1.content", "d"), ("meta.list.0", "e")],
)
def test_keys(key: str, text: str) -> None:
    line = {"text": "a", "meta": {"title": "b", "list": ["e"]}, "turns": [{"content": "c"}, {"content": "d"}]}
    assert text_of(json.dumps(line).encode(), key) == text


BAD_LINES = [
    (b'{"text": "a"', "text", r"must be JSON: expecting ',' delimiter \(line 1, column 13\)"),
    (b'{"text": "\xff"}', "text", r"must be UTF-8; byte 10 is not"),
    (b'{"body": "a", "id": 3}', "text", r"has no 'text' \(there is body, id\)"),
    (b'{"a": {"c": 1}}', "a.b", r"has no 'a.b' \(there is c\)"),
    (b'{"a": ["x"]}', "a.1", r"has no 'a.1' \(a list of 1\)"),
    (b'{"text": 5}', "text", r"has no text at 'text' but int"),
    (b'"text"', "text", r"has no 'text' \(there is str\)"),
    (b'{"text": "a\\ud800"}', "text", r"has half of a surrogate pair at 'text' \(character 1\)"),
]


@pytest.mark.parametrize(("line", "key", "problem"), BAD_LINES)
def test_bad_line_is_named_or_left_out(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes, key: str, problem: str
) -> None:
    good = b'{"text": "good", "a": {"b": "good"}}' if key != "a.1" else b'{"a": ["x", "good"]}'
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([good, b"", line, good]))
    with pytest.raises(DataError, match=rf"^line 3 of .*data.jsonl {problem}; correct it, or leave such lines out"):
        index_of(path, tokenizer, key)
    with caplog.at_level(logging.WARNING, "modlib"):
        index = index_of(path, tokenizer, key, "skip")
    assert (len(index), index.num_skipped) == (2, 1)
    assert f"1 lines of {path} are left out: line 3 of {path} " in caplog.text


def test_index_is_kept_and_made_again_when_damaged(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    settings = {"key": "text", "special_tokens": False, "on_bad_line": "raise"}
    first, sha256 = load_or_build(JSONLFile(path), tokenizer, **settings)  # type: ignore[arg-type]
    (kept,) = (tmp_path / "cache" / "jsonl").glob("*.npz")
    monkeypatch.setattr(jsonl_index, "build", None)  # would fail if it were called
    again, _ = load_or_build(JSONLFile(path), tokenizer, **settings)  # type: ignore[arg-type]
    assert again.num_tokens.tolist() == first.num_tokens.tolist()
    assert again.num_bytes_of_text == 6
    copied = tmp_path / "copy.jsonl"  # found by what is in it, wherever it lies
    copied.write_bytes(path.read_bytes())
    assert load_or_build(JSONLFile(copied), tokenizer, **settings)[1] == sha256  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    kept.write_bytes(kept.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "modlib"):
        assert len(load_or_build(JSONLFile(path), tokenizer, **settings)[0]) == 2  # type: ignore[arg-type]
    assert "is damaged and is made again" in caplog.text


def test_no_pickle_is_read(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one"}\n')
    settings = {"key": "text", "special_tokens": False, "on_bad_line": "raise"}
    load_or_build(JSONLFile(path), tokenizer, **settings)  # type: ignore[arg-type]
    (kept,) = (tmp_path / "cache" / "jsonl").glob("*.npz")
    kept.write_bytes(pickle.dumps([(0, 15)]))
    with caplog.at_level(logging.WARNING, "modlib"):
        assert len(load_or_build(JSONLFile(path), tokenizer, **settings)[0]) == 1  # type: ignore[arg-type]
    assert "is damaged and is made again" in caplog.text


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl cannot be opened: No such file or directory; check jsonl_path"):
        JSONLFile(tmp_path / "none.jsonl")


def test_text_that_spells_a_special_token_alone_is_no_document(tmp_path: Path) -> None:
    tokenizer = Tokenizer(word_level(tmp_path))
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["the fox", "the [EOS]", "fox"]))
    with pytest.raises(DataError, match=r"line 2 of .*data.jsonl has the special token \[EOS\], .*; correct it, or"):
        index_of(path, tokenizer)
    index = index_of(path, tokenizer, on_bad_line="skip")
    assert (index.num_tokens.tolist(), index.num_skipped, index.num_bytes_of_text) == ([2, 1], 1, 10)
    assert [path.read_bytes()[start:][:length] for start, length in zip(index.starts, index.lengths)] == [
        b'{"text": "the fox"}', b'{"text": "fox"}',
    ]  # fmt: skip
