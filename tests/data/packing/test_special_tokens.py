"""Ends of documents, and text that spells special tokens, in packed files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modlib.data.datasets.dataset import tokenizer_of
from modlib.data.datasets.jsonl_dataset import JSONLDataset
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.inspecting.text import decode
from modlib.data.inspecting.verify import verify
from modlib.data.packed.file import PackedFile
from modlib.data.packing.pack import pack
from modlib.data.rewriting.merge import merge
from modlib.data.rewriting.mix import mix
from modlib.data.text.boundary_tokens import boundary_tokens
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.runtime.errors import DataError
from tests.data import small_tokenizers as small


def packed(folder: Path, tokenizer: Path, texts: list[str], **settings: Any) -> tuple[list[list[int]], Any]:
    """The documents of a file that has nothing wrong in it, and the summary."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    summary = pack([source], folder / "out.packed", tokenizer, overwrite=True, **settings)
    file = verify(folder / "out.packed").packed
    return [file.document(number).tolist() for number in range(file.num_documents)], summary


def test_tags_of_web_pages_do_not_end_documents(tmp_path: Path) -> None:
    """Gemma's `</s>` closes what HTML strikes out."""
    folder = small.gemma(tmp_path / "gemma", bos_token="<bos>", eos_token="<end_of_turn>", chat_template=small.CHATML)
    (document,), summary = packed(tmp_path, folder, ["A <s>struck</s> word."])
    (header,) = summary.outputs.values()
    tokenizer = Tokenizer(folder)
    assert header.end_of_document_id == 1
    assert [document.count(token) for token in (260, 261, 1)] == [1, 1, 1]
    assert document[-1] == 1
    assert decode(tmp_path / "out.packed", document=0) == "A <s>struck</s> word.<eos>"
    assert boundary_tokens(header, tokenizer).end == (1, "<eos>")


def test_a_special_token_in_a_text_is_kept_as_text(tmp_path: Path) -> None:
    folder = small.t5(tmp_path / "t5")
    documents, summary = packed(tmp_path, folder, ["a</s> the", "the"])
    tokenizer = load_tokenizer(folder)
    assert [[tokenizer.token_text(token) for token in document] for document in documents] == [
        ["▁", "a", "<unk>", "/", "s", ">", "▁the", "</s>"],
        ["▁the", "</s>"],
    ]
    assert summary.num_skipped == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_nothing_spells_is_a_bad_row(workers: int, tmp_path: Path) -> None:
    folder = small.word_level(tmp_path / "words")
    texts = ["the fox", "", "the [EOS] fox", "fox"]
    with pytest.raises(DataError) as caught:
        packed(tmp_path, folder, [text for text in texts if text], end_of_document="[EOS]", workers=workers)
    where = tmp_path / "in.jsonl"
    assert str(caught.value) == (
        f"{where}:2 has the special token [EOS], whose id no text may become, and which no other tokens of "
        f"{folder / 'tokenizer.json'} spell; correct it, or leave such rows out with --on_error skip"
    )
    shares = {"train": 0.5, "test": 0.5}
    settings: dict[str, Any] = {"end_of_document": "[EOS]", "on_error": "skip", "workers": workers}
    documents, summary = packed(tmp_path, folder, texts, **settings)
    assert documents == [[2, 3, 1], [3, 1]]
    assert summary.num_skipped == 2
    rows = [json.loads(line) for line in summary.skipped.read_text().splitlines()]
    assert [row["line"] for row in rows] == [2, 3]
    assert "special token" in rows[1]["reason"]
    (told,) = json.loads(summary.record.read_text())["inputs"]
    assert (told["documents"], told["bad"]) == (2, 2)
    if workers == 1:
        pack([where], tmp_path / "both.packed", folder, split=shares, **settings)
        files = [PackedFile(tmp_path / f"both.{name}.packed") for name in shares]
        assert sum(file.num_documents for file in files) == 2


def test_text_without_a_token_for_it_is_a_bad_row(tmp_path: Path) -> None:
    """The library's own error names no row."""
    folder = small.word_level(tmp_path / "words", unk_token=None)
    with pytest.raises(DataError, match=r"in.jsonl:2 cannot be encoded by .*tokenizer.json \(WordLevel error: Missing"):
        packed(tmp_path, folder, ["the fox", "the dog"], end_of_document="[EOS]")


