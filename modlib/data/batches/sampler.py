"""The order in which samples are trained on: a pure function of (seed, epoch, index)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.permutation import KeyedPermutation
from modlib.runtime.errors import ConfigError, DataError

_BLOCK = 4096  # samples permuted at once: numpy's cost per call is spread over them


@component("sampler", "distributed_sampler", runtime_args=("num_samples",))
class ShuffledSampler:
    """Which sample stands at which global position, over all epochs.

    Position p belongs to epoch p // num_samples; every epoch visits every sample once, each in another order. Nothing
    here knows ranks, workers or batch sizes, so all of them may change when a run continues. Memory does not grow with
    num_samples.

    Args:
        seed: Another seed is another order.
        shuffle: Whether to permute; otherwise samples come in the order of the data in every epoch.
        num_samples: Samples in the dataset.

    Raises:
        ConfigError: seed is negative.
        DataError: There are no samples.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 5 (a permutation without a table).
    """

    def __init__(self, *, seed: int, shuffle: bool = True, num_samples: int) -> None:
        if seed < 0:
            raise ConfigError(f"seed ({seed}) must be at least 0; choose another seed")
        if num_samples < 1:
            raise DataError(f"num_samples ({num_samples}) must be at least 1; the dataset is empty")
        self.seed = seed
        self.shuffle = shuffle
        self.num_samples = num_samples
        self._permutation: tuple[int, KeyedPermutation] | None = None
        self._block: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self.num_samples

    def __getstate__(self) -> dict[str, object]:  # what is remembered is only a cache
        return vars(self) | {"_permutation": None, "_block": None}

    def indices(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """The samples at global positions start..start+count-1; the range may cross epochs.

        Args:
            start: First position, at least 0.
            count: Number of positions.
        """
        if start < 0 or count < 0:
            raise ValueError(
                f"start ({start}) and count ({count}) must be at least 0; positions count from the first step"
            )
        parts = []
        while count > 0:
            epoch, index = divmod(start, self.num_samples)
            block, offset = divmod(index, _BLOCK)
            part = self._of_block(epoch, block)[offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _of_block(self, epoch: int, block: int) -> npt.NDArray[np.int64]:
        # One local variable each, so that a loader thread and its owner may both ask.
        remembered = self._block
        if remembered is not None and remembered[0] == (epoch, block):
            return remembered[1]
        first = block * _BLOCK
        values = np.arange(first, min(first + _BLOCK, self.num_samples), dtype=np.int64)
        if self.shuffle:
            values = self._of_epoch(epoch)(values)
        self._block = ((epoch, block), values)
        return values

    def _of_epoch(self, epoch: int) -> KeyedPermutation:
        remembered = self._permutation
        if remembered is None or remembered[0] != epoch:
            remembered = (epoch, KeyedPermutation(self.num_samples, f"modlib sample order {self.seed} {epoch}"))
            self._permutation = remembered
        return remembered[1]


class FirstEpochAgain:
    """The order of a sampler's first epoch, in every epoch.

    Args:
        sampler: Has `indices(start, count)`, and the number of samples as its length.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def indices(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """The samples at positions start..start+count-1; the range may cross epochs."""
        parts = []
        while count > 0:
            index = start % len(self)
            part = self.sampler.indices(index, min(count, len(self) - index))
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
