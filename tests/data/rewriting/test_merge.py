from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.corpora.packing import pack_documents
from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packed.outputs import tokenizer_beside
from modlib.data.rewriting.copying import provenance_beside
from modlib.data.rewriting.merge import merge
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import tokenizer_path
from modlib.runtime.errors import ConfigError, DataError
from tests.data.packed_lists import documents_of_ids, read, write


@given(st.lists(documents_of_ids, min_size=1, max_size=4))
@settings(max_examples=30)
def test_every_document_in_the_order_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[list[list[int]]]
) -> None:
    monkeypatch.setattr(pieces, "BATCH_TOKENS", 5)
    files = [write(tmp_path / f"{number}.packed", documents) for number, documents in enumerate(parts)]
    header = merge(files, tmp_path / "all.packed", overwrite=True)
    together = list(itertools.chain.from_iterable(parts))
    assert read(tmp_path / "all.packed") == together
    assert header.num_bytes_of_text == header.num_tokens  # as the files say, which hold one byte of text per token
    assert header.sha256 == PackedFile(write(tmp_path / "at_once", together)).sha256


def test_the_result_says_what_it_is_from_and_has_its_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = [tmp_path / "a.packed", tmp_path / "b.packed"]
    for file, text in zip(files, ["the quick", "brown fox"], strict=True):
        pack_documents([text], file, tokenizer)
    tokenizer_beside(files[0]).write_bytes(tokenizer.path.read_bytes())
    header = merge(files, tmp_path / "out" / "all.packed")
    assert tokenizer_path(tmp_path / "out" / "all.packed") == tmp_path / "out" / "all.tokenizer.json"
    record = json.loads(provenance_beside(tmp_path / "out" / "all.packed").read_text())
    assert record["command"] == "modlib data merge"
    assert [one["sha256"] for one in record["inputs"]] == [PackedFile(file).sha256 for file in files]
    assert record["output"]["sha256"] == header.sha256
    assert header.end_of_document_id == tokenizer.end_of_document_id()


def test_files_that_do_not_go_together_are_refused_with_both_values(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [[1]], tokenizer_fingerprint="f" * 64)
    other = write(tmp_path / "b", [[1]], tokenizer_fingerprint="0" * 64)
    with pytest.raises(DataError) as caught:
        merge([first, other], tmp_path / "out")
    assert str(caught.value) == (
        f"tokenizer of {other} ({'0' * 16}) must equal the one of {first} ({'f' * 16}); "
        "pack both with one tokenizer: the same id would mean two things"
    )
    other = write(tmp_path / "b", [[1]], vocab_size=301, tokenizer_fingerprint="f" * 64)
    with pytest.raises(DataError, match=r"vocab_size of .*b \(301\) must equal the one of .*a \(300\)"):
        merge([first, other], tmp_path / "out")
    other = write(tmp_path / "b", [[1]], tokenizer_fingerprint="f" * 64, end_of_document_id=0)
    with pytest.raises(DataError, match=r"end-of-document id of .*b \(0\) must equal the one of .*a \(None\)"):
        merge([first, other], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"inputs \(0 files\) must be at least one packed file"):
        merge([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_of_text_are_unknown_where_one_file_does_not_know_them(tmp_path: Path) -> None:
    from modlib.data.packed.writer import PackedFileWriter

    known = write(tmp_path / "a", [[1, 2]])
    with PackedFileWriter(tmp_path / "b", vocab_size=300) as writer:
        writer.write([3])
    assert merge([known, tmp_path / "b"], tmp_path / "out").num_bytes_of_text == 0


def test_a_file_with_more_sections_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from modlib.data.packed.header import HEADER_BYTES, encode_header

    path = write(tmp_path / "a", [[1, 2]])
    header = PackedFile(path).header
    more = replace(header, sections={**header.sections, "later": (header.file_bytes, 2)})
    path.write_bytes(encode_header(more) + path.read_bytes()[HEADER_BYTES:] + b"\1\1")
    with pytest.raises(DataError) as caught:
        merge([path], tmp_path / "out")
    assert str(caught.value) == (
        f"sections of {path} (later besides tokens, documents and loss_mask) must be these alone: the others would be "
        "lost; rewrite the file with the command that made it"
    )


def test_files_with_and_without_a_loss_mask(tmp_path: Path) -> None:
    masked, plain = write(tmp_path / "a", [[1, 3, 6], [4]], loss_mask=True), write(tmp_path / "b", [[1, 2]])
    merge([masked, masked], tmp_path / "both")
    assert read(tmp_path / "both") == [[1, 3, 6], [4]] * 2
    merge([plain, masked, plain], tmp_path / "mixed")
    packed = PackedFile(tmp_path / "mixed")
    packed.verify()
    assert packed.tokens.tolist() == [1, 2, 1, 3, 6, 4, 1, 2]
    assert packed.trained(0, 8).tolist() == [True, True, False, True, True, False, True, True]
    merge([plain, plain], tmp_path / "neither")
    assert not PackedFile(tmp_path / "neither").has_loss_mask


def test_a_merge_onto_one_of_its_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [[1, 2]])
    with pytest.raises(ConfigError, match="exists; choose another path"):
        merge([path, path], path)
    merge([path, path], path, overwrite=True)
    assert read(path) == [[1, 2], [1, 2]]
