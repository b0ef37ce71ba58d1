"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.datasets.dataset import ChecksTokenizer, Dataset, Watched, fetch, tokenizer_path_of
from modlib.data.datasets.windows import as_windows
from modlib.runtime.errors import ConfigError, DataError

Numbers = npt.NDArray[np.int64]


class SeveralDatasets:
    """What concatenating and mixing have in common: sources that fit together, and samples fetched from them.

    Args:
        datasets: Each returns a dataset; at least one.
        kind: Begins the name.

    Raises:
        ConfigError: There are no datasets, or their seq_len or intra_document_masking differ.
        DataError: Different tokenizers made them.
    """

    def __init__(self, datasets: Sequence[Callable[[], Dataset]], kind: str) -> None:
        if not datasets:
            raise ConfigError(f"datasets of {kind} (0) must be at least one; e.g. datasets = [@a/PackedDataset]")
        self.sources: list[Dataset] = [dataset() for dataset in datasets]
        self.name = f"{kind} of {', '.join(source.name for source in self.sources)}"
        lengths = [source.seq_len for source in self.sources]
        if len(set(lengths)) > 1:
            raise ConfigError(f"seq_len of the datasets of {kind} ({lengths}) must be equal; set all with SEQ_LEN")
        self.seq_len: int = lengths[0]
        apart = [getattr(source, "intra_document_masking", False) for source in self.sources]
        if len(set(apart)) > 1:
            raise ConfigError(
                f"intra_document_masking of the datasets of {kind} ({apart}) must be equal; set it in all or in none"
            )
        self.intra_document_masking: bool = apart[0]
        self.end_of_document_id: int | None = getattr(self.sources[0], "end_of_document_id", None)
        made_by = {source.tokenizer_fingerprint: source.name for source in self.sources if source.tokenizer_fingerprint}
        if len(made_by) > 1:
            listed = ", ".join(f"{name}: {fingerprint[:12]}" for fingerprint, name in made_by.items())
            raise DataError(
                f"tokenizers of the datasets of {kind} ({listed}) must be the same; pack all texts with one tokenizer"
            )
        self.sizes = np.array([len(source) for source in self.sources], np.int64)

    def __len__(self) -> int:
        raise NotImplementedError

    def locate(self, indices: Numbers) -> tuple[Numbers, Numbers]:
        """For each sample, the source it comes from and its index there."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        """One sample, as its source gives it."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"sample ({index}) must be below the {count} samples of {self.name}")
        which, inside = self.locate(np.array([index % count], np.int64))
        return self.sources[int(which[0])][int(inside[0])]

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Any:
        """Many samples at once, in the order of the indices.

        Returns:
            An array (B, seq_len + 1) when every source gives plain token ids; Windows when any pads or masks; a list
            of samples for anything else. Integer types that differ become int64.

        Raises:
            IndexError: An index is negative or beyond the last sample.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"samples ({wanted.min()} to {wanted.max()}) must be 0 to {len(self) - 1} of {self.name}")
        which, inside = self.locate(wanted)
        samples: list[Any] = [None] * len(wanted)
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number)
            found = _rows(self.sources[number], inside[places])
            for place, sample in zip(places.tolist(), found, strict=True):
                samples[place] = sample
        return _together(samples, wanted)

    @property
    def num_documents(self) -> int | None:
        """Documents in all sources; None when one does not say."""
        counts = [source.num_documents for source in self.sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def tokenizer_fingerprint(self) -> str:
        """The one that all sources have; empty when none says."""
        return next((one for source in self.sources if (one := source.tokenizer_fingerprint)), "")

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer file of the first source that has one; all have the same."""
        paths = (tokenizer_path_of(source) for source in self.sources)
        return next((path for path in paths if path is not None), None)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise DataError when a source may have an id that is not below the model's vocab_size."""
        for source in self.sources:
            source.check_vocabulary(vocab_size)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise DataError when another tokenizer made a source."""
        for source in self.sources:
            if isinstance(source, ChecksTokenizer):
                source.check_tokenizer(fingerprint)

    def check_unchanged(self) -> None:
        """Raise DataError when a source was changed since it was opened."""
        for source in self.sources:
            if isinstance(source, Watched):
                source.check_unchanged()

    def mean_bytes_per_token(self, tokens: Sequence[float]) -> float:
        """Bytes per token over sources that are read so many tokens each; 0.0 when a source does not say."""
        rates = [source.bytes_per_token for source in self.sources]
        if not all(rates):
            return 0.0
        return sum(rate * number for rate, number in zip(rates, tokens, strict=True)) / sum(tokens)

    def mean_padding(self, samples: Sequence[int]) -> float | None:
        """Share of the tokens that is padding, of so many samples of each source; None when no source pads."""
        shares = [getattr(source, "padding", None) for source in self.sources]
        if all(share is None for share in shares):
            return None
        return sum((share or 0.0) * number for share, number in zip(shares, samples, strict=True)) / sum(samples)


@component("dataset", "combined")
class CombinedDataset(SeveralDatasets):
    """Datasets one after the other: the samples of the first, then those of the second, and so on.

    Shuffled by the run's sampler, each is read in proportion to its size. For other proportions see MixtureDataset.

    Args:
        datasets: Uncalled references with scopes, such as [@books/PackedDataset, @code/PackedDataset].

    Raises:
        ConfigError: There are no datasets, or their seq_len differ.
        DataError: Different tokenizers made them.
    """

    def __init__(self, *, datasets: Sequence[Callable[[], Dataset]]) -> None:
        super().__init__(datasets, "combined")
        self._ends = np.cumsum(self.sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, indices: Numbers) -> tuple[Numbers, Numbers]:
        """For each sample, the source it comes from and its index there."""
        which = np.searchsorted(self._ends, indices, side="right")
        return which, indices - (self._ends - self.sizes)[which]

    @property
    def fingerprint(self) -> str:
        """Changes when a source or their order changes."""
        return f"combined({'; '.join(source.fingerprint for source in self.sources)})"

    @property
    def num_tokens(self) -> int:
        """Targets in one epoch."""
        return sum(source.num_tokens for source in self.sources)

    @property
    def padding(self) -> float | None:
        """Share of the samples' tokens that is padding; None when no source pads."""
        return self.mean_padding(self.sizes.tolist())

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of source text per token; 0.0 when a source does not say."""
        return self.mean_bytes_per_token([source.num_tokens for source in self.sources])


def _rows(source: Dataset, indices: Numbers) -> list[Any]:
    found = fetch(source, indices)
    return [found.row(number) for number in range(len(indices))] if hasattr(found, "row") else list(found)


def _together(samples: list[Any], indices: Numbers) -> Any:
    """One array or one Windows of many samples; those that are neither stay a list."""
    if not samples or any(isinstance(sample, dict) for sample in samples):
        return samples
    if all(isinstance(sample, np.ndarray) for sample in samples):
        dtypes = {sample.dtype for sample in samples}
        return np.stack(samples, dtype=None if len(dtypes) == 1 else np.int64, casting="unsafe")
    return replace(as_windows(samples), index=indices)
