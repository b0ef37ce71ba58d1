"""Text made by rules, whose best possible loss is known: for tests and tutorials, without a download."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from modlib.runtime.errors import ConfigError

_LETTERS = "abcdefghijklmnopqrstuvwxyz "
_SUM = 12  # characters of a line, at least
_PAIR = 18


@dataclass(frozen=True)
class Synthetic:
    """A source of documents.

    Args:
        documents: Endless, the same for the same seed.
        bits_per_character: The entropy rate: no model can do better in the long run; None where it is not constant.
        about: What there is to learn.
    """

    documents: Iterator[str]
    bits_per_character: float | None
    about: str


def markov(seed: int, length: int) -> Synthetic:
    """Letters that follow each other by a random table: each depends on the one before it alone."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(len(_LETTERS), 0.3), size=len(_LETTERS))
    return Synthetic(
        _markov_documents(table, rng, length),
        entropy_rate(table),
        f"{len(_LETTERS)} letters; each depends on the one before it alone",
    )


def entropy_rate(table: npt.NDArray[np.float64]) -> float:
    """Bits per step of a Markov chain in its stationary state.

    Args:
        table: Row i is the distribution of what follows state i.

    Source: Shannon, A Mathematical Theory of Communication, 1948, section 7.
    """
    states = np.eye(len(table))[0]
    for _ in range(10_000):
        following = 0.5 * (states + states @ table)  # half a step, so that a cycle settles too
        if np.abs(following - states).max() < 1e-15:
            break
        states = following
    logs = np.log2(table, out=np.zeros_like(table), where=table > 0)
    return float(-(states[:, None] * table * logs).sum())


def _markov_documents(table: npt.NDArray[np.float64], rng: np.random.Generator, length: int) -> Iterator[str]:
    steps = np.cumsum(table, axis=1)
    while True:
        state = int(rng.integers(len(table)))
        letters = []
        for draw in rng.random(length).tolist():
            letters.append(_LETTERS[state])
            state = min(int(np.searchsorted(steps[state], draw, side="right")), len(table) - 1)
        yield "".join(letters)


def arithmetic(seed: int, length: int) -> Synthetic:
    """Sums modulo 97, one a line: `12 + 90 = 5`."""
    _require_length(length, _SUM, "a sum")
    rng = np.random.default_rng(seed)

    def documents() -> Iterator[str]:
        while True:
            pairs = rng.integers(97, size=(length // _SUM, 2)).tolist()
            yield "".join(f"{a} + {b} = {(a + b) % 97}\n" for a, b in pairs)

    return Synthetic(documents(), None, "sums modulo 97; what follows the equals sign can be known")


def copying(seed: int, length: int) -> Synthetic:
    """Random letters and the same again, one pair a line: `qwe|qwe`."""
    _require_length(length, _PAIR, "8 letters and the same again")
    rng = np.random.default_rng(seed)

    def documents() -> Iterator[str]:
        while True:
            words = ["".join(map(_LETTERS.__getitem__, row)) for row in rng.integers(26, size=(length // _PAIR, 8))]
            yield "".join(f"{word}|{word}\n" for word in words)

    # of 18 characters, 8 are random
    return Synthetic(documents(), 8 * math.log2(26) / 18, "8 random letters and the same again")


def _require_length(length: int, least: int, of: str) -> None:
    if length < least:
        raise ConfigError(f"length ({length}) must be at least {least}, the characters of {of}; set it higher")


KINDS: dict[str, Callable[[int, int], Synthetic]] = {"markov": markov, "arithmetic": arithmetic, "copy": copying}
"""Name -> made of a seed and the characters of a document, about; a ConfigError when they are too few for one line."""
