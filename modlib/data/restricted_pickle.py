"""Pickles of lists of pairs of integers, read without running anything that is in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from modlib.runtime.errors import DataError


class _NoClasses(pickle.Unpickler):
    """Knows no class or function by name, so a pickle has nothing to call."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and a list of numbers needs no such thing")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside itself")


def read_pairs(data: bytes, path: Path) -> npt.NDArray[np.int64]:
    """Pairs of integers, (n, 2), from the pickle of a list of tuples; nothing else is accepted, nothing is run.

    Memory: about 200 bytes per pair while it is read.

    Args:
        data: The pickle, whole and nothing behind it.
        path: Where it is from, for the errors.

    Raises:
        DataError: It is no such pickle, or holds anything but pairs of integers.
    """
    stream = io.BytesIO(data)
    try:
        pairs = _NoClasses(stream).load()
    except Exception as error:  # a pickle that was made up can end in any error
        raise DataError(
            f"index of {path} must be a pickled list of pairs of integers and is refused: "
            f"{error or type(error).__name__}"
        ) from error
    if stream.tell() != len(data):
        raise DataError(f"index of {path} must end with its list; {len(data) - stream.tell()} bytes follow it")
    if type(pairs) is not list:
        raise DataError(f"index of {path} ({type(pairs).__name__}) must be a list of pairs of integers; check the file")
    for number, pair in enumerate(pairs):
        if type(pair) not in (tuple, list) or len(pair) != 2 or type(pair[0]) is not int or type(pair[1]) is not int:
            raise DataError(f"entry {number} of the index of {path} must be a pair of integers; check the file")
    try:
        return np.array(pairs, np.int64).reshape(len(pairs), 2)
    except OverflowError as error:
        raise DataError(f"index of {path} must hold numbers below 2^63; check the file") from error
