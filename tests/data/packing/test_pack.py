from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed.file import PackedFile
from modlib.data.packing import engine as pack_engine
from modlib.data.packing.pack import PackProgress, pack
from modlib.data.text import sources
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer, tokenizer_path
from modlib.runtime.errors import ConfigError, DataError
from tests.data.conftest import SENTENCES

SOME_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)


def texts_of(path: Path, tokenizer: Tokenizer) -> list[str]:
    """What is in a packed file, each document checked to end as it must."""
    packed = PackedFile(path)
    packed.verify()
    documents = [packed.document(number).tolist() for number in range(packed.num_documents)]
    assert all(document[-1] == tokenizer.end_of_document_id() for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def write_jsonl(path: Path, texts: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in texts).encode())
    return path


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(SENTENCES, k=rng.randint(1, 6))) for _ in range(count)]


@given(
    st.lists(st.lists(SOME_TEXT, max_size=8), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.integers(1, 300),
    st.sampled_from(["fast", "tokenizer"]),
    st.booleans(),
)
@settings(max_examples=60)
def test_every_document_comes_back_in_order(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[list[str]],
    end: str,
    block_bytes: int,
    engine: Any,
    splits: bool,
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    inputs = [write_jsonl(tmp_path / f"{number}.jsonl", texts, end) for number, texts in enumerate(files)]
    texts = [text for file in files for text in file]
    if not texts:
        with pytest.raises(DataError, match=r"inputs \(\d files\) must hold a document; they have none"):
            pack(inputs, tmp_path / "a.packed", tokenizer, engine=engine, overwrite=True)
        return
    split = {"one": 0.5, "two": 0.5} if splits else None
    summary = pack(inputs, tmp_path / "a.packed", tokenizer, engine=engine, overwrite=True, split=split)
    parts = [texts_of(path, tokenizer) for path in summary.outputs]
    if splits:
        assert not {*parts[0]} & {*parts[1]}  # equal texts stay together
        assert parts == [[text for text in texts if text in part] for part in parts]
        parts = [[text for text in texts if text in parts[0] or text in parts[1]]]
    assert parts == [texts]
    assert sum(header.num_bytes_of_text for header in summary.outputs.values()) == sum(len(t.encode()) for t in texts)
    assert summary.num_skipped == 0


def test_inputs_of_every_kind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = sentences(12)
    plain = write_jsonl(tmp_path / "a.jsonl", texts[:2])
    lines = [json.dumps({"doc": [{"body": text}]}).encode() + b"\n" for text in texts]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[2:4])))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(b"".join(lines[4:6])))
    (tmp_path / "d.txt").write_text("\ufeff" + texts[6], encoding="utf-8")
    (tmp_path / "e.txt").write_text(texts[7], encoding="utf-8")
    rows = [{"doc": [{"body": text}]} for text in texts[8:]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    plain.write_bytes(b"".join(lines[:2]))
    pack([tmp_path], tmp_path / "out" / "all.packed", tokenizer, field="doc[0].body")
    assert texts_of(tmp_path / "out" / "all.packed", tokenizer) == texts


BAD = {
    3: (b"{not json", "must be JSON: expecting property name enclosed in double quotes (line 1, column 2)"),
    7: (b'{"text": ""}', "has an empty text at 'text'"),
    11: (b'{"body": "x"}', "has no 'text' (there is body)"),
    13: (b'{"text": 5}', "has no text at 'text' but int"),
    17: (b'{"text": "caf\xe9"}', "must be UTF-8; byte 13 is not"),
}


def twenty(path: Path, bad: dict[int, tuple[bytes, str]]) -> list[str]:
    """Twenty rows, some of them bad; returns the good texts."""
    texts = [f"document {number}" for number in range(1, 21)]
    rows = [json.dumps({"text": text}).encode() for text in texts]
    for number, (row, _) in bad.items():
        rows[number - 1] = row
    path.write_bytes(b"\n".join(rows))
    return [text for number, text in enumerate(texts, 1) if number not in bad]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_rows_are_left_out_alone(tokenizer: Tokenizer, tmp_path: Path, workers: int) -> None:
    good = twenty(tmp_path / "a.jsonl", BAD)
    summary = pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", tokenizer, on_error="skip", workers=workers)
    assert texts_of(tmp_path / "a.packed", tokenizer) == good
    assert summary.num_skipped == 5
    assert summary.skipped == tmp_path / "a.packed.skipped.jsonl"
    assert [json.loads(line) for line in summary.skipped.read_text().splitlines()] == [
        {"file": str(tmp_path / "a.jsonl"), "line": number, "reason": reason} for number, (_, reason) in BAD.items()
    ]
    told = json.loads((tmp_path / "a.pack.json").read_text())
    assert told["num_skipped"] == told["inputs"][0]["bad"] == 5
    twenty(tmp_path / "a.jsonl", {})
    pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", tokenizer, on_error="skip", overwrite=True)
    assert not summary.skipped.exists()  # a list that is no longer true is not left


@pytest.mark.parametrize("number", BAD)
def test_a_bad_row_is_named(tokenizer: Tokenizer, tmp_path: Path, number: int) -> None:
    twenty(tmp_path / "a.jsonl", {one: BAD[one] for one in BAD if one >= number})
    with pytest.raises(DataError) as caught:
        pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", tokenizer)
    reason = BAD[number][1]
    remedy = "correct it, or leave such rows out with --on_error skip"
    assert str(caught.value) == f"{tmp_path}/a.jsonl:{number} {reason}; {remedy}"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_bad_text_file_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.txt is empty; correct it"):
        pack([tmp_path / "a.txt"], tmp_path / "a.packed", tokenizer)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.txt is not UTF-8 \(byte 3\); correct it"):
        pack([tmp_path / "a.txt"], tmp_path / "a.packed", tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("split", [pytest.param(None, marks=pytest.mark.slow), {"train": 0.8, "validation": 0.2}])
def test_any_number_of_workers_gives_the_same_bytes(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: dict[str, float] | None
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2000)
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl", sentences(100, number))
    found = []
    seen: list[PackProgress] = []
    for workers in (1, 2, 3):
        summary = pack(
            [f"{tmp_path}/*.jsonl"],
            tmp_path / f"w{workers}" / "a.packed",
            tokenizer,
            workers=workers,
            engine="fast" if workers > 1 else "tokenizer",
            split=split,
            progress=seen.append,
        )
        found.append([path.read_bytes() for path in summary.outputs])
        assert seen[-1].bytes_read == seen[-1].bytes_total
        assert seen[-1].documents == 300
    assert found[0] == found[1] == found[2]
    if split is not None:
        shares = [header.num_documents / 300 for header in summary.outputs.values()]
        assert shares[1] == pytest.approx(0.2, abs=0.1)
        assert [path.name for path in summary.outputs] == ["a.train.packed", "a.validation.packed"]


def test_what_lies_beside_the_output(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "two two"])
    pack([tmp_path / "a.jsonl"], tmp_path / "out" / "a.packed", tokenizer.path)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.pack.json", "a.packed", "a.tokenizer.json"]
    assert tokenizer_path(tmp_path / "out" / "a.packed") == tmp_path / "out" / "a.tokenizer.json"
    told = json.loads((tmp_path / "out" / "a.pack.json").read_text())
    header = PackedFile(tmp_path / "out" / "a.packed").header
    assert told["settings"]["field"] == "text"
    assert told["inputs"][0]["path"] == str(tmp_path / "a.jsonl")
    assert told["inputs"][0]["documents"] == 2
    assert told["outputs"] == {
        "a.packed": {"documents": 2, "tokens": header.num_tokens, "bytes_of_text": 10, "sha256": header.sha256}
    }
    assert {"modlib", "python", "tokenizers", "tiktoken"} <= set(told["versions"])
    assert told["decided_by"]["tokenizer"][0] == header.tokenizer_fingerprint == tokenizer.fingerprint


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    texts = ["the quick brown fox", "lazy dog"]
    write_jsonl(tmp_path / "a.jsonl", texts)
    written = []
    for workers in (1, 2):
        summary = pack([tmp_path / "a.jsonl"], tmp_path / f"{workers}.packed", tmp_path / "sp.model", workers=workers)
        written.append((tmp_path / f"{workers}.packed").read_bytes())
        assert summary.engine.startswith("sentencepiece: the fast engine knows byte-level BPE alone")
    assert written[0] == written[1]
    assert (tmp_path / "1.tokenizer.model").read_bytes() == (tmp_path / "sp.model").read_bytes()
    model = load_tokenizer(tmp_path / "1.tokenizer.model")
    packed = PackedFile(tmp_path / "1.packed")
    assert [model.decode(packed.document(n)[:-1]) for n in range(2)] == texts


def test_the_engine_is_told_with_its_reason(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", sentences(50))
    content = json.loads(tokenizer.to_json())
    content["normalizer"] = {"type": "NFC"}
    (tmp_path / "other.json").write_text(json.dumps(content))

    def engine(wanted: Any, of: Any = tokenizer) -> str:
        return pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", of, engine=wanted, overwrite=True).engine

    assert engine("auto") == "tokenizers: it is little text"
    assert engine("tokenizer") == "tokenizers, as asked for"
    assert engine("fast").startswith("tiktoken, with the same ids")
    monkeypatch.setattr(pack_engine, "SMALL_BYTES", 0)
    assert engine("auto").startswith("tiktoken, with the same ids")
    other = f"{tmp_path}/other.json is not run by the fast engine, because it normalizes text first (NFC)"
    assert engine("auto", tmp_path / "other.json") == f"tokenizers: {other}"
    with pytest.raises(ConfigError) as caught:
        engine("fast", tmp_path / "other.json")
    assert str(caught.value) == f"engine ('fast') must be able to run the tokenizer; {other}"
    monkeypatch.setitem(sys.modules, "tiktoken._tiktoken", None)
    assert "tiktoken is not installed" in engine("auto")


def test_an_engine_that_differs_on_the_corpus_is_not_taken(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", sentences(5))
    monkeypatch.setattr(pack_engine, "SMALL_BYTES", 0)
    made = pack_engine.FastBPE.__init__

    def damaged(self: Any, of: Tokenizer, **settings: bool) -> None:
        made(self, of, **settings)
        self.ids = self.ids[::-1].copy()

    monkeypatch.setattr(pack_engine.FastBPE, "__init__", damaged)
    summary = pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", tokenizer)
    assert summary.engine.endswith(f"its ids differ at the beginning of {tmp_path}/a.jsonl")
    assert texts_of(tmp_path / "a.packed", tokenizer) == sentences(5)


def test_wrong_settings_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", ["x"]), tmp_path / "a.packed"
    with pytest.raises(ConfigError, match=r"split \(shares of 0.9 together\) must add up to 1; correct a share"):
        pack([source], out, tokenizer, split={"a": 0.5, "b": 0.4})
    with pytest.raises(ConfigError, match=r"split \('a/b' = 0.5\) must be a name and a share between 0 and 1"):
        pack([source], out, tokenizer, split={"a/b": 0.5, "b": 0.5})
    with pytest.raises(ConfigError, match=r"workers \(0\) must be at least 1; leave it out for one per core"):
        pack([source], out, tokenizer, workers=0)
    pack([source], out, tokenizer)
    with pytest.raises(ConfigError, match=r"a.packed exists; choose another path, remove it, or pass --overwrite"):
        pack([source], out, tokenizer)


def test_a_worker_that_dies_is_an_error(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 500)
    write_jsonl(tmp_path / "a.jsonl", sentences(200))
    own = psutil.Process()
    before = own.children()

    def workers() -> list[psutil.Process]:  # the children of this process may be other tests', too
        return [child for child in own.children() if child not in before]

    def kill_one(progress: PackProgress) -> None:
        for child in workers()[:1]:
            child.kill()

    with pytest.raises(
        DataError, match=r"packing process \d+ ended by itself \(exit code -9\); it may have been killed"
    ):
        pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", tokenizer, workers=2, progress=kill_one)
    assert os.listdir(tmp_path) == ["a.jsonl"]
    assert workers() == []


LEAVES_A_CHILD = """
import os, signal, time


def text(row):
    if "fatal" in row["text"]:
        child = os.fork()  # it has the connection, and lives on
        if not child:
            time.sleep(600)
            os._exit(0)
        with open(os.path.join(os.path.dirname(__file__), "child"), "w") as file:
            file.write(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    return row["text"]
"""


def test_a_worker_that_dies_while_its_own_child_lives_is_an_error(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 500)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "leaves_a_child.py").write_text(LEAVES_A_CHILD)
    write_jsonl(tmp_path / "a.jsonl", [*sentences(40), "fatal", *sentences(40)])
    settings: dict[str, Any] = {"field": "leaves_a_child:text", "workers": 2, "engine": "tokenizer"}
    try:
        with pytest.raises(DataError, match=r"packing process \d+ ended by itself \(exit code -9\)"):
            pack([tmp_path / "a.jsonl"], tmp_path / "a.packed", tokenizer, **settings)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


MEASURED = """
import resource, sys
from modlib.data.packing.pack import pack
from modlib.runtime.hardware import peak_memory_bytes
pack([sys.argv[1]], sys.argv[2], sys.argv[3], workers=2)
print(peak_memory_bytes() // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in sentences(20_000)).encode()
    peaks = []
    for megabytes in (20, 200):
        source = tmp_path / f"{megabytes}.jsonl"
        with open(source, "wb") as file:
            for _ in range(megabytes * 1_000_000 // len(lines)):
                file.write(lines)
        words = [str(source), str(tmp_path / f"{megabytes}.packed"), str(tokenizer.path)]
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        peaks.append([int(peak) / 1024 for peak in done.stdout.split()])
    for small, large in zip(*peaks, strict=True):  # MiB: of the parent, of the largest child
        assert large < small + 40, peaks
        assert large < 700, peaks
