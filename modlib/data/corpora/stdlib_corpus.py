"""A corpus built from the sources of Python's standard library."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modlib.runtime.errors import DataError
from modlib.runtime.json_files import JSONError, read_json

RECIPE = 1
"""Raise when the same sources would give other tokens; part of every key."""
VOCAB_SIZE = 4096
END_OF_DOCUMENT = "<|endoftext|>"
VALIDATION_SHARE = 0.05
SPLITS = ("train", "validation")

# Left out: what distributions leave out or install apart (so the corpus is there on every installation), what is not
# part of the library, and tables that a program wrote (a model would spend itself on them).
_LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip"),
    *("encodings", "pydoc_data"),
}


@dataclass(frozen=True)
class SourceFile:
    """One file, by its path relative to the library, with what tells whether it changed."""

    path: str
    num_bytes: int
    mtime_ns: int

    @property
    def split(self) -> str:
        """ "train" or "validation": a pure function of the path."""
        share = int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:8], "big") / 2**64
        return "validation" if share < VALIDATION_SHARE else "train"


@dataclass(frozen=True)
class Sources:
    """The text of the corpus.

    Args:
        documents: (file, text), ordered by path.
        skipped: Path -> why it is not in the corpus.
    """

    documents: Sequence[tuple[SourceFile, str]]
    skipped: dict[str, str]

    @property
    def content_hash(self) -> str:
        """Changes when a path or a text changes; the same for the same Python anywhere."""
        digest = hashlib.sha256(f"stdlib corpus, recipe {RECIPE}\n".encode())
        for file, text in self.documents:
            digest.update(f"{file.path}\0{len(text)}\0{text}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SplitSummary:
    """What one split of the corpus holds."""

    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class CorpusSummary:
    """What was made, from what, and how long it took; kept as corpus.json beside the files."""

    corpus: str
    source: str
    recipe: int
    content_hash: str
    tokenizer_fingerprint: str
    vocab_size: int
    splits: dict[str, SplitSummary]
    skipped: dict[str, str]
    seconds: float

    @classmethod
    def read(cls, path: Path) -> CorpusSummary:
        """Read a corpus.json.

        Raises:
            JSONError: It is not one.
        """
        content = read_json(path, dict[str, Any])
        try:
            splits = {name: SplitSummary(**split) for name, split in content["splits"].items()}
            return cls(**(content | {"splits": splits}))
        except (KeyError, TypeError, AttributeError) as error:
            raise JSONError(str(path), f"must have what a corpus.json has: {error}") from error


def library_root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def list_sources(root: Path) -> list[SourceFile]:
    """The .py files of the library, ordered by path; reads no file.

    Raises:
        DataError: There are none, as in a Python whose library is a zip file.
    """
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                full = os.path.join(folder, name)
                status = os.stat(full)
                relative = os.path.relpath(full, root).replace(os.sep, "/")
                found.append(SourceFile(relative, status.st_size, status.st_mtime_ns))
    if not found:
        raise DataError(f"standard library {root} must hold .py files; this Python has none: set DATA to a packed file")
    return sorted(found, key=lambda file: file.path)


def listing_key(files: Sequence[SourceFile]) -> str:
    """Changes when a file is added, removed, resized or touched: cheap to compute, no file is read."""
    listing = "".join(f"{file.path}\0{file.num_bytes}\0{file.mtime_ns}\n" for file in files)
    return hashlib.sha256(f"{RECIPE}\n{sys.version}\n{listing}".encode()).hexdigest()


def read_sources(root: Path, files: Sequence[SourceFile]) -> Sources:
    """Read the files; one that is empty or cannot be decoded is left out and recorded."""
    documents: list[tuple[SourceFile, str]] = []
    skipped: dict[str, str] = {}
    for file in files:
        try:
            text = _decode((root / file.path).read_bytes())
        except (OSError, SyntaxError, UnicodeDecodeError, LookupError) as error:
            skipped[file.path] = f"cannot be read: {error}"
            continue
        if text.strip():
            documents.append((file, text))
        else:
            skipped[file.path] = "empty"
    return Sources(documents, skipped)


def _decode(raw: bytes) -> str:
    """Python source as text, by its coding line (PEP 263), with line ends as \\n."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def build(folder: Path, sources: Sources, progress: Callable[[str], None]) -> CorpusSummary:
    """Train the tokenizer on the training split, pack both splits, and describe them, in an empty folder.

    Args:
        folder: Where to write tokenizer.json, train.packed, validation.packed and corpus.json.
        sources: The text.
        progress: Called with one line per stage.
    """
    from modlib.data.corpora.packing import pack_documents
    from modlib.data.text.tokenizer import train_byte_level_bpe

    started = time.perf_counter()
    texts = {split: [text for file, text in sources.documents if file.split == split] for split in SPLITS}
    for split in SPLITS:
        if not texts[split]:
            raise DataError(f"standard library must give at least one {split} document; set DATA to a packed file")
    megabytes = sum(map(len, texts["train"])) / 1e6
    progress(f"training a {VOCAB_SIZE}-token byte-level BPE on {megabytes:.1f} MB of text")
    tokenizer = train_byte_level_bpe(
        texts["train"], folder / "tokenizer.json", vocab_size=VOCAB_SIZE, end_of_document=END_OF_DOCUMENT
    )
    splits = {}
    for split in SPLITS:
        progress(f"packing {len(texts[split])} {split} documents")
        header = pack_documents(
            texts[split],
            folder / f"{split}.packed",
            tokenizer,
            end_of_document=END_OF_DOCUMENT,
            info={"corpus": f"stdlib:{split}", "source": _source()},
        )
        splits[split] = SplitSummary(header.num_documents, header.num_tokens, header.num_bytes_of_text)
    summary = CorpusSummary(
        corpus="stdlib",
        source=_source(),
        recipe=RECIPE,
        content_hash=sources.content_hash,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        splits=splits,
        skipped=sources.skipped,
        seconds=round(time.perf_counter() - started, 2),
    )
    (folder / "corpus.json").write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    return summary


def _source() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"standard library of {sys.implementation.name} {version}"
