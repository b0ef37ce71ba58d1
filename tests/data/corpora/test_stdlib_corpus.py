from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from modlib.data.corpora import stdlib_corpus
from modlib.data.corpora.stdlib_corpus import (
    CorpusSummary,
    SourceFile,
    build,
    list_sources,
    listing_key,
    read_sources,
)
from modlib.data.packed.file import PackedFile
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import DataError


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_listing_is_ordered_and_leaves_out_what_not_every_installation_has(tmp_path: Path) -> None:
    write(
        tmp_path,
        dict.fromkeys(("b.py", "a/z.py", "a/__init__.py", "a/notes.txt"), b"x = 1\n")
        | {
            f"{folder}/m.py": b"x = 1\n"
            for folder in (
                "test",
                "a/tests",
                "site-packages/p",
                "idlelib",
                "encodings",
                "config-3.11-x86",
                "__pycache__",
            )
        }
        | {"_sysconfigdata__linux.py": b"x = 1\n"},
    )
    assert [file.path for file in list_sources(tmp_path)] == ["a/__init__.py", "a/z.py", "b.py"]


def test_key_changes_with_the_files_not_with_their_order(tmp_path: Path) -> None:
    files = list_sources(write(tmp_path, {"a.py": b"1", "b.py": b"2"}))
    key = listing_key(files)
    assert listing_key(list_sources(tmp_path)) == key
    write(tmp_path, {"b.py": b"22"})
    assert listing_key(list_sources(tmp_path)) != key


def test_a_library_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"standard library .* must hold .py files; this Python has none: set DATA"):
        list_sources(tmp_path)


def test_documents_are_decoded_by_their_coding_line_and_none_is_lost_silently(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "bom.py": b"\xef\xbb\xbfx = 1\r\n",
            "latin.py": "# -*- coding: latin-1 -*-\nname = 'caf\xe9'\n".encode("latin-1"),
            "utf.py": "name = 'café'\n".encode(),
            "bad.py": b"name = '\xff'\n",
            "unknown.py": b"# coding: klingon\n",
            "empty.py": b" \n",
        },
    )
    sources = read_sources(tmp_path, list_sources(tmp_path))
    assert {file.path: text for file, text in sources.documents} == {
        "bom.py": "x = 1\n",
        "latin.py": "# -*- coding: latin-1 -*-\nname = 'café'\n",
        "utf.py": "name = 'café'\n",
    }
    assert sources.skipped["empty.py"] == "empty"
    assert "cannot be read" in sources.skipped["bad.py"]
    assert "klingon" in sources.skipped["unknown.py"]
    assert len(sources.documents) + len(sources.skipped) == 6


def test_content_hash_is_of_paths_and_text(tmp_path: Path) -> None:
    def content_hash(name: str, files: dict[str, bytes]) -> str:
        root = write(tmp_path / name, files)
        return read_sources(root, list_sources(root)).content_hash

    first = content_hash("1", {"a.py": b"x\n", "b.py": b"y\n"})
    assert content_hash("2", {"a.py": b"x\r\n", "b.py": b"y\n"}) == first
    assert content_hash("3", {"a.py": b"x\n", "c.py": b"y\n"}) != first
    assert content_hash("4", {"a.py": b"x\n", "b.py": b"z\n"}) != first


def test_split_depends_on_the_path_alone_and_takes_its_share() -> None:
    splits = Counter(SourceFile(f"package/module_{i}.py", i, i).split for i in range(4000))
    assert 0.03 < splits["validation"] / 4000 < 0.07
    assert SourceFile("ast.py", 1, 2).split == SourceFile("ast.py", 3, 4).split


def test_the_running_library_is_a_corpus() -> None:
    root = stdlib_corpus.library_root()
    files = list_sources(root)
    paths = {file.path for file in files}
    assert {"abc.py", "asyncio/base_events.py", "json/decoder.py"} <= paths
    assert not any(path.startswith(("test/", "site-packages/")) for path in paths)
    sources = read_sources(root, files)
    num_bytes = sum(len(text.encode()) for _, text in sources.documents)
    assert num_bytes > 5_000_000
    held_out = sum(len(text.encode()) for file, text in sources.documents if file.split == "validation")
    assert 0.01 < held_out / num_bytes < 0.15
    assert set(sources.skipped.values()) <= {"empty"}


def test_build_describes_what_it_made(tmp_path: Path) -> None:
    root = write(tmp_path / "lib", {f"m{i}.py": f"def function_{i}():\n    return {i}\n".encode() for i in range(60)})
    sources = read_sources(root, list_sources(root))
    folder = tmp_path / "out"
    folder.mkdir()
    lines: list[str] = []
    summary = build(folder, sources, lines.append)
    assert CorpusSummary.read(folder / "corpus.json") == summary
    assert lines[0].startswith("training a 4096-token byte-level BPE on 0.0 MB of text")
    assert lines[2].startswith("packing ")
    tokenizer = Tokenizer(folder / "tokenizer.json")
    assert summary.tokenizer_fingerprint == tokenizer.fingerprint
    for split in stdlib_corpus.SPLITS:
        packed = PackedFile(folder / f"{split}.packed")
        texts = [text for file, text in sources.documents if file.split == split]
        assert [tokenizer.decode(packed.document(i)[:-1]) for i in range(packed.num_documents)] == texts
        assert summary.splits[split].tokens == packed.num_tokens
        assert summary.splits[split].bytes == sum(len(text.encode()) for text in texts)
        assert packed.header.info["corpus"] == f"stdlib:{split}"


def test_too_small_a_library_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.py": b"x = 1\n"})
    with pytest.raises(DataError, match="must give at least one validation document"):
        build(tmp_path, read_sources(root, list_sources(root)), lambda line: None)
