from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.data.packed.pieces import document_batches
from modlib.data.rewriting import copying as rewriting
from modlib.data.rewriting.copying import gathered, provenance_beside, write_provenance
from modlib.runtime.errors import DataError

lengths_of_documents = st.lists(st.integers(0, 9), max_size=30)


@given(lengths_of_documents, st.integers(1, 12))
def test_batches_hold_every_document_once_and_no_more_than_asked_for(lengths: list[int], most: int) -> None:
    offsets = np.cumsum([0, *lengths])
    batches = list(document_batches(offsets, batch_tokens=most))
    assert [number for first, behind in batches for number in range(first, behind)] == list(range(len(lengths)))
    for first, behind in batches:
        assert behind - first == 1 or (sum(lengths[first:behind]) <= most and behind - first <= most)


@pytest.mark.parametrize("one_by_one", [-1, 3, 1000])
@given(lengths=lengths_of_documents, data=st.data())
def test_stretches_are_gathered_back_to_back(one_by_one: int, lengths: list[int], data: st.DataObject) -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    starts = data.draw(st.lists(st.integers(0, 900), min_size=len(lengths), max_size=len(lengths)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(rewriting, "_COPIED_ONE_BY_ONE", one_by_one)
        found = gathered(tokens, np.array(starts, np.int64), np.array(lengths, np.int64))
    assert found.dtype == tokens.dtype
    assert found.tolist() == [a + i for a, length in zip(starts, lengths, strict=True) for i in range(length)]


def test_where_provenance_is_kept_and_that_it_may_fail(tmp_path: Path) -> None:
    assert provenance_beside(tmp_path / "a.packed") == tmp_path / "a.packed.provenance.json"
    with pytest.raises(DataError, match=r"a.packed.provenance.json cannot be written: No such file or directory; free"):
        write_provenance(tmp_path / "nowhere" / "a.packed", None, "merge", {}, [])
