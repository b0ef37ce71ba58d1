"""Tokenizers of either kind: opened by one function, found beside packed files and taken along."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from modlib.data.foreign.convert import convert_from, convert_to
from modlib.data.inspecting.text import decode
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.rewriting.merge import merge
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import find_beside, load_tokenizer, put_beside, tokenizer_path
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.runtime.errors import ConfigError, DataError
from tests.rows import assets_data

pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("tokenizers")
    assets_data.make(folder)
    return {"sp": folder / "data.sentencepiece.model", "hf": folder / "data.tokenizer.json"}


def packed(path: Path, tokenizer: PretrainedSPTokenizer | Tokenizer, text: str) -> Path:
    with PackedFileWriter(path, vocab_size=tokenizer.vocab_size, tokenizer_fingerprint=tokenizer.fingerprint) as writer:
        ids = [*tokenizer.encode(text), tokenizer.end_of_document_id()]
        writer.write_documents(ids, [len(ids)])  # type: ignore[arg-type]
    return path


def test_one_function_opens_either_kind_by_file_or_folder(files: dict[str, Path], tmp_path: Path) -> None:
    for kind, wanted, name in (("sp", PretrainedSPTokenizer, "en.model"), ("hf", Tokenizer, "tokenizer.json")):
        folder = tmp_path / kind
        folder.mkdir()
        shutil.copyfile(files[kind], folder / name)
        for path in (folder, folder / name):
            opened = load_tokenizer(path)
            assert isinstance(opened, wanted)
            assert opened.decode(opened.encode("the lazy dog")) == "the lazy dog"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_tokenizer(tmp_path / "none.model")


@pytest.mark.parametrize("kind", ["sp", "hf"])
def test_found_beside_by_its_fingerprint_alone_and_taken_along(
    kind: str, files: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer, other = load_tokenizer(files[kind]), files["hf" if kind == "sp" else "sp"]
    source = packed(tmp_path / "a.packed", tokenizer, "the quick dog")  # type: ignore[arg-type]
    put_beside(other, source)
    assert tokenizer_path(source) is None
    put_beside(files[kind], source)
    suffix = {"sp": "model", "hf": "json"}[kind]
    found = tmp_path / f"a.tokenizer.{suffix}"
    assert tokenizer_path(source) == find_beside(source, tokenizer.fingerprint) == found
    assert find_beside(source, "") is None
    merge([source, source], tmp_path / "b.packed")
    assert (tmp_path / f"b.tokenizer.{suffix}").read_bytes() == files[kind].read_bytes()
    assert not (tmp_path / f"b.tokenizer.{other.suffix[1:]}").exists()
    assert decode(tmp_path / "b.packed", document=1).startswith("the quick dog")
    put_beside(found, source)  # onto itself
    assert found.read_bytes() == files[kind].read_bytes()
    with pytest.raises(DataError, match=rf"b.tokenizer.{suffix} cannot be written: No such file or directory; free"):
        put_beside(found, tmp_path / "nowhere" / "b.packed")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.tokenizer.json cannot be read: must be JSON"),
        (b'{"model": {"type": "BPE"', "a.tokenizer.json cannot be read: must be JSON"),
        (b"\xff\xfe", "a.tokenizer.json cannot be read: 'utf-8' codec"),
        (b'{"model": 1}', "a.tokenizer.json is another one ("),
    ],
)
def test_a_damaged_tokenizer_is_not_taken_for_an_absent_one(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, said: str
) -> None:
    source = packed(tmp_path / "a.packed", Tokenizer(files["hf"]), "the quick dog")
    assert tokenizer_path(source) is None
    assert caplog.text == ""  # there is none to say anything of
    (tmp_path / "a.tokenizer.json").write_bytes(content)
    assert tokenizer_path(source) is None
    assert said in caplog.text
    assert "put the file back that was written with the data" in caplog.text


def test_a_pipe_in_the_place_of_a_tokenizer_is_not_waited_for(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = packed(tmp_path / "a.packed", Tokenizer(files["hf"]), "the quick dog")
    os.mkfifo(tmp_path / "a.tokenizer.json")
    assert tokenizer_path(source) is None
    assert "a.tokenizer.json must be a regular file" in caplog.text


def test_a_folder_with_a_sentencepiece_model_works_in_decode_and_convert(
    files: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(files["sp"], folder / "en.model")
    source = packed(tmp_path / "a.packed", PretrainedSPTokenizer(files["sp"]), "over the fox")
    assert decode(source, document=0, tokenizer=folder, skip_special_tokens=True) == "over the fox"
    convert_to(source, tmp_path / "a.bin", "nanogpt")
    header = convert_from(tmp_path / "a.bin", tmp_path / "b.packed", "nanogpt", tokenizer=folder)
    assert header.tokenizer_fingerprint == PretrainedSPTokenizer(files["sp"]).fingerprint
    assert decode(tmp_path / "b.packed", document=0, skip_special_tokens=True) == "over the fox"
