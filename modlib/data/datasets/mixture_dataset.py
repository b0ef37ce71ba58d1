"""A weighted mixture of datasets, whose every sample is computed from (seed, index)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.datasets.combined_dataset import Numbers, SeveralDatasets
from modlib.data.permutation import KeyedPermutation
from modlib.runtime.errors import ConfigError

logger = logging.getLogger("modlib")

MOST_SLOTS = 10_000  # weights of up to four decimals are exact


@component("dataset", "mixture")
class MixtureDataset(SeveralDatasets):
    """Datasets mixed by weight: which one a sample comes from, and which of its samples, follow from (seed, index).

    The sources take turns in a fixed pattern, so that in *any* stretch of samples, and so in every batch, each has its
    share to within two samples. A source is read in a random order without repetition until it is used up, then again
    in another order; `epochs` says how often.

    Use it with a sampler that does not shuffle (ShuffledSampler.shuffle = False): samples are shuffled already, and
    shuffling them again gives up the exact shares.

    Args:
        datasets: Uncalled references with scopes, such as [@books/PackedDataset, @code/PackedDataset].
        weights: One per dataset, above 0, in proportion to the samples taken from it; they need not add up to 1.
            Their shares are exact if written with up to four decimals, else rounded to ten-thousandths.
        num_samples: Length of one epoch, after which the sampler starts over with the same samples. None: until every
            source was read once in full. For a run that is longer, set it to the samples that the run needs.
        seed: Another seed is another order.

    Raises:
        ConfigError: A number is out of range, or there is not one weight per dataset, or the seq_len differ.
        DataError: Different tokenizers made the sources.

    Source: the pattern: Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980.
    """

    def __init__(
        self,
        *,
        datasets: Sequence[Callable[[], Any]],
        weights: Sequence[float],
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        problems = []
        if len(weights) != len(datasets):
            problems.append(f"weights ({len(weights)}) must be as many as datasets ({len(datasets)}); give one each")
        if any(not (math.isfinite(weight) and weight > 0) for weight in weights):
            problems.append(f"weights ({list(weights)}) must all be above 0; leave out a dataset that is not wanted")
        if num_samples is not None and num_samples < 1:
            problems.append(f"num_samples ({num_samples}) must be at least 1; use None to read every source once")
        if seed < 0:
            problems.append(f"seed ({seed}) must be at least 0; choose another seed")
        if problems:
            raise ConfigError(problems)
        super().__init__(datasets, "mixture")
        self.seed = seed
        slots = slots_of(weights)
        self._period = sum(slots)
        self._slots = np.array(slots, np.int64)
        self._source_at = turns(slots)
        self._taken_before = _count_before(self._source_at, len(slots))
        self._phase = int(np.random.Philox(key=seed).random_raw() % np.uint64(self._period))
        self._permutations: dict[tuple[int, int], KeyedPermutation] = {}
        self.num_samples = self._read_once() if num_samples is None else num_samples
        logger.info("%s: %s", self.name, self._shares())

    def _read_once(self) -> int:
        """Samples in which every source was read once in full."""
        # whole periods suffice for each; the fewest single samples beyond that would not be worth the search
        return max(-(-int(size) // slots) * self._period for size, slots in zip(self.sizes, self._slots.tolist()))

    def _shares(self) -> str:
        names = [source.name for source in self.sources]
        shares = zip(names, (self._slots / self._period).tolist(), self.epochs(), strict=True)
        return ", ".join(f"{name} {share:.2%} ({epochs:.2f} epochs)" for name, share, epochs in shares)

    def __getstate__(self) -> dict[str, Any]:  # what is remembered is only a cache
        return vars(self) | {"_permutations": {}}

    def __len__(self) -> int:
        return self.num_samples

    def locate(self, indices: Numbers) -> tuple[Numbers, Numbers]:
        """For each sample, the source it comes from and its index there."""
        which, number = self._turn(indices)
        epoch, place = number // self.sizes[which], number % self.sizes[which]
        inside = np.empty_like(place)
        for source, passed in np.unique(np.stack([which, epoch]), axis=1).T.tolist():
            mine = (which == source) & (epoch == passed)
            inside[mine] = self._permutation(source, passed)(place[mine])
        return which, inside

    def _turn(self, indices: Numbers) -> tuple[Numbers, Numbers]:
        """The source of each sample, and how many samples of that source come before it."""
        positions = indices + self._phase
        rounds, slot = positions // self._period, positions % self._period
        which = self._source_at[slot]
        before = rounds * self._slots[which] + self._taken_before[slot]
        first = np.bincount(self._source_at[: self._phase], minlength=len(self.sources))  # skipped by the phase
        return which, before - first[which]

    def _permutation(self, source: int, epoch: int) -> KeyedPermutation:
        found = self._permutations.get((source, epoch))
        if found is None:
            key = f"modlib mixture {self.seed} {source} {epoch}"
            found = KeyedPermutation(int(self.sizes[source]), key)
            if len(self._permutations) > 4 * len(self.sources):
                self._permutations = {}
            self._permutations[source, epoch] = found
        return found

    def counts(self, num_samples: int | None = None) -> list[int]:
        """Samples taken from each source in the first num_samples; None means one epoch."""
        total = (self.num_samples if num_samples is None else num_samples) + self._phase
        rounds, rest = divmod(total, self._period)
        sources = len(self.sources)
        whole = rounds * self._slots + np.bincount(self._source_at[:rest], minlength=sources)
        skipped = np.bincount(self._source_at[: self._phase], minlength=sources)
        return (whole - skipped).tolist()

    def epochs(self, num_samples: int | None = None) -> list[float]:
        """How often each source is read in the first num_samples; None means one epoch of the mixture."""
        return [count / int(size) for count, size in zip(self.counts(num_samples), self.sizes, strict=True)]

    @property
    def fingerprint(self) -> str:
        """Changes when a source, a share, the seed or the length changes."""
        shares = ",".join(map(str, self._slots.tolist()))
        sources = "; ".join(source.fingerprint for source in self.sources)
        return f"mixture({sources})/shares={shares}/seed={self.seed}/samples={self.num_samples}"

    @property
    def num_tokens(self) -> int:
        """Targets in one epoch of the mixture, about: sources that pad have as many per sample as on average."""
        per_sample = [source.num_tokens / len(source) for source in self.sources]
        return round(sum(count * tokens for count, tokens in zip(self.counts(), per_sample, strict=True)))

    @property
    def padding(self) -> float | None:
        """Share of the samples' tokens that is padding, in one epoch; None when no source pads."""
        return self.mean_padding(self.counts())

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token in the mixture; 0.0 when a source does not say."""
        per_sample = [source.num_tokens / len(source) for source in self.sources]
        return self.mean_bytes_per_token([count * tokens for count, tokens in zip(self.counts(), per_sample)])


def slots_of(weights: Sequence[float]) -> list[int]:
    """Turns of each source in one period of at most MOST_SLOTS: exact shares if possible, else rounded, at least 1.

    Args:
        weights: Above 0; 0.1 is a tenth, not the binary number next to it.
    """
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    total = sum(whole)
    if total <= MOST_SLOTS:
        return whole
    slots = [max(1, number * MOST_SLOTS // total) for number in whole]
    by_remainder = sorted(range(len(whole)), key=lambda i: (-(whole[i] * MOST_SLOTS % total), i))
    for number in by_remainder[: max(0, MOST_SLOTS - sum(slots))]:
        slots[number] += 1
    return slots


def turns(slots: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which source takes each turn of a period: after t turns each has had t x share to within less than one.

    Of the sources that may take the turn without getting too far ahead, the one whose turn is due first takes it.

    Args:
        slots: Turns of each source in the period.
    """
    count, period = len(slots), sum(slots)
    share = np.array(slots, np.int64)
    slack = 2 * max(count - 1, 1)
    behind = np.zeros(count, np.int64)  # (t x share - turns taken) x period
    order = np.empty(period, np.int64)
    for turn in range(period):
        behind += share
        # eligible: behind / period >= 1 / slack; due: (1 - 1 / slack - behind / period) / share x period
        eligible = behind * slack >= period
        due = (period * (slack - 1) - behind * slack) / share
        chosen = int(np.argmin(np.where(eligible, due, np.inf)))
        order[turn] = chosen
        behind[chosen] -= period
    return order


def _count_before(source_at: npt.NDArray[np.int64], sources: int) -> npt.NDArray[np.int64]:
    """For each turn of the period, the earlier turns of the same source."""
    before = np.empty_like(source_at)
    for source in range(sources):
        mine = source_at == source
        before[mine] = np.arange(int(mine.sum()))
    return before
