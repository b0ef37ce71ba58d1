from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modlib.data.corpora import corpus, stdlib_corpus
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import HEADER_BYTES
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import tokenizer_path
from modlib.runtime.errors import EXIT_CONFIG, ConfigError, DataError
from tests import forked
from tests.conftest import ROOT
from tests.data.conftest import MakePacked


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of sixty small modules, and an empty cache."""
    root = tmp_path / "lib"
    root.mkdir()
    for number in range(60):
        (root / f"m{number}.py").write_text(f"def function_{number}(argument):\n    return argument + {number}\n" * 3)
    monkeypatch.setattr(stdlib_corpus, "library_root", lambda: root)
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    return root


def quiet(line: str) -> None:
    pass


def test_second_call_reads_no_source(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    path = corpus.prepare("stdlib:train", lines.append)
    assert lines[0].startswith("reading 60 source files of the standard library")
    assert lines[-1].startswith("corpus ready in ")
    PackedFile(path).verify()

    def refuse(*arguments: object) -> None:
        raise AssertionError("sources were read again")

    monkeypatch.setattr(stdlib_corpus, "read_sources", refuse)
    lines.clear()
    assert corpus.prepare("stdlib:train", lines.append) == path
    assert corpus.prepare("stdlib:validation", lines.append) == path.with_name("validation.packed")
    assert lines == []


def test_nothing_is_written_before_prepare(library: Path, tmp_path: Path) -> None:
    assert corpus.resolve("stdlib:train") is None
    assert not corpus.is_prepared("stdlib:validation")
    assert tokenizer_path("stdlib:train") is None
    assert corpus.describe("stdlib:train") is None
    assert not (tmp_path / "cache").exists()
    path = corpus.prepare("stdlib:train", quiet)
    assert corpus.resolve("stdlib:train") == path
    assert corpus.is_prepared("stdlib:validation")
    assert corpus.describe("stdlib:train").splits["train"].tokens == PackedFile(path).num_tokens  # type: ignore[union-attr]
    tokenizer = tokenizer_path("stdlib:validation")
    assert tokenizer == path.with_name("tokenizer.json")
    assert Tokenizer(tokenizer).fingerprint == PackedFile(path).tokenizer_fingerprint


def test_touched_sources_find_the_same_corpus_and_changed_ones_another(library: Path) -> None:
    path = corpus.prepare("stdlib:train", quiet)
    os.utime(library / "m1.py", (1, 1))
    lines: list[str] = []
    assert corpus.prepare("stdlib:train", lines.append) == path
    assert [line.split()[0] for line in lines] == ["reading"]
    (library / "m1.py").write_text("something = 'else'\n" * 5)
    assert corpus.prepare("stdlib:train", quiet) != path


def test_building_twice_gives_the_same_bytes(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = corpus.prepare("stdlib:train", quiet)
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "other"))
    second = corpus.prepare("stdlib:train", quiet)
    assert first != second
    for name in ("train.packed", "validation.packed", "tokenizer.json"):
        assert first.with_name(name).read_bytes() == second.with_name(name).read_bytes()


def test_damaged_cache_is_made_again(library: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = corpus.prepare("stdlib:train", quiet)
    good = path.read_bytes()
    for damage in (good[:-1], good[:HEADER_BYTES] + b"\xff\xff" + good[HEADER_BYTES + 2 :]):
        path.write_bytes(damage)
        with caplog.at_level(logging.WARNING, "modlib"):
            assert corpus.prepare("stdlib:train", quiet) == path
        assert path.read_bytes() == good
        assert "cached corpus is damaged and is made again" in caplog.text
    left = sorted(entry.name for entry in path.parent.parent.iterdir())
    assert len(left) == 3  # the corpus, the listing that leads to it, the lock


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"model": {}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "corpus.json"])
def test_a_damaged_or_missing_helper_file_is_said_and_made_again(
    library: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes | None
) -> None:
    path = corpus.prepare("stdlib:train", quiet).with_name(name)
    good = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert corpus.prepare("stdlib:train", quiet) == path.with_name("train.packed")
    if name == "tokenizer.json":
        assert path.read_bytes() == good
    assert corpus.describe("stdlib:train") is not None
    assert "cached corpus is damaged and is made again" in caplog.text or (name, content) == ("corpus.json", None)
    assert tokenizer_path("stdlib:train") == path.with_name("tokenizer.json")


def test_progress_is_logged_by_default(library: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "modlib"):
        corpus.prepare("stdlib:train")
    assert "packing" in caplog.text


def test_full_disk_leaves_no_half_corpus(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(stdlib_corpus, "build", full)
        with pytest.raises(
            DataError, match=r"corpus cannot be written to .*corpora: No space left on device; free space"
        ):
            corpus.prepare("stdlib:train", quiet)
    assert [entry.name for entry in (tmp_path / "cache" / "corpora").iterdir()] == ["stdlib.lock"]
    assert corpus.prepare("stdlib:train", quiet).is_file()


BUILD = """
import sys
from pathlib import Path
from modlib.data.corpora import corpus, stdlib_corpus
stdlib_corpus.library_root = lambda: Path(sys.argv[1])
lines = []
path = corpus.prepare("stdlib:train", lines.append)
print(path, sum(line.startswith("training") for line in lines))
"""


def test_processes_at_once_build_once(library: Path) -> None:
    processes = [
        forked.Popen(
            [sys.executable, "-c", BUILD, str(library)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    found = [out.split() for out, _ in answers]
    assert len({path for path, _ in found}) == 1
    assert sum(int(built) for _, built in found) == 1
    PackedFile(found[0][0]).verify()


def test_dataset_takes_a_corpus_by_name(library: Path) -> None:
    dataset = PackedDataset(path="stdlib:validation", seq_len=8)
    assert dataset.packed.path.name == "validation.packed"
    assert dataset.bytes_per_token > 1


def test_path_of_a_file_is_itself(make_packed: MakePacked) -> None:
    path = make_packed(100)
    assert corpus.prepare(str(path)) == corpus.resolve(path) == path
    assert corpus.is_prepared(path)
    assert tokenizer_path(path) is None
    assert corpus.describe(path) is None


def test_unknown_names_are_refused_with_the_nearest(make_packed: MakePacked, tmp_path: Path) -> None:
    make_packed(100, name="books.packed")
    cases = {
        "stdlib:trian": "did you mean 'stdlib:train'?",
        "stdlib": "did you mean 'stdlib:train'?",
        str(tmp_path / "book.packed"): f"did you mean '{tmp_path / 'books.packed'}'?",
        "/nowhere/at/all.bin": "there is no file /nowhere/at/all.bin",
    }
    for name, remedy in cases.items():
        with pytest.raises(ConfigError) as caught:
            corpus.prepare(name)
        assert str(caught.value) == (
            f"path ('{name}') must be a corpus (stdlib:train, stdlib:validation) or an existing packed file; {remedy}"
        )
        assert caught.value.exit_code == EXIT_CONFIG
    with pytest.raises(ConfigError, match=r"must be a packed file, not a folder; name a file in it: books.packed"):
        corpus.resolve(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"there is no .packed file in it"):
        corpus.resolve(tmp_path / "empty")


@pytest.mark.slow
def test_the_real_corpus_builds_fast_and_the_same_on_any_number_of_cores(tmp_path: Path) -> None:
    code = "from modlib.data.corpora import corpus; print(corpus.prepare('stdlib:train'))"
    contents = set()
    for threads in ("1", "2"):
        environment = os.environ | {"MODLIB_CACHE": str(tmp_path / threads), "RAYON_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        contents.add(PackedFile(done.stdout.strip()).sha256)
    assert len(contents) == 1
