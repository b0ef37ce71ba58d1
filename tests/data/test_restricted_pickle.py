from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.data.restricted_pickle import read_pairs
from modlib.runtime.errors import DataError

WHERE = Path("some.pbin")
int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(int64, int64), max_size=20), st.integers(0, 5))
def test_every_protocol_of_a_list_of_pairs(pairs: list[tuple[int, int]], protocol: int) -> None:
    assert read_pairs(pickle.dumps(pairs, protocol), WHERE).tolist() == [list(pair) for pair in pairs]


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *words: Any) -> None:
        self.call = (function, words)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    command = f"touch {canary}"
    for hostile in (
        Runs(os.system, command),
        [(0, 4), (4, Runs(os.system, command))],
        [(0, Runs(eval, f"open({str(canary)!r}, 'w')"))],
        [Runs(getattr, Runs(__import__, "os"), "system")],
    ):
        data = pickle.dumps(hostile, protocol)
        with pytest.raises(DataError, match=r"index of some.pbin must be a pickled list .* is refused: it names "):
            read_pairs(data, WHERE)
        assert not canary.exists()
    pickle.loads(pickle.dumps(Runs(os.system, command)))  # the canary is no dead bird: plain pickle runs it
    assert canary.exists()


def test_handwritten_opcodes_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for data in (
        b"cos\nsystem\n(S'touch " + bytes(canary) + b"'\ntR.",  # GLOBAL, REDUCE
        b"(S'touch " + bytes(canary) + b"'\nios\nsystem\n.",  # INST
        b"\x82\x01.",  # EXT1
        b"Pelsewhere\n.",  # PERSID
        b"(lp0\ng0\na",  # no end
        b"",
        b"not a pickle at all",
    ):
        with pytest.raises(DataError, match="must be a pickled list of pairs of integers and is refused"):
            read_pairs(data, WHERE)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: 1}, r"index of some.pbin \(dict\) must be a list of pairs of integers"),
        ([(0, 1), (1, 2, 3)], r"entry 1 of the index of some.pbin must be a pair of integers"),
        ([(0, 1), 7], r"entry 1 of"),
        ([(0, 1.5)], r"entry 0 of"),
        ([(0, True)], r"entry 0 of"),
        ([("0", 1)], r"entry 0 of"),
        ([(0, 2**64)], r"must hold numbers below 2\^63"),
    ],
)
def test_other_contents_are_refused(content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(pickle.dumps(content), WHERE)


def test_what_follows_the_list_is_refused() -> None:
    with pytest.raises(DataError, match=r"must end with its list; 3 bytes follow it"):
        read_pairs(pickle.dumps([(0, 1)]) + b"abc", WHERE)
