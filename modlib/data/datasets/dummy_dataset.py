"""Random samples of any shape: for trying things out, for tests, and for measuring speed without data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.runtime.errors import ConfigError, DataError

_FIELDS = ("shape", "dtype", "high")
_DTYPES = ("float32", "float64", "uint8", "int32", "int64")


@component("dataset", "dummy_dataset")
class DummyDataset:
    """Samples drawn at random, each a pure function of (seed, index).

    Without `samples` it is a language-model dataset: a sample is a window of seq_len + 1 token ids below vocab_size.
    With `samples` it is a dictionary of named arrays, for collators that take several, such as CoCaCollator:

        DummyDataset.samples = {
            'image': {'shape': (3, 32, 32), 'dtype': 'uint8', 'high': 256},
            'tokens': {'shape': (65,), 'dtype': 'int64', 'high': 4096},
        }

    Integers are uniform in 0..high - 1, floats standard normal.

    Args:
        num_samples: Samples in one epoch, at least 1.
        seq_len: Targets per sample; a sample with `samples` has the shapes it says.
        vocab_size: Ids are below it; also `high` of integers that name none. Needed without `samples`.
        samples: Shape, dtype (float32, float64, uint8, int32 or int64) and, for integers, `high`, by name.
        seed: Another seed gives other samples.

    Raises:
        ConfigError: A number is out of range, or a sample is not described as above.

    Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3 (Philox, whose counter is the index).
    """

    def __init__(
        self,
        *,
        num_samples: int,
        seq_len: int,
        vocab_size: int | None = None,
        samples: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        problems = [
            f"{name} ({value}) must be at least {least}; set it to {least} or more"
            for name, value, least in (
                ("num_samples", num_samples, 1),
                ("seq_len", seq_len, 1),
                ("seed", seed, 0),
                ("vocab_size", 1 if vocab_size is None else vocab_size, 1),
            )
            if value < least
        ]
        if samples is None and vocab_size is None:
            problems.append("vocab_size (None) must be given without samples; set DummyDataset.vocab_size")
        problems += [text for name, sample in (samples or {}).items() for text in _problems(name, sample, vocab_size)]
        if problems:
            raise ConfigError(problems)
        self.name = "dummy"
        self.num_samples = num_samples
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.samples = None if samples is None else {name: dict(sample) for name, sample in samples.items()}
        self.seed = seed

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Any:
        """Token ids (seq_len + 1,) int64, or arrays by name."""
        if not -self.num_samples <= index < self.num_samples:
            raise IndexError(f"sample ({index}) must be below the {self.num_samples} samples of {self.name}")
        return self._sample(int(index) % self.num_samples)

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Any:
        """Many samples: token ids (B, seq_len + 1), or a list of dictionaries."""
        found = [self[int(index)] for index in indices]
        return np.stack(found) if found and self.samples is None else found

    def _sample(self, index: int) -> Any:
        draws = np.random.Philox(key=self.seed, counter=[0, 0, 0, index])  # a stream per index, not a state to advance
        if self.samples is None:
            assert self.vocab_size is not None
            return _integers(draws, (self.seq_len + 1,), self.vocab_size, np.int64)
        return {name: self._array(draws, sample) for name, sample in self.samples.items()}

    def _array(self, draws: np.random.Philox, sample: Mapping[str, Any]) -> npt.NDArray[Any]:
        dtype, shape = np.dtype(sample["dtype"]), tuple(sample["shape"])
        if dtype.kind == "f":
            return np.random.Generator(draws).standard_normal(shape).astype(dtype)
        return _integers(draws, shape, sample.get("high") or self.vocab_size or 0, dtype)

    @property
    def fingerprint(self) -> str:
        """Changes with every setting."""
        settings = [self.num_samples, self.seq_len, self.vocab_size, self.samples, self.seed]
        return f"dummy:{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}"

    @property
    def bytes_per_token(self) -> float:
        """The bytes that a random id is worth, log2(vocab_size) / 8, so that the best loss is 8 bits per byte."""
        return math.log2(self.vocab_size) / 8 if self.vocab_size else 0.0

    @property
    def num_tokens(self) -> int:
        """Targets in one epoch."""
        return self.num_samples * self.seq_len

    @property
    def num_documents(self) -> int:
        """Every sample is one: nothing goes on from one to the next."""
        return self.num_samples

    @property
    def tokenizer_fingerprint(self) -> str:
        """Empty: no tokenizer made it."""
        return ""

    @property
    def tokenizer_path(self) -> None:
        """None: there is no tokenizer."""
        return

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse ids that the model does not have.

        Raises:
            DataError: Its vocab_size is above the model's.
        """
        if self.vocab_size is not None and self.vocab_size > vocab_size:
            raise DataError(
                f"vocab_size of DummyDataset ({self.vocab_size}) must be at most the model's vocab_size "
                f"({vocab_size}); set them to the same"
            )


def _integers(draws: np.random.Philox, shape: tuple[int, ...], high: int, dtype: Any) -> npt.NDArray[Any]:
    """Uniform below high, from the generator's raw bits: the same with every version of numpy."""
    raw = np.asarray(draws.random_raw(int(np.prod(shape))), np.uint64)
    return (raw % np.uint64(high)).astype(dtype).reshape(shape)


def _problems(name: str, sample: Mapping[str, Any], vocab_size: int | None) -> list[str]:
    found = []
    unknown = [field for field in sample if field not in _FIELDS]
    if unknown:
        found.append(f"samples['{name}'] has no field '{unknown[0]}'; it may have {', '.join(_FIELDS)}")
    dtype, shape = sample.get("dtype"), sample.get("shape")
    if dtype not in _DTYPES:
        return [*found, f"dtype of samples['{name}'] ({dtype!r}) must be one of {', '.join(_DTYPES)}; name one"]
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) and size > 0 for size in shape):
        found.append(f"shape of samples['{name}'] ({shape!r}) must be a tuple of sizes of at least 1; e.g. (3, 8, 8)")
    if not dtype.startswith("float"):
        high, most = sample.get("high", vocab_size), np.iinfo(dtype).max
        if not isinstance(high, int) or not 1 <= high <= int(most) + 1:
            found.append(f"high of samples['{name}'] ({high!r}) must be 1 to {int(most) + 1} for {dtype}; set it")
    return found
