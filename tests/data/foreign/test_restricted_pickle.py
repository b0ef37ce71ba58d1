from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.data.foreign.restricted_pickle import read_pairs
from modlib.runtime.errors import DataError

WHERE = Path("some.pbin")
int64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(int64, int64), max_size=20), st.integers(2, 5))
def test_every_protocol_of_a_list_of_pairs(pairs: list[tuple[int, int]], protocol: int) -> None:
    data = pickle.dumps([(a, b) for a, b in pairs], protocol)
    assert read_pairs(data, WHERE).tolist() == [list(pair) for pair in pairs]


@pytest.mark.slow
def test_more_pairs_than_a_batch_of_the_pickler() -> None:
    pairs = [(300 * number, number) for number in range(70_001)]  # batches of 1,000; the last has one alone
    for protocol in (2, 4):
        assert read_pairs(pickle.dumps(pairs, protocol), WHERE).tolist() == [list(pair) for pair in pairs]


INSTRUCTIONS = [
    b"K\x07",
    b"M\x01\x02",
    b"J\xfe\xff\xff\xff",
    b"\x8a\x01\xff",
    b"\x86",
    b"\x94",
    b"q\x00",
    b"(",
    b"e",
    b"a",
]


@given(st.lists(st.sampled_from([*INSTRUCTIONS, b"(K\x01K\x02\x86", b"K\x01K\x02\x86a", b"]", b"."]), max_size=12))
def test_what_is_read_is_what_pickle_reads(instructions: list[bytes]) -> None:
    data = b"\x80\x04]" + b"".join(instructions) + b"."
    try:
        found = read_pairs(data, WHERE)
    except DataError:
        return
    assert found.tolist() == [list(pair) for pair in pickle.loads(data)]


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
        with pytest.raises(DataError, match=r"must be a pickled list of pairs .* nothing of it was run"):
            read_pairs(pickle.dumps(hostile, protocol), WHERE)
        assert not canary.exists()
    pickle.loads(pickle.dumps(Runs(os.system, command)))  # the canary is alive: plain pickle runs it
    assert canary.exists()


def test_handwritten_instructions_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for data, name in (
        (b"cos\nsystem\n(S'touch " + bytes(canary) + b"'\ntR.", "GLOBAL"),
        (b"](S'touch " + bytes(canary) + b"'\nios\nsystem\n.", "STRING"),
        (b"]\x82\x01.", "EXT1"),
        (b"]Pelsewhere\n.", "PERSID"),
        (b"]h\x00.", "BINGET"),
        (b"](K\x01K\x02K\x03.", "BININT1"),
        (b"](K\x01K\x02\x86.", "STOP"),
        (b"]K\x01K\x02\x86.", "STOP"),
        (b"]e.", "APPENDS"),
        (b"]].", "EMPTY_LIST"),
    ):
        with pytest.raises(DataError, match=rf"its byte \d+ is the instruction {name}, which is refused there"):
            read_pairs(data, WHERE)
    with pytest.raises(DataError, match=r"its byte 0 is no instruction of a pickle"):
        read_pairs(b"\xff", WHERE)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [{0: 1}, [(0, 1), (1, 2, 3)], [(0, 1), 7], [(0, 1.5)], [(0, True)], [("0", 1)], [(0, 2**64)], [[0, 1]], (0, 1), 5],
)
def test_other_contents_are_refused(content: object) -> None:
    with pytest.raises(DataError, match=r"index of some.pbin must be a pickled list of pairs of integers; its byte"):
        read_pairs(pickle.dumps(content), WHERE)


def test_a_huge_memo_takes_no_memory() -> None:
    assert read_pairs(b"\x80\x04]r\xff\xff\xff\x7f.", WHERE).shape == (0, 2)  # Python's reserves 32 GB for it


def test_what_is_cut_off_or_added_is_refused() -> None:
    data = pickle.dumps([(0, 1), (1, 70_000)])
    for length in range(len(data)):
        with pytest.raises(DataError, match=r"must end with its list; it is truncated|must be a pickled list"):
            read_pairs(data[:length], WHERE)
    with pytest.raises(DataError, match=r"must end with its list; 3 bytes follow it"):
        read_pairs(data + b"abc", WHERE)
