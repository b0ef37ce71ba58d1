from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.corpora.packing import pack_documents
from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packed.outputs import tokenizer_beside
from modlib.data.rewriting.filter import Document, filter_documents
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import DataError
from tests.data.packed_lists import documents_of_ids, read, write


@given(documents_of_ids, st.data())
@settings(max_examples=40)
def test_what_is_kept_is_there_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]], data: st.DataObject
) -> None:
    monkeypatch.setattr(pieces, "BATCH_TOKENS", 5)
    wanted = data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    seen = []

    def keep(document: Document) -> bool:
        seen.append((document.number, document.tokens.tolist()))
        return wanted[document.number]

    source = write(tmp_path / "a", documents, loss_mask=data.draw(st.booleans()))
    header = filter_documents(source, tmp_path / "b", keep, overwrite=True)
    assert PackedFile(tmp_path / "b").has_loss_mask == PackedFile(source).has_loss_mask
    assert seen == list(enumerate(documents))
    assert read(tmp_path / "b") == [document for document, keep in zip(documents, wanted, strict=True) if keep]
    assert header.num_bytes_of_text == (PackedFile(source).num_bytes_of_text if all(wanted) else 0)


def test_by_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tmp_path / "a.packed"
    pack_documents(["the quick", "brown fox", "the lazy dog"], source, tokenizer)
    with pytest.raises(DataError, match=r"must lie beside it, as a.tokenizer.json"):
        filter_documents(source, tmp_path / "b.packed", lambda document: bool(document.text))
    assert not (tmp_path / "b.packed").exists()
    shutil.copyfile(tokenizer.path, tokenizer_beside(source))
    filter_documents(source, tmp_path / "b.packed", lambda document: document.text.startswith("the "))
    kept = PackedFile(tmp_path / "b.packed")
    texts = [tokenizer.decode(kept.document(n), skip_special_tokens=True) for n in range(kept.num_documents)]
    assert texts == ["the quick", "the lazy dog"]
    assert tokenizer_beside(tmp_path / "b.packed").is_file()


def test_a_function_that_fails_or_forgets_to_answer(tmp_path: Path) -> None:
    source = write(tmp_path / "a", [[1], [], [2]])

    def first_token(document: Document) -> bool:
        return bool(document.tokens[0])

    def forgets(document: Document) -> Any:
        document.tokens.sum()

    with pytest.raises(DataError) as caught:
        filter_documents(source, tmp_path / "b", first_token, name="mine:first_token")
    assert str(caught.value) == (
        "keep (mine:first_token) must return True or False for every document; for document 1 it raised IndexError: "
        "index 0 is out of bounds for axis 0 with size 0"
    )
    with pytest.raises(DataError, match=r"keep \(.*forgets\) must return True or False; for .* 0 it returned None"):
        filter_documents(source, tmp_path / "b", forgets)
    with pytest.raises(DataError, match="read-only"):
        filter_documents(source, tmp_path / "b", lambda document: document.tokens.fill(0) is None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
