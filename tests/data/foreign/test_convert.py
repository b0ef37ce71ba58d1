from __future__ import annotations

import itertools
import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.foreign import nanogpt_file
from modlib.data.foreign.convert import convert_from, convert_to
from modlib.data.foreign.megatron_file import megatron_paths
from modlib.data.foreign.modalities_file import read_modalities_index
from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packing.pack import pack
from modlib.data.rewriting.copying import provenance_beside
from modlib.data.text.line_index import LineIndex, write_index
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import ConfigError, DataError
from tests.data import small_tokenizers as small
from tests.data.packed_lists import documents_of_ids, read, write

quickly = settings(max_examples=25)


@given(documents_of_ids, st.sampled_from(["modalities", "megatron"]), st.sampled_from([256, 300, 70_000]))
@quickly
def test_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]], format: Any, vocab_size: int
) -> None:
    monkeypatch.setattr(pieces, "BATCH_TOKENS", 5)
    documents = [[token % vocab_size for token in document] for document in [*documents, [1]]]
    source = write(tmp_path / "a.packed", documents, vocab_size=vocab_size)
    made = convert_to(source, tmp_path / "a.foreign", format, overwrite=True)
    assert all(path.is_file() for path in made)
    header = convert_from(made[0], tmp_path / "b.packed", format, vocab_size=vocab_size, overwrite=True)
    assert read(tmp_path / "b.packed") == documents
    assert header.sha256 == PackedFile(source).sha256


def test_an_old_pbin_whose_offsets_count_the_header_is_read(tmp_path: Path) -> None:
    """Modalities wrote such files until 2024: the first offset is 12, the lengths are right."""
    documents = [[1, 2, 3], [4, 5], [6]]
    ids = np.array([token for document in documents for token in document], "<u2").tobytes()
    pairs = [(12, 6), (18, 4), (22, 2)]
    (tmp_path / "old.pbin").write_bytes(struct.pack("<QI", len(ids), 2) + ids + pickle.dumps(pairs))
    convert_from(tmp_path / "old.pbin", tmp_path / "a.packed", "modalities", vocab_size=10)
    assert read(tmp_path / "a.packed") == documents
    (tmp_path / "bad.pbin").write_bytes(struct.pack("<QI", len(ids), 2) + ids + pickle.dumps([(4, 6), *pairs[1:]]))
    with pytest.raises(DataError, match=r"offset of document 0 of .* \(4\) must be 0, where the data begins; files"):
        convert_from(tmp_path / "bad.pbin", tmp_path / "b.packed", "modalities", vocab_size=10)


@pytest.mark.parametrize("format", ["npy", "gpt-2", "llama-3"])
def test_relatives_of_nanogpts_bin_are_recognised_by_their_header(tmp_path: Path, format: str) -> None:
    ids = [5, 3, 0, 40_000, 7, 0]
    path = tmp_path / "shard.bin"  # as they are often called
    if format == "npy":
        with open(path, "wb") as file:
            np.save(file, np.array(ids, np.uint16))
    else:
        magic, version, dtype = (20240520, 1, "<u2") if format == "gpt-2" else (20240801, 7, "<u4")
        header = np.zeros(256, "<i4")
        header[:3] = magic, version, len(ids)
        path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())
    convert_from(path, tmp_path / "a.packed", "nanogpt", vocab_size=65_536, end_of_document_id=0)
    assert read(tmp_path / "a.packed") == [[5, 3, 0], [40_000, 7, 0]]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"(truncated or damaged|cannot be read).*copy it again"):
        convert_from(path, tmp_path / "b.packed", "nanogpt", vocab_size=65_536)


@pytest.mark.parametrize("header", [(20240520, 2, 4), (20240801, 1, 4), (20240520, 1)])
def test_another_file_of_llm_c_is_not_taken_for_ids(tmp_path: Path, header: tuple[int, ...]) -> None:
    size = 256 if len(header) == 3 else 2
    (tmp_path / "a.bin").write_bytes(np.array([*header, *[0] * (size - len(header))], "<i4").tobytes() + bytes(8))
    with pytest.raises(DataError, match=rf"begins as a file of llm.c \(.* version {header[1]} of {header[0]}\), which"):
        convert_from(tmp_path / "a.bin", tmp_path / "a.packed", "nanogpt", vocab_size=65_536)


