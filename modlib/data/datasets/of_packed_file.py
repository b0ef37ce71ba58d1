"""What every dataset over one packed file says of the file, and checks in it."""

from __future__ import annotations

import os

from modlib.data.corpora import corpus
from modlib.data.packed.file import PackedFile
from modlib.runtime.errors import ConfigError, DataError

_VERIFIED_ON_OPEN_BYTES = 1 << 26  # below 0.1 s to hash; larger files are hashed when training starts


class OfPackedFile:
    """Windows of one packed file. The contents of a file up to 64 MiB are verified on opening.

    Args:
        path: A packed token file, or a corpus that modlib makes itself.
        seq_len: Inputs per window, at least 1.
        intra_document_masking: Whether documents in one window are kept apart.

    Raises:
        ConfigError: seq_len is below 1, or there is no such corpus or file.
        DataError: The file is damaged.
    """

    def __init__(self, path: str, seq_len: int, intra_document_masking: bool) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len ({seq_len}) must be at least 1; set SEQ_LEN")
        self.name = os.fspath(path)
        self.seq_len = seq_len
        self.intra_document_masking = intra_document_masking
        self.packed = PackedFile(corpus.prepare(path))
        if self.packed.header.file_bytes <= _VERIFIED_ON_OPEN_BYTES:
            self.packed.verify_once()

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of source text per token, end-of-document tokens included.

        0.0 when the file does not say, and for the trained tokens of a file with a loss mask.
        """
        return 0.0 if self.packed.has_loss_mask else self.packed.num_bytes_of_text / self.packed.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return self.packed.num_documents

    @property
    def end_of_document_id(self) -> int | None:
        """The token that ends each document; None where there is none."""
        return self.packed.header.end_of_document_id

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that made the file; empty when the file does not say."""
        return self.packed.tokenizer_fingerprint

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse data with ids that the model does not have.

        Args:
            vocab_size: The model's.

        Raises:
            DataError: An id in the file is not below vocab_size.
        """
        if self.packed.max_token_id >= vocab_size:
            raise DataError(
                f"largest token id in {self.packed.path} ({self.packed.max_token_id}) must be below the model's "
                f"vocab_size ({vocab_size}); set vocab_size to at least {self.packed.vocab_size}, or pack with the "
                "model's tokenizer"
            )

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse data that another tokenizer made; a file that names no tokenizer passes.

        Args:
            fingerprint: Of the tokenizer in use.

        Raises:
            DataError: The fingerprints differ.
        """
        check_tokenizer(self.packed, fingerprint)

    def check_unchanged(self) -> None:
        """See `PackedFile.check_unchanged`."""
        self.packed.check_unchanged()


def check_tokenizer(packed: PackedFile, fingerprint: str) -> None:
    """Raise DataError when another tokenizer made the file; one that names no tokenizer passes."""
    own = packed.tokenizer_fingerprint
    if own and own != fingerprint:
        raise DataError(
            f"tokenizer of {packed.path} ({own[:12]}) must be the tokenizer in use ({fingerprint[:12]}); "
            "pack the text with this tokenizer, or use the one the file was made with"
        )
