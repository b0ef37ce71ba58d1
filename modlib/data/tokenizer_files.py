"""Tokenizers of either kind from their files, and beside the packed files that they made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from modlib.data.packing import tokenizer_beside
from modlib.data.sentencepiece_tokenizer import PretrainedSPTokenizer, sentencepiece_fingerprint
from modlib.data.tokenizer import PretrainedHFTokenizer, TextTokenizer, tokenizer_fingerprint
from modlib.runtime.errors import DataError


def load_tokenizer(path: str | os.PathLike[str]) -> TextTokenizer:
    """The tokenizer of a folder, a tokenizer.json, a SentencePiece .model, or a corpus such as "stdlib:train".

    Raises:
        DataError: There is none.
    """
    folder = Path(path)
    models = sorted(folder.glob("*.model")) if folder.is_dir() and not (folder / "tokenizer.json").is_file() else []
    if folder.suffix == ".model" and not folder.is_dir():
        return PretrainedSPTokenizer(folder)
    return PretrainedSPTokenizer(models[0]) if len(models) == 1 else PretrainedHFTokenizer(path)


def find_beside(path: Path, fingerprint: str) -> Path | None:
    """The file of the tokenizer with this fingerprint, beside a packed file; None where there is none."""
    beside = tokenizer_beside(path)
    for candidate in (beside, path.with_name("tokenizer.json"), beside.with_suffix(".model")):
        try:
            if fingerprint and _fingerprint(candidate) == fingerprint:
                return candidate
        except (OSError, ValueError):
            continue
    return None


def _fingerprint(file: Path) -> str:
    contents = file.read_bytes()
    return sentencepiece_fingerprint(contents) if file.suffix == ".model" else tokenizer_fingerprint(contents.decode())


def put_beside(tokenizer: Path, path: str | os.PathLike[str]) -> None:
    """Copy the file of a tokenizer to where that of a packed file is looked for; its suffix stays.

    Raises:
        DataError: It cannot be written.
    """
    beside = tokenizer_beside(Path(path)).with_suffix(tokenizer.suffix)
    if beside.exists() and beside.samefile(tokenizer):
        return
    try:
        shutil.copyfile(tokenizer, beside)
    except OSError as error:
        raise DataError(f"{beside} cannot be written: {error.strerror}; free space or choose another folder") from error