def test_a_numpy_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"a.npy is a NumPy array of float64 of shape \(2, 2\); it must be token ids"):
        convert_from(tmp_path / "a.npy", tmp_path / "a.packed", "nanogpt", vocab_size=9)


@given(st.lists(st.lists(st.integers(1, 299), max_size=7), max_size=20))
@quickly
def test_nanogpt_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]]) -> None:
    monkeypatch.setattr(nanogpt_file, "BATCH_TOKENS", 3)
    documents = [[*document, 0] for document in documents]
    source = write(tmp_path / "a.packed", documents, end_of_document_id=0)
    convert_to(source, tmp_path / "a.bin", "nanogpt", overwrite=True)
    assert np.fromfile(tmp_path / "a.bin", "<u2").tolist() == [token for document in documents for token in document]
    convert_from(
        tmp_path / "a.bin", tmp_path / "b.packed", "nanogpt", vocab_size=300, end_of_document_id=0, overwrite=True
    )
    assert read(tmp_path / "b.packed") == documents


def test_nanogpt_without_an_end_is_one_document_and_a_rest_is_kept(tmp_path: Path) -> None:
    np.array([5, 0, 6, 7], "<u2").tofile(tmp_path / "a.bin")
    convert_from(tmp_path / "a.bin", tmp_path / "one", "nanogpt", vocab_size=300)
    assert read(tmp_path / "one") == [[5, 0, 6, 7]]
    convert_from(tmp_path / "a.bin", tmp_path / "two", "nanogpt", vocab_size=300, end_of_document_id=0)
    assert read(tmp_path / "two") == [[5, 0], [6, 7]]
    with pytest.raises(DataError, match=r"token id \(7\) of document 0 must be at least 0 and below vocab_size \(7\)"):
        convert_from(tmp_path / "a.bin", tmp_path / "small", "nanogpt", vocab_size=7)
    with pytest.raises(ConfigError, match=r"vocab_size \(None\) must be given for a nanoGPT .bin"):
        convert_from(tmp_path / "a.bin", tmp_path / "none", "nanogpt")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"size of .*odd.bin \(3 bytes\) must be whole tokens of 2 bytes"):
        convert_from(tmp_path / "odd.bin", tmp_path / "odd", "nanogpt", vocab_size=7)
    with pytest.raises(ConfigError, match=r"nothing.bin cannot be read: No such file"):
        convert_from(tmp_path / "nothing.bin", tmp_path / "odd", "nanogpt", vocab_size=7)
    big = write(tmp_path / "big", [[70_000]], vocab_size=70_001)
    with pytest.raises(DataError, match=r"largest id of .*big \(70000\) must be below 65536"):
        convert_to(big, tmp_path / "big.bin", "nanogpt")


def pbin(path: Path, documents: list[list[int]], pairs: object = None, width: int = 2, head: Any = None) -> Path:
    """A .pbin byte by byte."""
    data = np.array([token for document in documents for token in document], f"<u{width}").tobytes()
    if pairs is None:
        ends = np.cumsum([0, *map(len, documents)]).tolist()
        pairs = [(width * a, width * (b - a)) for a, b in itertools.pairwise(ends)]
    path.write_bytes(struct.pack("<QI", *(head or (len(data), width))) + data + pickle.dumps(pairs))
    return path


