from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.text.boundary_tokens import BEGIN_OF_TEXT, BoundaryToken, boundary_tokens
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.runtime.errors import DataError


def lower_case(folder: Path) -> PretrainedHFTokenizer:
    """Words in lower case, and a special token that the library itself shows as `<eod>`."""
    library = tokenizers.Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1, "x": 2}, unk_token="[UNK]"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens([AddedToken("<EOD>", special=True, normalized=True)])
    library.save(str(folder / "tokenizer.json"))
    return PretrainedHFTokenizer(folder)


def header_of(path: Path, tokenizer: Tokenizer, **settings: object):  # type: ignore[no-untyped-def]
    with PackedFileWriter(path, vocab_size=tokenizer.vocab_size, **settings) as writer:  # type: ignore[arg-type]
        writer.write(np.array([0, 3]))
    return PackedFile(path).header


def test_the_text_of_an_id_is_the_added_tokens_own(tmp_path: Path) -> None:
    tokenizer = lower_case(tmp_path)
    assert [tokenizer.token_text(number) for number in range(4)] == ["the", "[UNK]", "x", "<EOD>"]
    assert tokenizer.token_id("<EOD>") == 3
    with pytest.raises(DataError, match=r"token id \(4\) must be one of .*tokenizer.json, whose ids are below 4; was"):
        tokenizer.token_text(4)


def test_the_headers_id_counts_and_begins_the_next_text(tmp_path: Path) -> None:
    tokenizer = lower_case(tmp_path)
    header = header_of(tmp_path / "a.packed", tokenizer, end_of_document_id=3)
    assert boundary_tokens(header, tokenizer) == (BoundaryToken(3, "<EOD>"), BoundaryToken(3, "<EOD>"))
    header = header_of(tmp_path / "b.packed", tokenizer, end_of_document_id=2, info={"begin_of_text_id": 0})
    assert boundary_tokens(header, tokenizer) == (BoundaryToken(2, "x"), BoundaryToken(0, "the"))
    for number, wrong in enumerate(["0", -1, 4, None]):
        header = header_of(tmp_path / f"{number}.packed", tokenizer, end_of_document_id=2, info={BEGIN_OF_TEXT: wrong})
        assert boundary_tokens(header, tokenizer).begin == (2, "x")
    header = header_of(tmp_path / "c.packed", tokenizer, end_of_document_id=9)
    with pytest.raises(DataError, match=r"token id \(9\) must be one of"):
        boundary_tokens(header, tokenizer)


def test_without_a_header_the_tokenizer_chooses(tokenizer: Tokenizer, tmp_path: Path) -> None:
    end = BoundaryToken(0, "<|endoftext|>")
    assert boundary_tokens(None, tokenizer) == (end, end)
    assert boundary_tokens(None, lower_case(tmp_path)) == (None, None)
