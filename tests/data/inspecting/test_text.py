from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modlib.data.corpora.packing import pack_documents
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.inspecting.text import decode, documents_at, part_of
from modlib.data.packed.file import PackedFile
from modlib.data.packed.outputs import tokenizer_beside
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe
from modlib.runtime.errors import ConfigError, DataError

TEXTS = ["the quick brown fox", "", "naïve café, 東京", "lazy dog"]


@pytest.fixture
def packed(tokenizer: Tokenizer, tmp_path: Path) -> PackedFile:
    path = tmp_path / "a.packed"
    pack_documents(TEXTS, path, tokenizer)
    shutil.copyfile(tokenizer.path, tokenizer_beside(path))
    return PackedFile(path)


def test_documents_windows_and_ranges_as_text(packed: PackedFile) -> None:
    for number, text in enumerate(TEXTS):
        assert decode(packed.path, document=number) == text + "<|endoftext|>"
        assert decode(packed.path, document=number, skip_special_tokens=True) == text
    assert decode(packed.path, span=(0, packed.num_tokens), skip_special_tokens=True) == "".join(TEXTS)
    assert decode(packed.path, span=(3, 3)) == ""


def test_a_window_is_the_one_that_is_trained_on(packed: PackedFile) -> None:
    dataset = PackedDataset(path=str(packed.path), seq_len=4)
    for number in range(len(dataset)):
        part = part_of(packed, window=number, seq_len=4)
        assert part.tokens.tolist() == dataset[number].tolist()
        assert packed.tokens[part.start : part.start + 5].tolist() == part.tokens.tolist()


def test_where_documents_begin_in_a_part(packed: PackedFile) -> None:
    offsets = packed.document_offsets.tolist()
    first, begins = documents_at(packed, 1, packed.num_tokens - 1)
    assert (first, begins.tolist()) == (0, [offset - 1 for offset in offsets[1:-1]])
    first, begins = documents_at(packed, offsets[2], 1)
    assert (first, begins.tolist()) == (2, [])


def test_what_is_not_there_is_refused(packed: PackedFile, tmp_path: Path) -> None:
    for number in (4, -1):
        with pytest.raises(ConfigError) as caught:
            part_of(packed, document=number)
        assert str(caught.value) == (
            f"document ({number}) must be 0 to 3, the numbers of the 4 documents of {packed.path}"
        )
    for number in (99, -1):
        with pytest.raises(
            ConfigError,
            match=rf"window \({number}\) must be 0 to \d+, the numbers of the \d+ windows of .* with seq_len 4",
        ):
            part_of(packed, window=number, seq_len=4)
    with PackedFileWriter(tmp_path / "none.packed", vocab_size=4):
        pass
    with pytest.raises(ConfigError, match=r"document \(0\) must be one that there is, and there is none of the 0 docu"):
        part_of(PackedFile(tmp_path / "none.packed"), document=0)
    with pytest.raises(ConfigError, match=r"range \(5:999\) must lie in order within the \d+ tokens"):
        part_of(packed, span=(5, 999))
    with pytest.raises(ConfigError, match=r"seq_len \(None\) must be given with window \(1\); add --seq_len T"):
        part_of(packed, window=1)
    with pytest.raises(ConfigError, match=r"what to show \(nothing\) must be one of --document N"):
        part_of(packed)
    with pytest.raises(ConfigError, match=r"what to show \(document and range\) must be one of"):
        part_of(packed, document=1, span=(1, 2))


def test_never_with_another_tokenizer(packed: PackedFile, tmp_path: Path) -> None:
    other = train_byte_level_bpe(["other words"], tmp_path / "other.json", vocab_size=300, end_of_document="</s>")
    with pytest.raises(DataError, match=r"tokenizer of .* must be the tokenizer in use"):
        decode(packed.path, document=0, tokenizer=other.path)
    tokenizer_beside(packed.path).unlink()
    with pytest.raises(DataError, match=r"must lie beside it, as a.tokenizer.json .* or name it with --tokenizer"):
        decode(packed.path, document=0)


def test_what_is_trained_can_be_marked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    ids = tokenizer.encode("the quick brown fox")
    words = {text: tokenizer.encode(text) for text in ("the quick", " brown", " fox")}
    assert ids == [one for some in words.values() for one in some]
    trained = [text != " brown" for text, some in words.items() for _ in some]
    with PackedFileWriter(path, vocab_size=tokenizer.vocab_size, loss_mask=True) as writer:
        writer.write(ids, trained=trained)
    told = {"tokenizer": tokenizer.path, "mark_trained": True}
    assert decode(path, document=0, **told) == "\u27e6the quick\u27e7 brown\u27e6 fox\u27e7"
    assert decode(path, span=(0, 0), **told) == ""
    assert decode(path, document=0, tokenizer=tokenizer.path) == "the quick brown fox"
    part = part_of(PackedFile(path), window=0, seq_len=3)
    assert part.trained is not None
    assert part.trained.tolist() == trained[:4]