def test_modalities_bytes_are_the_ones_its_format_asks_for(tmp_path: Path) -> None:
    documents = [[1, 2, 0], [3, 0]]
    convert_to(write(tmp_path / "a.packed", documents), tmp_path / "a.pbin", "modalities")
    raw = (tmp_path / "a.pbin").read_bytes()
    assert raw[:22] == struct.pack("<QI5H", 10, 2, 1, 2, 0, 3, 0)
    assert pickle.loads(raw[22:]) == [(0, 6), (6, 4)]
    convert_from(pbin(tmp_path / "b.pbin", documents), tmp_path / "b.packed", "modalities")
    assert read(tmp_path / "b.packed") == documents
    assert PackedFile(tmp_path / "b.packed").vocab_size == 4  # nothing says more than the largest id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": (0, 2)}, r"bytes of data of .* \(0\) must be above 0: packing was never finished"),
        ({"head": (6, 3)}, r"bytes per token of .* \(3\) must be 1, 2 or 4"),
        ({"head": (999, 2)}, r"bytes of data of .* \(999\) must be whole tokens of 2 bytes and leave room"),
        ({"head": (1000, 2)}, r"bytes of data of .* \(1000\) must be whole tokens .* the file is truncated"),
        ({"pairs": [(0, 6)]}, r"documents in the index of .* \(1 with 6 bytes together\) must cover its 10 bytes"),
        ({"pairs": [(0, 7), (7, 3)]}, r"length of document 0 of .* \(7 bytes\) must be whole tokens of 2 bytes"),
        ({"pairs": [(0, 6), (-6, 4)]}, r"offset of document 1 of .* \(-6\) must be 6, where document 0 ends; files"),
        ({"pairs": {"a": 1}}, r"index of .* must be a pickled list of pairs of integers; its byte"),
    ],
)
def test_a_damaged_pbin_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = pbin(tmp_path / "a.pbin", [[1, 2, 0], [3, 0]], **settings)
    with pytest.raises(DataError, match=message):
        convert_from(path, tmp_path / "a.packed", "modalities")
    assert not (tmp_path / "a.packed").exists()


def test_a_pbin_of_modalities_own_merge_is_read_by_its_lengths(tmp_path: Path) -> None:
    documents = [[1, 2, 0], [3, 0]]
    path = pbin(tmp_path / "a.pbin", documents, [(0, 6), (6 - 12, 4)])
    convert_from(path, tmp_path / "a.packed", "modalities", trust_lengths=True)
    assert read(tmp_path / "a.packed") == documents


def test_a_hostile_pbin_runs_nothing(tmp_path: Path) -> None:
    from tests.data.foreign.test_restricted_pickle import Runs

    canary = tmp_path / "canary"
    path = pbin(tmp_path / "a.pbin", [[1, 0]], [(0, Runs(Path.touch, canary))])
    with pytest.raises(DataError, match="nothing of it was run"):
        convert_from(path, tmp_path / "a.packed", "modalities")
    assert not canary.exists()
    (tmp_path / "a.idx").write_bytes(pickle.dumps(Runs(Path.touch, canary)))
    with pytest.raises(DataError, match="nothing of it was run"):
        read_modalities_index(tmp_path / "a.idx")
    assert not canary.exists()


def test_megatron_bytes_are_the_ones_its_format_asks_for(tmp_path: Path) -> None:
    convert_to(write(tmp_path / "a.packed", [[1, 2, 0], [3, 0]]), tmp_path / "a", "megatron")
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<5H", 1, 2, 0, 3, 0)
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i2q3q", 3, 2, 0, 6, 0, 1, 2)
    )
    assert (
        megatron_paths(tmp_path / "a.bin") == megatron_paths(tmp_path / "a") == (tmp_path / "a.bin", tmp_path / "a.idx")
    )
    with pytest.raises(ConfigError, match=r"a.idx exists; choose another path"):
        convert_to(tmp_path / "a.packed", tmp_path / "a", "megatron")


def megatron(path: Path, **changes: Any) -> Path:
    """Two documents of int32 ids: the first of two sequences, the second of one; and one byte per sequence more."""
    values = {"version": 1, "code": 4, "sizes": [2, 1, 2], "pointers": [0, 8, 12], "documents": [0, 2, 3]} | changes
    n, m = len(values["sizes"]), len(values["documents"])
    np.array([1, 2, 0, 3, 0], "<i4").tofile(path.with_suffix(".bin"))
    path.with_suffix(".idx").write_bytes(
        changes.get("magic", b"MMIDIDX\0\0")
        + struct.pack(f"<QBQQ{n}i{n}q{m}q", values["version"], values["code"], n, m,
                      *values["sizes"], *values["pointers"], *values["documents"])
        + changes.get("modes", bytes(n))
    )  # fmt: skip
    return path


