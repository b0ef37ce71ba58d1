from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modlib.data import corpus, packing
from modlib.data.packed_file import PackedFile
from modlib.data.packing import pack_documents, pack_files
from modlib.data.tokenizer import Tokenizer
from modlib.runtime.errors import DataError


@given(st.lists(st.text(max_size=40), max_size=12), st.sampled_from([1, 30, 1 << 22]))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_document_is_lost(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], batch_characters: int
) -> None:
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", batch_characters)
    header = pack_documents(iter(texts), tmp_path / "a.packed", tokenizer, overwrite=True)
    packed = PackedFile(tmp_path / "a.packed")
    packed.verify()
    documents = [packed.document(i).tolist() for i in range(packed.num_documents)]
    assert [tokenizer.decode(document[:-1]) for document in documents] == texts
    assert all(document[-1] == tokenizer.end_of_document_id() for document in documents)
    assert header.num_documents == len(texts)
    assert header.num_bytes_of_text == sum(len(text.encode()) for text in texts)
    assert header.tokenizer_fingerprint == tokenizer.fingerprint
    assert header.end_of_document_id == tokenizer.end_of_document_id()


def test_files_are_packed_with_their_tokenizer_beside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    inputs = []
    for number, text in enumerate(["one\r\ntwo", "", "\ufeffthree"]):
        inputs.append(tmp_path / f"{number}.txt")
        inputs[-1].write_bytes(text.encode())
    out = tmp_path / "out" / "books.packed"
    header = pack_files(inputs, out, tokenizer.path)
    assert header.num_documents == 3
    packed = PackedFile(out)
    assert [tokenizer.decode(packed.document(i)[:-1]) for i in range(3)] == ["one\r\ntwo", "", "three"]
    beside = out.parent / "books.tokenizer.json"
    assert corpus.tokenizer_path(out) == beside
    pack_files(inputs, out, beside, overwrite=True)
    beside.write_text(beside.read_text().replace("<|endoftext|>", "<|other|>"))
    assert corpus.tokenizer_path(out) is None  # never another tokenizer


def test_bad_inputs_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out.packed"
    with pytest.raises(DataError, match=r"inputs \(0 files\) must be at least one text file"):
        pack_files([], out, tokenizer.path)
    with pytest.raises(DataError, match=r"missing.txt cannot be read: No such file"):
        pack_files([tmp_path / "missing.txt"], out, tokenizer.path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9!")
    with pytest.raises(DataError, match=r"latin.txt must be UTF-8 text; byte 3 is not \(.*\): convert it first"):
        pack_files([tmp_path / "latin.txt"], out, tokenizer.path)
    with pytest.raises(DataError, match=r"end-of-document token \(</doc>\) must be a token"):
        pack_files([tmp_path / "latin.txt"], out, tokenizer.path, end_of_document="</doc>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.txt"]
