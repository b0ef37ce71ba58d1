"""Tokenizers of either kind from their files, and beside the packed files that they made."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from modlib.data.corpora import corpus
from modlib.data.packed.file import PackedFile
from modlib.data.packed.outputs import tokenizer_beside
from modlib.data.text.tokenizer import TextTokenizer
from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer, sentencepiece_fingerprint
from modlib.runtime.errors import DataError
from modlib.runtime.json_files import JSONError, read_bytes

logger = logging.getLogger("modlib")


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
    """The file of the tokenizer with this fingerprint, beside a packed file; None where there is none.

    A file that is there and is damaged, or another tokenizer, is named in a warning where the right one is not found.
    """
    if not fingerprint:
        return None
    beside = tokenizer_beside(path)
    problems = []
    for candidate in (beside, path.with_name("tokenizer.json"), beside.with_suffix(".model")):
        try:
            found = _fingerprint(candidate)
        except JSONError as error:
            problems += [] if error.missing else [str(error)]
            continue
        except ValueError as error:
            problems.append(f"{candidate} cannot be read: {error}")
            continue
        if found == fingerprint:
            return candidate
        problems.append(f"{candidate} is another one ({found[:12]})")
    if problems:
        logger.warning(
            "tokenizer of %s (%s) is not used: %s; put the file back that was written with the data",
            path, fingerprint[:12], "; ".join(problems),
        )  # fmt: skip
    return None


def _fingerprint(file: Path) -> str:
    contents = read_bytes(file)
    if file.suffix == ".model":
        return sentencepiece_fingerprint(contents)
    try:
        return tokenizer_fingerprint(contents.decode())
    except JSONError as error:
        raise ValueError(error.problem) from error


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


def tokenizer_path(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The file of the tokenizer that made a packed file, if it is kept beside it; never another tokenizer.

    Looked for as `<file name>.tokenizer.json`, `tokenizer.json` and `<file name>.tokenizer.model` in the file's folder,
    and taken only if its fingerprint is the one in the packed file's header.

    Raises:
        ConfigError: Neither a corpus nor an existing file.
        DataError: The packed file is damaged.
    """
    path = corpus.resolve(name_or_path)
    if path is None:
        return None
    return find_beside(path, PackedFile(path).tokenizer_fingerprint)