def test_sequences_of_a_megatron_document_are_put_together(tmp_path: Path) -> None:
    convert_from(megatron(tmp_path / "a"), tmp_path / "a.packed", "megatron")
    assert read(tmp_path / "a.packed") == [[1, 2, 0], [3, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"something"}, r"first 9 bytes of .*a.idx \(b'something'\) must be b'MMIDIDX"),
        ({"version": 2}, r"version of .*a.idx \(2\) must be 1"),
        ({"code": 7}, r"type of the tokens of .*a.idx \(7\) must be one of"),
        ({"modes": b"12"}, r"size of .*a.idx \(96 bytes\) must be 94 bytes for 3 sequences and 3 entries"),
        ({"pointers": [0, 9, 12]}, r"sequence 1 of .*a.bin \(1 tokens at byte 9\) must begin at byte 8"),
        ({"sizes": [2, 1, 1]}, r"size of .*a.bin \(20 bytes\) must be the 16 bytes of the 3 sequences in a.idx"),
        ({"documents": [0, 2, 4]}, r"document index of .*a.idx \(0 to 4\) must rise from 0 to its 3 sequences"),
        ({"documents": [0, 3, 2, 3]}, r"document index of .*a.idx \(0 to 3\) must rise from 0 to its 3 sequences"),
    ],
)
def test_a_damaged_megatron_index_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert_from(megatron(tmp_path / "a", **changes), tmp_path / "a.packed", "megatron")


