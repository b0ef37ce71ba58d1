from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed.waiting_mask import WaitingMask
from modlib.runtime.errors import DataError

portions = st.lists(st.lists(st.booleans(), max_size=20), max_size=12)


def packed(portions: list[list[bool]]) -> bytes:
    bits = np.array([bit for portion in portions for bit in portion], np.bool_)
    return np.packbits(bits, bitorder="little").tobytes()


@given(portions, st.integers(1, 3))
@settings(max_examples=50)
def test_bits_in_any_portions(tmp_path: Path, portions: list[list[bool]], size: int) -> None:
    mask = WaitingMask(None, tmp_path)
    for portion in portions:
        mask.write(np.array(portion, np.bool_))
    assert b"".join(mask.chunks(size)) == packed(portions)
    assert list(tmp_path.iterdir()) == []
    mask.close()


@given(portions, st.data())
@settings(max_examples=50)
def test_it_is_taken_up_at_its_last_checkpoint_however_often(
    tmp_path: Path, portions: list[list[bool]], data: st.DataObject
) -> None:
    path = tmp_path / "mask"
    kept = data.draw(st.integers(0, len(portions)))
    mask = WaitingMask(path, tmp_path)
    for number, portion in enumerate(portions):
        if number == kept:
            mask.checkpoint()
        mask.write(np.array(portion, np.bool_))
    if kept == len(portions):
        mask.checkpoint()
    mask.close()  # what came after the checkpoint may be there in part
    num_tokens = sum(map(len, portions[:kept]))
    for _ in range(2):  # the second time, nothing was checkpointed since
        mask = WaitingMask(path, tmp_path, continued=num_tokens)
        for portion in portions[kept:]:
            mask.write(np.array(portion, np.bool_))
        assert b"".join(mask.chunks(4)) == packed(portions)
        mask.close()


def test_bytes_that_were_lost_are_noticed(tmp_path: Path) -> None:
    mask = WaitingMask(tmp_path / "mask", tmp_path)
    mask.write(np.ones(17, np.bool_))
    mask.checkpoint()
    mask.close()
    assert (tmp_path / "mask").read_bytes() == b"\xff\xff\x01"
    (tmp_path / "mask").write_bytes(b"\xff\xff")
    with pytest.raises(DataError) as caught:
        WaitingMask(tmp_path / "mask", tmp_path, continued=17)
    assert str(caught.value) == f"{tmp_path}/mask must hold at least 3 bytes; bytes were lost: start again"
