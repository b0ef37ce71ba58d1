"""What is in a packed token file: lengths, frequent tokens, documents that are there twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.corpora import corpus
from modlib.data.inspecting.text import tokenizer_for
from modlib.data.packed.file import PackedFile
from modlib.data.packed.pieces import document_batches, token_batches
from modlib.data.progress import Progress, no_progress
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime.errors import ConfigError, DataError

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class FrequentToken:
    """A token and how often it is there; text is None without a tokenizer."""

    token_id: int
    count: int
    text: str | None


@dataclass(frozen=True)
class Duplicates:
    """Documents with the tokens of an earlier one.

    Args:
        documents: How many.
        tokens: In them.
        examples: (a document, the first one with its tokens), in order.
    """

    documents: int
    tokens: int
    examples: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class PackedStats:
    """What was counted.

    Args:
        path: The file.
        documents: In it.
        tokens: In it, end-of-document tokens included.
        vocab_size: Every id is below it.
        used_ids: Different ids that are there.
        trained_tokens: How many the loss mask lets count; None for a file without one, of which all do.
        bytes_per_token: UTF-8 bytes of text per token; None where the file does not say.
        length_quantiles: Tokens per document at each of QUANTILES; empty without documents.
        mean_length: Tokens per document.
        length_histogram: (shortest, longest, documents), in powers of two.
        frequent: The most frequent tokens, the most frequent first.
        duplicates: None when they were not looked for.
    """

    path: str
    documents: int
    tokens: int
    vocab_size: int
    used_ids: int
    trained_tokens: int | None
    bytes_per_token: float | None
    length_quantiles: dict[str, int]
    mean_length: float
    length_histogram: Sequence[tuple[int, int, int]]
    frequent: Sequence[FrequentToken]
    duplicates: Duplicates | None

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


def stats(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    num_frequent: int = 20,
    find_duplicates: bool = True,
    progress: Progress = no_progress,
) -> PackedStats:
    """Count what is in a packed file.

    Memory: 8 bytes per id of the vocabulary, and 8 bytes per document for the lengths; looking for duplicates takes
    24 bytes per document more. Documents are duplicates when all their tokens are equal: those with equal hashes are
    compared.

    Args:
        path: A packed file, or a corpus.
        tokenizer: Gives tokens their text; None takes the one beside the file, if there is one.
        num_frequent: How many of the most frequent tokens.
        find_duplicates: Whether to look for duplicates.
        progress: Called with the tokens done, and all of them.

    Raises:
        DataError: The file is damaged, or the tokenizer is another.
    """
    packed = corpus.open_packed(path)
    reader = tokenizer_for(packed, tokenizer)
    lengths = np.diff(packed.document_offsets)
    passes = 2 if find_duplicates else 1
    counts = np.zeros(packed.vocab_size, np.int64)
    for start, tokens in token_batches(packed):
        part = np.bincount(tokens)
        if len(part) > len(counts):
            raise DataError(
                f"token id ({len(part) - 1}) in {packed.path} must be below its vocab_size ({packed.vocab_size}); "
                "modlib data verify says where it is"
            )
        counts[: len(part)] += part
        progress(start + len(tokens), passes * packed.num_tokens)
    found = None
    if find_duplicates:
        done = packed.num_tokens
        found = _duplicates(packed, lengths, lambda tokens, _: progress(done + tokens, 2 * done))
    at = np.quantile(lengths, QUANTILES, method="nearest").tolist() if lengths.size else []
    return PackedStats(
        path=str(packed.path),
        documents=packed.num_documents,
        tokens=packed.num_tokens,
        vocab_size=packed.vocab_size,
        used_ids=int(np.count_nonzero(counts)),
        trained_tokens=packed.count_trained(0, packed.num_tokens) if packed.has_loss_mask else None,
        bytes_per_token=packed.num_bytes_of_text / packed.num_tokens if packed.num_bytes_of_text else None,
        length_quantiles={f"{quantile:g}": int(value) for quantile, value in zip(QUANTILES, at, strict=False)},
        mean_length=packed.num_tokens / packed.num_documents if packed.num_documents else 0.0,
        length_histogram=_histogram(lengths),
        frequent=_frequent(counts, num_frequent, reader),
        duplicates=found,
    )


def _histogram(lengths: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Documents of 0 tokens, 1, 2-3, 4-7, ...; from the first bin that has any to the last."""
    if not lengths.size:
        return []
    counts = np.bincount(np.frexp(lengths)[1])  # 0 -> 0, 1 -> 1, 2..3 -> 2, 4..7 -> 3
    first = int(np.flatnonzero(counts)[0])
    return [(2**bits // 2, max(2**bits - 1, 0), int(counts[bits])) for bits in range(first, len(counts))]


def _frequent(counts: npt.NDArray[np.int64], number: int, reader: TextTokenizer | None) -> list[FrequentToken]:
    most = np.argsort(-counts, kind="stable")[:number]
    return [
        FrequentToken(token, int(counts[token]), None if reader is None else reader.decode([token]))
        for token in most[counts[most] > 0].tolist()
    ]


def _duplicates(
    packed: PackedFile, lengths: npt.NDArray[np.int64], progress: Progress, examples: int = 10
) -> Duplicates:
    hashes = np.empty(packed.num_documents, np.uint64)
    for first, last in document_batches(packed.document_offsets):
        for number in range(first, last):
            digest = hashlib.blake2b(packed.document(number).data, digest_size=8).digest()
            hashes[number] = int.from_bytes(digest, "little")
        progress(int(packed.document_offsets[last]), packed.num_tokens)
    order = np.argsort(hashes, kind="stable")  # equal hashes together, earlier documents first
    candidates = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]) + 1
    count = tokens = 0
    pairs: list[tuple[int, int]] = []
    firsts: list[int] = []  # documents of one hash that differ: more than one where hashes collide
    behind = -1
    for place in candidates.tolist():
        if place != behind:
            firsts = [int(order[place - 1])]
        behind = place + 1
        document = int(order[place])
        equal = next((one for one in firsts if np.array_equal(packed.document(one), packed.document(document))), None)
        if equal is None:
            firsts.append(document)
            continue
        count += 1
        tokens += int(lengths[document])
        pairs.append((document, equal))
        if len(pairs) > 1000:
            pairs = sorted(pairs)[:examples]
    return Duplicates(count, tokens, sorted(pairs)[:examples])


def plot_lengths(found: PackedStats, path: Path) -> None:
    """Draw the histogram of the documents' lengths; the ending of the file's name says in which format.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"--plot needs the package matplotlib ({error}); pip install 'modlib[plots]'") from None
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    labels = [bin_label(low, high) for low, high, _ in found.length_histogram]
    axes.bar(labels, [count for _, _, count in found.length_histogram], color="#3b6ea5", width=0.9)
    axes.set_xlabel("tokens per document")
    axes.set_ylabel("documents")
    axes.set_title(f"{Path(found.path).name}: {found.documents:,} documents, {found.tokens:,} tokens", fontsize=10)
    axes.tick_params(axis="x", rotation=45, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"--plot ({path}) cannot be written: {problem}; choose another") from error


def bin_label(low: int, high: int) -> str:
    """A bin of the histogram: 1, 2-3, 1k-2k."""
    if low == high:
        return str(low)
    if low < 1024:
        return f"{low}-{high}"
    units = ("", "Ki", "Mi", "Gi", "Ti")
    power = min((low.bit_length() - 1) // 10, len(units) - 1)
    return f"{low >> 10 * power}-{(high + 1) >> 10 * power}{units[power]}"