def save_to_disk(folder: Path, columns: dict[str, list[Any]], rows_per_file: int = 2) -> Path:
    """What HuggingFace's save_to_disk leaves: Arrow streams, and their names in state.json."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    table = pyarrow.table(columns)
    files = []
    for first in range(0, table.num_rows, rows_per_file):
        files.append({"filename": f"data-{first:05d}.arrow"})
        part = table.slice(first, rows_per_file)
        with pyarrow.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as writer:
            writer.write_table(part, max_chunksize=1)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    return folder


def test_huggingface_datasets_of_ids(tmp_path: Path) -> None:
    documents = [[1, 2, 0], [], [3, 0], [299], [4]]
    folder = save_to_disk(tmp_path / "hf", {"text": list("abcde"), "input_ids": documents, "more": documents[::-1]})
    header = convert_from(folder, tmp_path / "a.packed", "huggingface")
    assert read(tmp_path / "a.packed") == documents
    assert header.vocab_size == 300
    convert_from(folder, tmp_path / "b.packed", "huggingface", column="more", vocab_size=400)
    assert read(tmp_path / "b.packed") == documents[::-1]
    record = json.loads(provenance_beside(tmp_path / "b.packed").read_text())
    assert [Path(one["path"]).name for one in record["inputs"]] == [
        "data-00000.arrow",
        "data-00002.arrow",
        "data-00004.arrow",
    ]
    assert record["options"]["column"] == "more"


def test_other_huggingface_folders_are_refused(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "hf", {"text": ["a", "b", "c"], "ids": [[1], [2], None]})
    for column, kind, message in (
        (None, ConfigError, r"column \(input_ids or tokens\) must be one of .*, which has text, ids"),
        ("text", DataError, r"column text of .* \(string\) must hold lists of integers; export text"),
        ("ids", DataError, r"row 2 of column ids of .* must be a list of ids; it is null"),
    ):
        with pytest.raises(kind, match=message):
            convert_from(folder, tmp_path / "a.packed", "huggingface", column=column)
    (folder / "data-00000.arrow").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"data-00000.arrow must be an Arrow stream"):
        convert_from(folder, tmp_path / "a.packed", "huggingface", column="ids")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../elsewhere.arrow"}]}))
    with pytest.raises(DataError, match="must be names of files in the folder"):
        convert_from(folder, tmp_path / "a.packed", "huggingface")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ConfigError, match=r"\(2 splits\) must be one split; name one of them: train, test"):
        convert_from(folder, tmp_path / "a.packed", "huggingface")


def test_the_tokenizer_goes_into_the_header_and_beside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = [*tokenizer.encode("the quick"), tokenizer.end_of_document_id(), *tokenizer.encode("fox")]
    np.array(ids, "<u2").tofile(tmp_path / "a.bin")
    header = convert_from(tmp_path / "a.bin", tmp_path / "a.packed", "nanogpt", tokenizer=tokenizer.path)
    assert (header.num_documents, header.vocab_size) == (2, tokenizer.vocab_size)
    assert header.tokenizer_fingerprint == tokenizer.fingerprint
    assert (tmp_path / "a.tokenizer.json").is_file()


def test_options_of_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"column \(ids\) must go with --from huggingface"):
        convert_from(tmp_path / "a", tmp_path / "b", "megatron", column="ids")
    with pytest.raises(ConfigError, match=r"trust_lengths must go with --from modalities"):
        convert_from(tmp_path / "a", tmp_path / "b", "megatron", trust_lengths=True)
    with pytest.raises(ConfigError, match=r"format \(olmo\) must be modalities, megatron, nanogpt or huggingface"):
        convert_from(tmp_path / "a", tmp_path / "b", "olmo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"format \(olmo\) must be modalities, megatron, nanogpt; choose one"):
        convert_to(tmp_path / "a", tmp_path / "b", "olmo")  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["modalities", "megatron", "nanogpt"])
def test_a_loss_mask_is_not_lost_unnoticed(tmp_path: Path, format: Any) -> None:
    source = write(tmp_path / "a.packed", [[1, 3]], loss_mask=True)
    with pytest.raises(ConfigError) as caught:
        convert_to(source, tmp_path / "out", format)
    assert str(caught.value) == (
        f"{source} has a loss mask, which must not be lost unnoticed: {format} files hold none, and every token would "
        "be trained; add --drop_loss_mask if that is wanted"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]
    made = convert_to(source, tmp_path / "out", format, drop_loss_mask=True)
    assert json.loads(provenance_beside(made[0]).read_text())["options"] == {"to": format, "drop_loss_mask": True}
    convert_from(made[0], tmp_path / "b.packed", format, vocab_size=300)
    assert PackedFile(tmp_path / "b.packed").tokens.tolist() == [1, 3]


@pytest.mark.parametrize("format", ["modalities", "megatron", "nanogpt"])
def test_a_packed_file_is_no_foreign_one(tmp_path: Path, format: Any) -> None:
    source = write(tmp_path / "a.packed", [[1, 3]])
    with pytest.raises(ConfigError) as caught:
        convert_from(source, tmp_path / "b.packed", format, vocab_size=300)
    assert str(caught.value) == (
        f"{source} must be a file of another library ({format}); it is a packed file already: use it as it is, or "
        "convert it with --to"
    )


def test_a_folder_that_is_no_dataset_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match=r"none must be a folder that save_to_disk wrote; there is no such folder"):
        convert_from(tmp_path / "none", tmp_path / "a.packed", "huggingface")
    with pytest.raises(DataError, match=r"must be a folder that save_to_disk wrote; there is no state.json in it"):
        convert_from(tmp_path, tmp_path / "a.packed", "huggingface")


def test_text_of_a_dataset_is_packed_as_the_error_says(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """By to_parquet, which writes what pyarrow writes."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = save_to_disk(tmp_path / "hf", {"body": ["the fox", "the dog"]})
    advice = (
        r"export text with to_parquet\('text.parquet'\) of the dataset and pack that: modlib data pack "
        r"text.parquet OUT --field COLUMN --tokenizer"
    )
    for column in (None, "body"):
        with pytest.raises(ConfigError if column is None else DataError, match=advice):
            convert_from(folder, tmp_path / "a.packed", "huggingface", column=column)
    import pyarrow

    parquet.write_table(pyarrow.table({"body": ["the fox", "the dog"]}), tmp_path / "text.parquet")
    pack([tmp_path / "text.parquet"], tmp_path / "a.packed", tokenizer, field="body")
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in read(tmp_path / "a.packed")] == [
        "the fox",
        "the dog",
    ]


