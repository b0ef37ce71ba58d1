"""What run.json says of a run's data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modlib.data.datasets.combined_dataset import CombinedDataset
from modlib.data.datasets.dummy_dataset import DummyDataset
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed.file import PackedFile
from modlib.training.contents import data_of
from modlib.training.evaluation import Evaluator
from modlib.training.record import surroundings


def test_every_packed_file_is_named_with_its_hash(small_corpus: Path) -> None:
    packed = partial(PackedDataset, path=str(small_corpus), seq_len=32)
    dummy = partial(DummyDataset, num_samples=4, seq_len=32, vocab_size=16)
    both = CombinedDataset(datasets=[packed, dummy])
    evaluators = [Evaluator(name="a", dataset=packed, every=1), Evaluator(name="b", dataset=dummy, every=1)]
    data = surroundings(data_of(both, evaluators))["data"]
    file = {"path": str(small_corpus), "sha256": PackedFile(small_corpus).sha256}
    assert [(one["use"], one["files"]) for one in data] == [("train", [file]), ("val/a", [file]), ("val/b", [])]
    assert [one["fingerprint"] for one in data] == [both.fingerprint, packed().fingerprint, dummy().fingerprint]