def test_the_end_is_shown_as_the_file_of_the_tokenizer_has_it(tmp_path: Path) -> None:
    folder = small.lower_case(tmp_path / "lower")
    packed(tmp_path, folder, ["the"], end_of_document="<EOD>")
    assert decode(tmp_path / "out.packed", document=0) == "the <EOD>"
    header = PackedFile(tmp_path / "out.packed").header
    assert boundary_tokens(header, load_tokenizer(tmp_path / "out.tokenizer.json")).end == (10, "<EOD>")


def test_what_stands_before_every_text_is_told_and_kept(tmp_path: Path) -> None:
    folder = small.gemma(tmp_path / "gemma")
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "A"}\n{"text": "b"}\n')
    begins = PretrainedHFTokenizer(folder, add_bos=True)
    for name in ("a", "b"):
        pack([source], tmp_path / f"{name}.packed", begins)
    pack([source], tmp_path / "none.packed", folder)
    both = [tmp_path / "a.packed", tmp_path / "b.packed"]
    assert PackedFile(both[0]).document(0).tolist() == [2, begins.token_id("A"), 1]
    merge(both, tmp_path / "merged.packed")
    mix(both, tmp_path / "mixed.packed", weights=[0.5, 0.5])
    for name in ("a", "merged", "mixed"):
        found = boundary_tokens(PackedFile(tmp_path / f"{name}.packed").header, begins)
        assert found == ((1, "<eos>"), (2, "<bos>")), name
    made_it = tokenizer_of(PackedDataset(path=str(both[0]), seq_len=2))
    assert made_it is not None
    assert (made_it.documents_begin, made_it.documents_end) == (2, 1)
    merge([both[0], tmp_path / "none.packed"], tmp_path / "unlike.packed")
    assert boundary_tokens(PackedFile(tmp_path / "unlike.packed").header, begins) == ((1, "<eos>"), (1, "<eos>"))


def test_a_tokenizer_of_data_ends_documents_as_the_data(tmp_path: Path) -> None:
    """`generate`, `export` and the sample after training take it so, whatever its choice would be."""
    folder = small.gemma(tmp_path / "gemma")
    packed(tmp_path, folder, ["A b c"], end_of_document="<end_of_turn>")
    found = tokenizer_of(PackedDataset(path=str(tmp_path / "out.packed"), seq_len=2))
    assert found is not None
    assert (found.end_of_document_id(), found.end_of_document_id("<eos>")) == (3, 1)
    assert boundary_tokens(None, found).end == (3, "<end_of_turn>")
    lines = JSONLDataset(
        jsonl_path=str(tmp_path / "in.jsonl"), tokenizer=lambda: PretrainedHFTokenizer(folder), seq_len=2,
        end_of_document="<bos>",
    )  # fmt: skip
    found = tokenizer_of(lines)
    assert found is not None
    assert found.end_of_document_id() == 2


def test_in_a_conversation_a_special_token_is_read_only_where_it_is_written_so(tmp_path: Path) -> None:
    """To the normalizer, `<eod>` in a message is the `<EOD>` that ends turns."""
    folder = small.lower_case(tmp_path / "lower")
    template = tmp_path / "turns.jinja"
    template.write_text(
        "{% for m in messages %}x {% if m.role == 'assistant' %}{% generation %}{{ m.content }} <EOD> "
        "{% endgeneration %}{% else %}{{ m.content }} {% endif %}{% endfor %}"
    )
    source = tmp_path / "chat.jsonl"
    chats = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": "y"}] for one in ("the", "the <eod> z")
    ]
    source.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    settings: dict[str, Any] = {"chat": True, "chat_template": template, "end_of_document": "<EOD>"}
    with pytest.raises(DataError) as caught:
        pack([source], tmp_path / "out.packed", folder, **settings)
    assert str(caught.value) == (
        f"{source}:2 has '<eod>', which {folder / 'tokenizer.json'} would read as its special token <EOD>; correct it, "
        "or leave such rows out with --on_error skip"
    )
    pack([source], tmp_path / "out.packed", folder, on_error="skip", **settings)
    assert decode(tmp_path / "out.packed", document=0, mark_trained=True).count("<EOD>") == 1
