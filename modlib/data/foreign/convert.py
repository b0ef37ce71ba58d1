"""From the token files of other libraries to packed files, and back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Literal, get_args

from modlib.data.foreign import foreign_tokens
from modlib.data.foreign.foreign_tokens import ForeignTokens
from modlib.data.foreign.huggingface_file import read_huggingface
from modlib.data.foreign.megatron_file import megatron_paths, read_megatron, write_megatron
from modlib.data.foreign.modalities_file import read_modalities, write_modalities
from modlib.data.foreign.nanogpt_file import read_nanogpt, write_nanogpt
from modlib.data.packed.header import MAGIC, PackedHeader
from modlib.data.packed.outputs import require_not_read
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.progress import Progress, no_progress
from modlib.data.rewriting import copying
from modlib.data.text.token_choice import warn_of_ordinary_token
from modlib.data.text.tokenizer import TextTokenizer
from modlib.data.tokenizers.from_files import load_tokenizer, put_beside
from modlib.runtime.errors import ConfigError

Readable = Literal["modalities", "megatron", "nanogpt", "huggingface"]
Writable = Literal["modalities", "megatron", "nanogpt"]
_WRITERS = {"modalities": write_modalities, "megatron": write_megatron, "nanogpt": write_nanogpt}


def convert_from(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: Readable,
    *,
    vocab_size: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    end_of_document_id: int | None = None,
    column: str | None = None,
    trust_lengths: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> PackedHeader:
    """Make a packed file of a foreign one; documents and their order stay.

    Args:
        source: A .pbin; the prefix, .bin or .idx of Megatron-LM; nanoGPT's .bin; a folder from `save_to_disk`.
        path: The file to make.
        format: What source is.
        vocab_size: Every id must be below it; None takes the tokenizer's, or else the largest id + 1.
        tokenizer: Made the ids; its fingerprint is written into the header and its file put beside the packed one.
        end_of_document_id: Ends each document; None takes the tokenizer's, if there is one. nanoGPT's ids are cut into
            documents at it.
        column: Of a HuggingFace dataset; None takes input_ids or tokens.
        trust_lengths: See `read_modalities`.
        overwrite: Whether an existing file is replaced.
        progress: Called with the tokens done, and all of them (0 where that is not known before).

    Raises:
        ConfigError: nanoGPT's ids without vocab_size or tokenizer, a tokenizer that has no end of documents to choose
            and no end_of_document_id, or the output is the source.
        DataError: The source is damaged or no such file, or an id is out of vocabulary.
    """
    reader = None if tokenizer is None else load_tokenizer(tokenizer)
    if reader is not None:
        end_of_document_id = _end_id(reader, end_of_document_id)
        vocab_size = reader.vocab_size if vocab_size is None else vocab_size
    if format == "nanogpt" and vocab_size is None:
        raise ConfigError(
            "vocab_size (None) must be given for a nanoGPT .bin, which does not say what its ids mean; add "
            "--vocab_size (50257 for GPT-2) or --tokenizer"
        )
    found = _open(source, format, end_of_document_id, column, trust_lengths)
    require_not_read([path], [*found.files, *(() if reader is None else [reader.path])])
    size = _largest(found) + 1 if vocab_size is None else vocab_size
    fingerprint = "" if reader is None else reader.fingerprint
    with PackedFileWriter(
        path,
        vocab_size=size,
        tokenizer_fingerprint=fingerprint,
        end_of_document_id=end_of_document_id,
        overwrite=overwrite,
    ) as writer:
        for ids, lengths in found.batches():
            writer.write_documents(ids, lengths)
            progress(writer.num_tokens, found.num_tokens)
    assert writer.header is not None
    if reader is not None and reader.path.is_file():
        put_beside(reader.path, path)
    options: dict[str, Any] = {"from": format, "vocab_size": vocab_size, "end_of_document_id": end_of_document_id}
    options |= {"column": column, "trust_lengths": trust_lengths, "tokenizer_fingerprint": fingerprint}
    copying.write_provenance(path, writer.header, "convert", options, [*map(foreign_tokens.fingerprint, found.files)])
    return writer.header


def _end_id(reader: TextTokenizer, end_id: int | None) -> int:
    """What ends documents: the id that is given, of which an ordinary one is told, or the tokenizer's choice."""
    if end_id is not None:
        warn_of_ordinary_token(reader, "end-of-document token", reader.token_text(end_id), end_id)
        return end_id
    try:
        return reader.end_of_document_id()
    except ConfigError as error:
        raise ConfigError(f"{error}; give the id of the one that ends documents, --end_of_document_id") from error


def _open(
    source: str | os.PathLike[str], format: Readable, end_id: int | None, column: str | None, trust_lengths: bool
) -> ForeignTokens:
    if column is not None and format != "huggingface":
        raise ConfigError(f"column ({column}) must go with --from huggingface; leave it out for {format}")
    if trust_lengths and format != "modalities":
        raise ConfigError(f"trust_lengths must go with --from modalities; leave it out for {format}")
    if format in get_args(Readable):
        _refuse_packed(source, format)
    if format == "modalities":
        return read_modalities(source, trust_lengths=trust_lengths)
    if format == "megatron":
        return read_megatron(source)
    if format == "nanogpt":
        return read_nanogpt(source, end_of_document_id=end_id)
    if format == "huggingface":
        return read_huggingface(source, column=column)
    raise ConfigError(f"format ({format}) must be modalities, megatron, nanogpt or huggingface; choose one of them")


def _refuse_packed(source: str | os.PathLike[str], format: str) -> None:
    with contextlib.suppress(OSError), open(source, "rb") as file:  # what cannot be read is told by its reader
        if file.read(len(MAGIC)) == MAGIC:
            raise ConfigError(
                f"{source} must be a file of another library ({format}); it is a packed file already: use it as it is, "
                "or convert it with --to"
            )


def _largest(found: ForeignTokens) -> int:
    return max((int(ids.max()) for ids, _ in found.batches() if ids.size), default=0)


def convert_to(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: Writable,
    *,
    drop_loss_mask: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[Path]:
    """Write a packed file as another library reads it; documents and their order stay.

    Args:
        source: The packed file.
        path: The file to make; for Megatron-LM the prefix of its two.
        format: What to make.
        drop_loss_mask: Whether a loss mask, which none of these formats holds, is left out.
        overwrite: Whether existing files are replaced.
        progress: Called with the tokens done, and all of them.

    Returns:
        The files that were made.

    Raises:
        ConfigError: No such format, or an output is the source.
        DataError: Something does not fit the format, a loss mask too, or a file exists or cannot be written.
    """
    if format not in _WRITERS:
        raise ConfigError(f"format ({format}) must be {', '.join(_WRITERS)}; choose one of them")
    packed = copying.open_plain(source)
    require_not_read(megatron_paths(path) if format == "megatron" else [path], [packed.path])
    if packed.has_loss_mask and not drop_loss_mask:
        raise ConfigError(
            f"{packed.path} has a loss mask, which must not be lost unnoticed: {format} files hold none, and every "
            "token would be trained; add --drop_loss_mask if that is wanted"
        )
    made = _WRITERS[format](packed, path, overwrite=overwrite, progress=progress)
    options = {"to": format} | ({"drop_loss_mask": True} if packed.has_loss_mask else {})
    copying.write_provenance(made[0], None, "convert", options, [copying.described(packed)])
    return made
