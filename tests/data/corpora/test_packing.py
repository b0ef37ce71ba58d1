from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.corpora import packing
from modlib.data.corpora.packing import pack_documents
from modlib.data.packed.file import PackedFile
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import put_beside, tokenizer_path


@given(st.lists(st.text(max_size=40), max_size=12), st.sampled_from([1, 30, 1 << 22]))
@settings(max_examples=40)
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
    assert tokenizer_path(out) == beside
    beside.write_text(beside.read_text().replace("<|endoftext|>", "<|other|>"))
    assert tokenizer_path(out) is None
