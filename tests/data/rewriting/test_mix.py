from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.rewriting.mix import mix
from modlib.runtime.errors import ConfigError, DataError
from tests.data.packed_lists import read, write

# Each document tells its file and its number: [file, number, number, ...]; one of no tokens is none of any file.
LENGTHS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7).filter(any), min_size=1, max_size=3)


def files_of(folder: Path, lengths: list[list[int]]) -> list[Path]:
    documents = [
        [[file, *[number] * (length - 1)] if length else [] for number, length in enumerate(own)]
        for file, own in enumerate(lengths)
    ]
    return [write(folder / f"{file}.packed", own) for file, own in enumerate(documents)]


@given(
    LENGTHS,
    st.data(),
    st.sampled_from(["tokens", "documents"]),
    st.integers(1, 2),
    st.integers(0, 3),
    st.sampled_from([1, 7, 1 << 22]),
)
@settings(max_examples=40)
def test_every_beginning_has_its_shares_and_every_epoch_every_document(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[list[int]],
    data: st.DataObject,
    unit: Literal["tokens", "documents"],
    epochs: int,
    seed: int,
    batch_tokens: int,
) -> None:
    monkeypatch.setattr(pieces, "BATCH_TOKENS", batch_tokens)
    weights = [float(data.draw(st.integers(1, 3))) for _ in lengths]
    files = files_of(tmp_path, lengths)
    out = tmp_path / "out.packed"
    header, mixed = mix(files, out, weights=weights, unit=unit, epochs=epochs, seed=seed, overwrite=True)
    documents = read(out)
    assert sum(one.documents for one in mixed) == header.num_documents == len(documents)
    assert min(one.epochs for one in mixed) >= epochs
    full = [document for document in documents if document]
    taken = [[document for document in full if document[0] == file] for file in range(len(files))]
    for file, (own, one) in enumerate(zip(taken, mixed, strict=True)):
        assert one.tokens == sum(map(len, own))
        in_file = sorted(document for document in read(files[file]) if document)
        rounds = [own[start : start + len(in_file)] for start in range(0, len(own), len(in_file))]
        for whole in rounds[:-1]:
            assert sorted(whole) == in_file
        assert all(document in in_file for document in rounds[-1])
        assert len(set(map(tuple, rounds[-1]))) == len(rounds[-1]) or in_file != sorted(set(map(tuple, in_file)))
        assert len(rounds) - 1 <= one.epochs <= len(rounds) or 0 in lengths[file]
    longest = [max(own) for own in lengths]
    counts = [0] * len(files)
    for document in full if unit == "tokens" or not any(0 in own for own in lengths) else []:
        behind = [count / weight for count, weight in zip(counts, weights, strict=True)]
        assert behind[document[0]] == pytest.approx(min(behind))  # the one that was furthest behind comes next
        counts[document[0]] += len(document) if unit == "tokens" else 1
        shares = [count / weight for count, weight in zip(counts, weights, strict=True)]
        steps = longest if unit == "tokens" else [1] * len(files)
        most = max(step / weight for step, weight in zip(steps, weights, strict=True))
        assert max(shares) - min(shares) <= most + 1e-9


@given(LENGTHS, st.integers(1, 80), st.integers(0, 2), st.sampled_from(["tokens", "documents"]))
@settings(max_examples=25)
def test_a_shorter_mixture_is_the_beginning_of_a_longer_one(
    tmp_path: Path, lengths: list[list[int]], num_tokens: int, seed: int, unit: Literal["tokens", "documents"]
) -> None:
    files = files_of(tmp_path, lengths)
    made: dict[str, Any] = {"weights": [1.0] * len(files), "seed": seed, "unit": unit, "overwrite": True}
    header, _ = mix(files, tmp_path / "short.packed", num_tokens=num_tokens, **made)
    mix(files, tmp_path / "long.packed", num_tokens=num_tokens + 50, **made)
    short = read(tmp_path / "short.packed")
    assert read(tmp_path / "long.packed")[: len(short)] == short
    assert num_tokens <= header.num_tokens < num_tokens + len(short[-1])


