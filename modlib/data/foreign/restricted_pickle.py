"""Pickles of lists of pairs of integers, read without Python's unpickler: there is nothing in them to run.

A pickle is a program for a small machine, and some of its instructions import and call functions. This reader knows
only those that make a list of pairs of integers, in the one order in which pickling such a list writes them (protocols
2 to 5), and refuses every other byte. Its memory is 16 bytes per pair, whatever the pickle says.
"""

from __future__ import annotations

import pickletools
from array import array
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modlib.runtime.errors import DataError

_PROTO, _FRAME, _STOP = 0x80, 0x95, 0x2E
_EMPTY_LIST, _MARK, _APPEND, _APPENDS, _TUPLE2 = 0x5D, 0x28, 0x61, 0x65, 0x86
_INTEGERS = {0x4B: (1, False), 0x4D: (2, False), 0x4A: (4, True)}  # BININT1, BININT2, BININT: bytes, signed
_LONG1 = 0x8A
_REMEMBER = {0x94: 0, 0x71: 1, 0x72: 4}  # MEMOIZE, BINPUT, LONG_BINPUT: bytes that follow; what is kept is never asked
_SKIPPED = {_PROTO: 1, _FRAME: 8, **_REMEMBER}


def read_pairs(data: bytes, path: Path) -> npt.NDArray[np.int64]:
    """Pairs of integers, (n, 2), from the pickle of a list of tuples.

    Args:
        data: The pickle, whole and nothing behind it.
        path: Where it is from, for the errors.

    Raises:
        DataError: It is anything else; the message names the first byte that is refused.
    """
    values = array("q")
    pair: list[int] = []
    in_list = marked = False
    loose = 0  # pairs that are not yet put into the list
    place = 0
    try:
        while True:
            code = data[place]
            start, place = place, place + 1
            if code in _INTEGERS and in_list and len(pair) < 2:
                size, signed = _INTEGERS[code]
                pair.append(int.from_bytes(data[place : place + size], "little", signed=signed))
                place += size
            elif code == _LONG1 and in_list and len(pair) < 2 and data[place] <= 8:
                size = data[place]
                pair.append(int.from_bytes(data[place + 1 : place + 1 + size], "little", signed=True))
                place += 1 + size
            elif code == _TUPLE2 and len(pair) == 2:
                values.extend(pair)
                pair.clear()
                loose += 1
            elif code == _FRAME or (code in _SKIPPED and not pair):
                place += _SKIPPED[code]
            elif code == _EMPTY_LIST and not in_list:
                in_list = True
            elif code == _MARK and in_list and not (marked or loose or pair):
                marked = True
            elif code == _APPENDS and marked and not pair:
                marked, loose = False, 0
            elif code == _APPEND and loose == 1 and not (marked or pair):
                loose = 0
            elif code == _STOP and in_list and not (marked or loose or pair):
                break
            else:
                raise _refused(path, data, start)
    except IndexError:
        raise DataError(f"index of {path} ({len(data)} bytes) must end with its list; it is truncated") from None
    if place != len(data):
        raise DataError(f"index of {path} must end with its list; {len(data) - place} bytes follow it")
    return np.frombuffer(values, np.int64).reshape(-1, 2) if values else np.zeros((0, 2), np.int64)


def _refused(path: Path, data: bytes, place: int) -> DataError:
    known = next((one for one in pickletools.opcodes if one.code == chr(data[place])), None)
    what = "no instruction of a pickle" if known is None else f"the instruction {known.name}"
    return DataError(
        f"index of {path} must be a pickled list of pairs of integers; its byte {place} is {what}, which is refused "
        "there: nothing of it was run; make the file again"
    )
