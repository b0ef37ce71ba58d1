"""What holds for every dataset: the Protocol, samples that a collator takes, workers, and whole runs that stop."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modlib.data.collate import LMCollator
from modlib.data.combined_dataset import CombinedDataset
from modlib.data.dataset import Dataset
from modlib.data.dummy_dataset import DummyDataset
from modlib.data.jsonl_dataset import JSONLDataset
from modlib.data.loader import DataLoader
from modlib.data.loss_masking import LossMaskingCollator
from modlib.data.mixture_dataset import MixtureDataset
from modlib.data.packed_dataset import PackedDataset
from modlib.data.packed_documents import PackedDocuments
from modlib.data.packing import pack_documents
from modlib.data.sampler import ShuffledSampler
from modlib.data.tokenizer import Tokenizer
from modlib.models.gpt2 import GPT2
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import DataError
from tests.data.conftest import SENTENCES

SEQ_LEN = 12
NAMES = ["packed", "packed_documents", "jsonl", "dummy", "combined", "mixture"]
Make = Callable[[str], Any]


@pytest.fixture
def make(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(name): one dataset of each kind, of the same texts."""
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    texts = [*SENTENCES, "short", "", "[answer]"] * 4
    packed, lines = tmp_path / "data.packed", tmp_path / "data.jsonl"
    pack_documents(texts, packed, tokenizer)
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    load = functools.partial(Tokenizer, tokenizer.path)
    choices: dict[str, Callable[[], Any]] = {
        "packed": functools.partial(PackedDataset, path=str(packed), seq_len=SEQ_LEN),
        "packed_documents": functools.partial(
            PackedDocuments, path=str(packed), seq_len=SEQ_LEN, long_documents="cut", packing="best_fit"
        ),
        "jsonl": functools.partial(JSONLDataset, jsonl_path=str(lines), tokenizer=load, seq_len=SEQ_LEN),
        "dummy": functools.partial(DummyDataset, num_samples=40, seq_len=SEQ_LEN, vocab_size=300),
    }
    sources = list(choices.values())
    choices["combined"] = functools.partial(CombinedDataset, datasets=sources)
    choices["mixture"] = functools.partial(MixtureDataset, datasets=sources, weights=[4, 3, 2, 1])
    return lambda name: choices[name]()


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_protocol(make: Make, name: str) -> None:
    dataset: Dataset = make(name)
    assert dataset.seq_len == SEQ_LEN
    assert dataset.fingerprint == make(name).fingerprint
    assert 0 < dataset.num_tokens <= len(dataset) * SEQ_LEN
    assert dataset.num_documents
    assert dataset.bytes_per_token > 0
    dataset.check_vocabulary(320)
    with pytest.raises(DataError, match="vocab_size"):
        dataset.check_vocabulary(50)


@pytest.mark.parametrize("name", NAMES)
def test_samples_alone_and_together_are_the_same(make: Make, name: str) -> None:
    dataset = make(name)
    count = len(dataset)
    inputs, targets = LMCollator()(dataset.__getitems__(np.arange(count)))
    assert inputs.shape == targets.shape == (count, SEQ_LEN)
    alone = LMCollator()([dataset[index] for index in range(count)])
    backwards = LMCollator()([dataset[index - count] for index in range(count)])
    assert same(alone, (inputs, targets))
    assert same(backwards, (inputs, targets))
    assert same(LMCollator()(pickle.loads(pickle.dumps(dataset)).__getitems__(range(count))), (inputs, targets))
    if name != "mixture":
        assert int((targets != -100).sum()) == dataset.num_tokens


@pytest.mark.parametrize("name", NAMES)
def test_loader_stops_and_goes_on(make: Make, name: str) -> None:
    """Batches from a later step, loaded by forked workers, are those of one that never stopped."""

    def loader(num_workers: int) -> DataLoader:
        dataset = make(name)
        sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
        return DataLoader(
            dataset=dataset, sampler=sampler, collate=LMCollator(), micro_batch_size=8, num_workers=num_workers
        )

    with loader(0) as whole, loader(1) as resumed:
        batches = whole.iterate()
        steps = [next(batches)[0] for _ in range(8)]  # across epochs
        again = resumed.iterate(5)
        for step in (5, 6, 7):
            assert same(next(again)[0], steps[step])


@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_trains_on_it(make: Make, tokenizer: Tokenizer, name: str, masking: bool) -> None:
    collate: Any = LMCollator()
    if masking:
        collate = LossMaskingCollator(
            collate=LMCollator, tokenizer=lambda: tokenizer, begin_token="[", end_token="]", on_bad_row="skip"
        )
    dataset = make(name)
    inputs, targets = collate(dataset.__getitems__(range(len(dataset))))
    torch.manual_seed(0)
    model = GPT2(vocab_size=320, seq_len=SEQ_LEN, num_layers=1, num_heads=2, dim=16)
    loss = CLMCrossEntropyLoss()
    before = loss(model(inputs), targets)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            parameter -= 0.05 * parameter.grad / max(int((targets != -100).sum()), 1)
    assert loss(model(inputs), targets) < before or not (targets != -100).any()