def test_memory_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = [[rng.integers(0, 60_000, n).tolist() for n in rng.integers(1, 900, 700)] for _ in range(2)]
    files = [write(tmp_path / f"{file}.packed", own, vocab_size=60_000) for file, own in enumerate(documents)]
    hashes = set()
    for memory_mib, batch_tokens in ((512, 1 << 22), (1, 1 << 22), (1, 5000)):
        monkeypatch.setattr(pieces, "BATCH_TOKENS", batch_tokens)
        header, mixed = mix(files, tmp_path / "out.packed", weights=[0.75, 0.25], memory_mib=memory_mib, overwrite=True)
        hashes.add(header.sha256)
        assert sorted(os.listdir(tmp_path)) == ["0.packed", "1.packed", "out.packed", "out.packed.provenance.json"]
    assert len(hashes) == 1
    assert mixed[1].epochs == 1.0
    assert mixed[0].tokens / header.num_tokens == pytest.approx(0.75, abs=0.002)
    assert mix(files, tmp_path / "o.packed", weights=[0.75, 0.25], seed=1)[0].sha256 not in hashes


@pytest.mark.parametrize("memory_mib", [512, 1])
def test_a_loss_mask_goes_with_its_tokens(tmp_path: Path, memory_mib: int) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / "masked.packed", tmp_path / "plain.packed"]
    for path, low in zip(paths, (0, 30_000), strict=True):
        with PackedFileWriter(path, vocab_size=60_000, loss_mask=low == 0) as writer:
            lengths = rng.integers(1, 900, 700)
            tokens = rng.integers(low, low + 30_000, lengths.sum())
            writer.write_documents(tokens, lengths, trained=tokens % 3 == 0 if low == 0 else None)
    mix(paths, tmp_path / "out.packed", weights=[1, 1], memory_mib=memory_mib)
    out = PackedFile(tmp_path / "out.packed")
    assert out.has_loss_mask
    ids = np.asarray(out.tokens)
    assert 0.4 < (ids < 30_000).mean() < 0.6
    assert np.array_equal(out.trained(0, out.num_tokens), (ids % 3 == 0) | (ids >= 30_000))


def test_what_is_said_about_it(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", [[1, 2], [3]], tokenizer_fingerprint="f" * 64), tmp_path / "b"]
    write(files[1], [[4, 5, 6]], tokenizer_fingerprint="f" * 64)
    seen: list[tuple[int, int]] = []
    header, mixed = mix(
        files, tmp_path / "out", weights=[2, 1], unit="documents", epochs=2, progress=lambda *now: seen.append(now)
    )
    found = [(one.share, one.documents, one.tokens, one.epochs) for one in mixed]
    assert found == [(2 / 3, 4, 6, 2.0), (1 / 3, 2, 6, 2.0)]
    assert header.num_bytes_of_text == 12  # whole files were taken
    assert header.tokenizer_fingerprint == "f" * 64
    assert seen[-1] == (12, 12)
    told = json.loads((tmp_path / "out.provenance.json").read_text())
    assert told["options"] == {"weights": [2, 1], "unit": "documents", "num_tokens": None, "epochs": 2, "seed": 0}
    assert [one["epochs"] for one in told["inputs"]] == [2.0, 2.0]
    assert [one["sha256"] for one in told["inputs"]] == [PackedFile(path).sha256 for path in files]
    part, mixed = mix(files, tmp_path / "part", weights=[2, 1], num_tokens=4)
    assert part.num_bytes_of_text == 0
    assert sum(one.tokens for one in mixed) == part.num_tokens


def test_files_that_do_not_fit_and_wrong_numbers_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [[1]]), write(tmp_path / "b", [[1]], tokenizer_fingerprint="f" * 64)
    with pytest.raises(DataError, match=r"tokenizer of .*/b \(ffffffffffffffff\) must equal the one of .*/a \(not "):
        mix([a, b], tmp_path / "out", weights=[1, 1])
    with pytest.raises(DataError, match=r"tokens of .*/empty \(0\) must be at least 1; leave the file out of the "):
        mix([a, write(tmp_path / "empty", [])], tmp_path / "out", weights=[1, 1])
    with pytest.raises(ConfigError, match=r"/a exists; choose another path, remove it, or pass --overwrite"):
        mix([a], a, weights=[1])
    with pytest.raises(ConfigError) as caught:
        mix([a], tmp_path / "out", weights=[1, -1], num_tokens=0, epochs=1, seed=-1, unit="lines")  # type: ignore[arg-type]
    assert caught.value.problems == [
        "weights (2) must be as many as files (1); give one each",
        "weights ([1, -1]) must all be above 0; leave out a file that is not wanted",
        "unit (lines) must be tokens or documents; choose one of them",
        "num_tokens (0) and epochs (1) must not go together; leave one out",
        "num_tokens (0) must be at least 1; set it to 1 or more",
        "seed (-1) must be at least 0; choose another seed",
    ]
    with pytest.raises(ConfigError, match=r"inputs \(0 files\) must be at least one packed file; name the files"):
        mix([], tmp_path / "out", weights=[])
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "empty"]
