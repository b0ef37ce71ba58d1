"""A permutation of 0..n-1 that is computed, not stored: any element in O(1) time and memory."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

ROUNDS = 8
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


class KeyedPermutation:
    """A pseudo-random permutation of 0..size-1, a pure function of the key.

    A Feistel network over pairs (left, right) of the mixed radix a x b, with a the rounded-up square root of size and
    a x b >= size: each round adds, modulo its radix, a keyed hash of one half to the other. The few pairs beyond size
    (fewer than a) are walked through again until they fall inside, which keeps it a permutation.

    Args:
        size: Number of elements, 1 to 2^62.
        key: Any text; another key is another permutation.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (CT-RSA 2002), section 5.
    """

    def __init__(self, size: int, key: str) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size ({size}) must be between 1 and 2^62; pass the number of samples")
        self.size = size
        rows = math.isqrt(size - 1) + 1
        self._radices = (np.uint64(rows), np.uint64(-(-size // rows)))
        self._keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), "<u8")

    def __call__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each index (each in 0..size-1) goes; same shape."""
        values = self._pass(indices.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._pass(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _pass(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        rows, columns = self._radices
        left = values // columns
        right = values - left * columns
        for number in range(0, ROUNDS, 2):
            _add_hash(left, right, self._keys[number], rows)
            _add_hash(right, left, self._keys[number + 1], columns)
        return left * columns + right


def _add_hash(target: npt.NDArray[np.uint64], source: npt.NDArray[np.uint64], key: np.uint64, radix: np.uint64) -> None:
    """target = (target + hash(source)) mod radix, in place; both halves are below 2^32."""
    mixed = source ^ key
    mixed *= _MULTIPLIERS[0]
    mixed ^= mixed >> _SHIFT
    mixed *= _MULTIPLIERS[1]
    mixed ^= mixed >> _SHIFT
    mixed *= _MULTIPLIERS[0]
    mixed >>= _SHIFT
    mixed *= radix  # a 32-bit hash times the radix, shifted: uniform below the radix without a division
    mixed >>= _SHIFT
    target += mixed
    target -= radix * (target >= radix)
