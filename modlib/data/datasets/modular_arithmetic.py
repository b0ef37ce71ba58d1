"""Equations modulo a prime, of which a part is held out: data on which generalisation can come long after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.datasets.windows import Windows, window_numbers
from modlib.data.permutation import KeyedPermutation
from modlib.runtime.errors import ConfigError, DataError, choice_problems

Numbers = npt.NDArray[np.int64]
Split = Literal["train", "validation"]
Operation = Literal["add", "subtract", "divide"]

TOKENS = 5  # a, operation, b, =, c


def _divide(a: Numbers, b: Numbers, modulus: int) -> Numbers:
    inverse = np.array([0, *(pow(number, -1, modulus) for number in range(1, modulus))], np.int64)
    return a * inverse[b] % modulus


OPERATIONS: dict[str, Callable[[Numbers, Numbers, int], Numbers]] = {
    "add": lambda a, b, modulus: (a + b) % modulus,
    "subtract": lambda a, b, modulus: (a - b) % modulus,
    "divide": _divide,
}


@component("dataset", "modular_arithmetic")
class ModularArithmetic:
    """Every equation `a o b = c` modulo a prime, once: five tokens, of which only the answer c is a target.

    Ids below the modulus are the numbers, then come the operation and the equals sign: the vocabulary is modulus + 2.
    Which equations are in "train" follows from (seed, modulus, operation); the others are "validation".

    Args:
        modulus: A prime, at most 1,009.
        operation: "add", "subtract", or "divide" (a times the inverse of b; b is never 0).
        split: "train" or "validation".
        train_fraction: Share of the equations in "train", rounded down; above 0, below 1.
        seed: Of the split.

    Raises:
        ConfigError: A number is out of range.

    Source: Power et al. 2022, Grokking, arXiv 2201.02177, section 2 and appendix A.1.
    """

    seq_len = TOKENS - 1

    def __init__(
        self,
        *,
        modulus: int = 97,
        operation: Operation = "add",
        split: Split,
        train_fraction: float = 0.5,
        seed: int = 0,
    ) -> None:
        problems = choice_problems(split=(split, Split))
        if not 2 <= modulus <= 1009 or any(modulus % factor == 0 for factor in range(2, int(modulus**0.5) + 1)):
            problems.append(f"modulus ({modulus}) must be a prime from 2 to 1009; choose one, such as 97")
        if operation not in OPERATIONS:
            problems.append(f"operation ({operation!r}) must be one of {', '.join(OPERATIONS)}; choose one")
        if not 0 < train_fraction < 1:
            problems.append(f"train_fraction ({train_fraction}) must be above 0 and below 1; set it to a share")
        if seed < 0:
            problems.append(f"seed ({seed}) must be at least 0; choose another seed")
        if problems:
            raise ConfigError(problems)
        self.modulus, self.operation, self.split = modulus, operation, split
        self.train_fraction, self.seed = train_fraction, seed
        self.name = f"{operation} modulo {modulus}:{split}"
        a, b = np.divmod(np.arange(modulus * modulus, dtype=np.int64), modulus)
        if operation == "divide":
            a, b = a[b > 0], b[b > 0]
        c = OPERATIONS[operation](a, b, modulus)
        sign = np.full_like(a, modulus)
        equations = np.stack([a, sign, b, sign + 1, c], axis=1)
        order = KeyedPermutation(len(equations), f"modlib modular arithmetic {seed} {modulus} {operation}")
        shuffled = equations[order(np.arange(len(equations)))]
        cut = int(train_fraction * len(shuffled))
        self.equations: npt.NDArray[np.uint16] = (shuffled[:cut] if split == "train" else shuffled[cut:]).astype(
            np.uint16
        )
        """Ids (N, 5) of this split."""
        if not len(self.equations):
            raise ConfigError(f"train_fraction ({train_fraction}) must leave an equation in {split}; change it")

    def __len__(self) -> int:
        return len(self.equations)

    def __getitem__(self, index: int) -> Windows:
        """One equation."""
        return self.__getitems__([index]).row(0)

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Windows:
        """Many equations at once, (B, 5), with the answer alone as target.

        Raises:
            IndexError: An index is negative or beyond the last equation.
        """
        wanted = window_numbers(indices, self)
        ids = self.equations[wanted]
        trained = np.zeros(ids.shape, np.bool_)
        trained[:, -1] = True
        return Windows(ids, trained, np.ones(ids.shape, np.bool_), wanted)

    @property
    def fingerprint(self) -> str:
        """Changes when an equation or their order changes; the same on every machine."""
        return f"modular arithmetic/{self.name}/fraction={self.train_fraction}/seed={self.seed}"

    @property
    def num_tokens(self) -> int:
        """Target positions in one epoch, those that are not trained included."""
        return len(self) * self.seq_len

    @property
    def num_documents(self) -> int:
        """Equations."""
        return len(self)

    @property
    def bytes_per_token(self) -> float:
        """Equations are not text."""
        return 0.0

    @property
    def tokenizer_fingerprint(self) -> str:
        """No tokenizer made them."""
        return ""

    @property
    def tokenizer_path(self) -> None:
        """No tokenizer made them."""
        return None

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise DataError when the model has fewer ids than there are numbers and signs."""
        if self.modulus + 2 > vocab_size:
            raise DataError(
                f"tokens of {self.name} ({self.modulus + 2}) must be at most the model's vocab_size ({vocab_size}); "
                f"set vocab_size to {self.modulus + 2}"
            )
