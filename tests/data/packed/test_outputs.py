"""No command replaces what it reads, whatever --overwrite allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modlib.data.foreign.convert import convert_from, convert_to
from modlib.data.packed.outputs import exists, require_not_read
from modlib.data.packing.pack import pack
from modlib.data.rewriting.chunks import chunk
from modlib.data.rewriting.filter import filter_documents
from modlib.data.rewriting.merge import merge
from modlib.data.rewriting.mix import mix
from modlib.data.rewriting.shuffle import shuffle
from modlib.data.text.line_index import write_index
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import ConfigError
from tests.data.packing.test_pack import texts_of, write_jsonl

TEXTS = [f"document {number}" for number in range(9)]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_an_input_under_another_name_is_found(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["x"])
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for output in (tmp_path / "link", tmp_path / "hard", tmp_path / "no" / ".." / "a.jsonl"):
        (tmp_path / "no").mkdir(exist_ok=True)
        with pytest.raises(
            ConfigError,
            match=rf"^output \({output}\) must not be an input \({source}\): its bytes would be lost; choose another",
        ):
            require_not_read([tmp_path / "new", output], [tmp_path / "gone", source])
    require_not_read([tmp_path / "new"], [source])


def test_what_may_not_be_replaced_is_said_for_shell_and_python() -> None:
    text = "a.packed exists; choose another path, remove it, or pass --overwrite (overwrite=True in Python)"
    assert str(exists("a.packed")) == text


@pytest.mark.parametrize("settings", [{}, {"shard_tokens": 9}, {"split": {"a": 0.5, "b": 0.5}}])
def test_pack_replaces_no_input(tokenizer: Tokenizer, tmp_path: Path, settings: dict[str, Any]) -> None:
    one, other = write_jsonl(tmp_path / "a.jsonl", TEXTS), write_jsonl(tmp_path / "b.jsonl", TEXTS[:4])
    before = contents(tmp_path)
    for output in (one, other, tmp_path / "new.JSONL", tmp_path / "new.jsonl.gz", tmp_path / "new.txt"):
        text = rf"^output \({output}\) must not be a kind of input; name the output last$"
        with pytest.raises(ConfigError, match=text):
            pack([one], output, tokenizer, overwrite=True, **settings)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "z.packed"),
        ({"split": {"a": 0.5, "b": 0.5}}, "z.b.packed"),
        ({"shard_tokens": 9}, "z-00001-of-00002.packed"),
        ({}, "z.pack.json"),
        ({}, "z.packed.skipped.jsonl"),
    ],
)
def test_no_output_of_pack_is_an_input(
    tokenizer: Tokenizer, tmp_path: Path, settings: dict[str, Any], name: str
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / name).symlink_to(source)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=rf"^output \(.*{name}\) must not be an input \(.*a.jsonl\)"):
        pack([source], tmp_path / "z.packed", tokenizer, overwrite=True, **settings)
    assert contents(tmp_path) == before
    assert (tmp_path / name).is_symlink()


def test_the_list_of_rows_left_out_is_not_packed_and_removed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nbad\n')
    pack([tmp_path], tmp_path / "z.packed", tokenizer, on_error="skip")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"z.packed.skipped.jsonl\) must not be an input"):
        pack([tmp_path], tmp_path / "z.packed", tokenizer, on_error="skip", overwrite=True)
    assert contents(tmp_path) == before


def test_pack_replaces_no_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, model = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "tokenizer.saved"
    model.write_bytes(tokenizer.path.read_bytes())
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"^output \(.*tokenizer.saved\) must not be an input"):
        pack([source], model, model, overwrite=True)
    assert contents(tmp_path) == before


def test_an_index_does_not_replace_its_file(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", TEXTS)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"^output \(.*q.jsonl\) must not be an input \(.*q.jsonl\)"):
        write_index(source, source, overwrite=True)
    assert contents(tmp_path) == before


def test_convert_replaces_no_input(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    packed = tmp_path / "m.bin"
    pack([tmp_path / "a.jsonl"], packed, tokenizer)
    np.arange(40, dtype="<u2").tofile(tmp_path / "nn.bin")
    made = convert_to(packed, tmp_path / "megatron", "megatron")
    before = contents(tmp_path)
    calls: list[Callable[[], object]] = [
        lambda: convert_from(tmp_path / "nn.bin", tmp_path / "nn.bin", "nanogpt", vocab_size=50, overwrite=True),
        *(lambda path=path: convert_from(made[0], path, "megatron", overwrite=True) for path in made),
        lambda: convert_to(packed, packed, "nanogpt", overwrite=True),
        lambda: convert_to(packed, packed, "modalities", overwrite=True),
        lambda: convert_to(packed, tmp_path / "m", "megatron", overwrite=True),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"^output \(.*\) must not be an input \(.*\): its bytes would be lost"):
            call()
    assert contents(tmp_path) == before


def test_a_packed_file_may_be_replaced_by_what_is_made_of_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    pack([write_jsonl(tmp_path / "a.jsonl", TEXTS)], path, tokenizer)
    shuffle(path, path, seed=1, overwrite=True)
    assert sorted(texts_of(path, tokenizer)) == TEXTS
    shuffled = texts_of(path, tokenizer)
    merge([path, path], path, overwrite=True)
    assert texts_of(path, tokenizer) == shuffled * 2
    filter_documents(path, path, lambda document: document.number < 9, overwrite=True)
    assert texts_of(path, tokenizer) == shuffled
    mix([path], path, weights=[1], overwrite=True)
    assert sorted(texts_of(path, tokenizer)) == TEXTS
    mixed = texts_of(path, tokenizer)
    first = tmp_path / "c-00000-of-00002.packed"
    path.rename(first)
    chunks = chunk(first, tmp_path / "c", num_chunks=2, overwrite=True)
    assert [text for one, _ in chunks for text in texts_of(one, tokenizer)] == mixed
