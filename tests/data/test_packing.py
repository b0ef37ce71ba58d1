from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modlib.data import corpus, packing
from modlib.data.packed_file import PackedFile
from modlib.data.packing import pack_documents, read_text
from modlib.data.tokenizer import Tokenizer
from modlib.data.tokenizer_files import put_beside
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


def test_the_tokenizer_beside_is_found_and_never_another(tokenizer: Tokenizer, tmp_path: Path) -> None:
    out, beside = tmp_path / "books.packed", tmp_path / "books.tokenizer.json"
    pack_documents(["one", ""], out, tokenizer)
    put_beside(tokenizer.path, out)
    assert corpus.tokenizer_path(out) == beside
    beside.write_text(beside.read_text().replace("<|endoftext|>", "<|other|>"))
    assert corpus.tokenizer_path(out) is None


def test_text_is_read_without_its_mark_and_only_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffthree\r\n".encode())
    assert read_text(path) == "three\r\n"
    path.write_bytes(b"caf\xe9!")
    with pytest.raises(DataError, match=r"a.txt must be UTF-8 text; byte 3 is not \(.*\): convert it first"):
        read_text(path)
    with pytest.raises(DataError, match=r"missing.txt cannot be read: No such file"):
        read_text(tmp_path / "missing.txt")