def test_what_datasets_itself_saves_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    documents = [[1, 2, 0], [], [3, 0], [299], [4]]
    made = datasets.Dataset.from_dict({"text": ["the fox"] * 5, "input_ids": documents})
    made.save_to_disk(str(tmp_path / "one"), num_shards=2)
    convert_from(tmp_path / "one", tmp_path / "one.packed", "huggingface")
    assert read(tmp_path / "one.packed") == documents
    made.select([4, 0]).save_to_disk(str(tmp_path / "chosen"))
    convert_from(tmp_path / "chosen", tmp_path / "chosen.packed", "huggingface")
    assert read(tmp_path / "chosen.packed") == [[4], [1, 2, 0]]
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ConfigError, match=r"\(1 splits\) must be one split; name one of them: train"):
        convert_from(tmp_path / "splits", tmp_path / "a.packed", "huggingface")
    convert_from(tmp_path / "splits" / "train", tmp_path / "train.packed", "huggingface")
    assert read(tmp_path / "train.packed") == documents
    made.to_parquet(str(tmp_path / "text.parquet"))
    pack([tmp_path / "text.parquet"], tmp_path / "text.packed", tokenizer)
    assert PackedFile(tmp_path / "text.packed").num_documents == 5


def test_files_of_modalities_go_round(shared_data: Path, tmp_path: Path) -> None:
    """Its own packed file comes back byte for byte; by way of other formats, with the same tokens and documents."""
    original = shared_data / "modalities" / "lorem_ipsum.pbin"
    convert_from(original, tmp_path / "a.packed", "modalities")
    convert_to(tmp_path / "a.packed", tmp_path / "a.pbin", "modalities")
    assert (tmp_path / "a.pbin").read_bytes() == original.read_bytes()
    packed = PackedFile(tmp_path / "a.packed")
    assert packed.num_documents > 1
    for format in ("megatron", "nanogpt"):
        made = convert_to(tmp_path / "a.packed", tmp_path / f"a.{format}.bin", format)  # type: ignore[arg-type]
        convert_from(made[0], tmp_path / f"{format}.packed", format, vocab_size=packed.vocab_size)  # type: ignore[arg-type]
        again = PackedFile(tmp_path / f"{format}.packed")
        assert np.array_equal(again.tokens, packed.tokens)
        if format == "megatron":
            assert np.array_equal(again.document_offsets, packed.document_offsets)


def test_an_index_of_modalities_finds_the_lines_of_its_file(shared_data: Path, tmp_path: Path) -> None:
    for end in ("jsonl", "idx"):
        shutil.copyfile(shared_data / "modalities" / f"lorem_ipsum.{end}", tmp_path / f"lorem_ipsum.{end}")
    source = tmp_path / "lorem_ipsum.jsonl"
    write_index(source, known=read_modalities_index(tmp_path / "lorem_ipsum.idx"))
    lines = LineIndex(source)
    expected = [line for line in source.read_bytes().splitlines() if line.strip()]
    assert len(lines) == len(expected)
    assert [json.loads(lines[number]) for number in range(len(lines))] == [json.loads(line) for line in expected]


def test_the_end_of_documents_is_chosen_as_pack_chooses_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Gemma's `</s>` (261) is an HTML tag, its `<eos>` 1; DeepSeek's special tokens have no well-known name."""
    source = tmp_path / "a.bin"
    np.array([70, 261, 71, 1, 72, 1], "<u2").tofile(source)
    gemma, out = small.gemma(tmp_path / "gemma"), tmp_path / "a.packed"
    header = convert_from(source, out, "nanogpt", tokenizer=gemma)
    assert (header.end_of_document_id, header.num_documents) == (1, 2)
    assert not caplog.messages
    header = convert_from(source, out, "nanogpt", tokenizer=gemma, end_of_document_id=261, overwrite=True)
    assert (header.end_of_document_id, header.num_documents) == (261, 2)
    assert caplog.messages[0].startswith("end-of-document token ('</s>') is an ordinary token of ")
    with pytest.raises(DataError, match=r"token id \(262\) must be one of .*, whose ids are below 262"):
        convert_from(source, out, "nanogpt", tokenizer=gemma, end_of_document_id=262, overwrite=True)
    np.array([70, 71, 1, 72, 1], "<u2").tofile(source)
    deepseek = small.deepseek(tmp_path / "deepseek")
    assert convert_from(source, out, "nanogpt", tokenizer=deepseek, overwrite=True).end_of_document_id == 1
    (deepseek / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError) as caught:
        convert_from(source, out, "nanogpt", tokenizer=deepseek, overwrite=True)
    assert str(caught.value).endswith("<|im_end|>; give the id of the one that ends documents, --end_of_document_id")
