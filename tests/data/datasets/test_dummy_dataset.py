from __future__ import annotations

import pickle

import numpy as np
import pytest

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.dummy_dataset import DummyDataset
from modlib.runtime.errors import ConfigError, DataError

SAMPLES = {
    "images": {"shape": (2, 3), "dtype": "float32"},
    "text": {"shape": (50,), "dtype": "uint8", "high": 7},
    "label": {"shape": (), "dtype": "int64"},
}


def test_windows_of_ids_are_a_function_of_seed_and_index() -> None:
    dataset = DummyDataset(num_samples=100, seq_len=16, vocab_size=50)
    rows = dataset.__getitems__([3, 99, 3])
    assert rows.shape == (3, 17)
    assert rows.dtype == np.int64
    assert rows[0].tolist() == rows[2].tolist() == dataset[3].tolist() == dataset[-97].tolist()
    assert rows[0].tolist() != rows[1].tolist()
    assert DummyDataset(num_samples=100, seq_len=16, vocab_size=50, seed=1)[3].tolist() != rows[0].tolist()
    again = pickle.loads(pickle.dumps(dataset))
    assert again[3].tolist() == rows[0].tolist()
    assert again.fingerprint == dataset.fingerprint
    inputs, targets = LMCollator()(rows)
    assert (inputs.shape, targets.shape) == ((3, 16), (3, 16))


def test_ids_are_the_generator_s_bits() -> None:
    """Pinned: Philox is specified bit by bit (Salmon et al. 2011), so that every machine draws the same."""
    found = DummyDataset(num_samples=3, seq_len=3, vocab_size=1000)[1]
    draws = np.random.Philox(key=0, counter=[0, 0, 0, 1]).random_raw(4)
    assert found.tolist() == [int(draw) % 1000 for draw in draws]


def test_ids_are_uniform() -> None:
    rows = DummyDataset(num_samples=1000, seq_len=99, vocab_size=10).__getitems__(range(1000))
    counts = np.bincount(rows.ravel(), minlength=10)
    assert len(counts) == 10
    assert abs(counts - 10_000).max() < 5 * np.sqrt(10_000)  # five standard deviations


def test_named_samples() -> None:
    dataset = DummyDataset(num_samples=10, seq_len=4, vocab_size=3, samples=SAMPLES)
    first, second = dataset.__getitems__([4, 5])
    assert {name: (array.shape, array.dtype.name) for name, array in first.items()} == {
        "images": ((2, 3), "float32"),
        "text": ((50,), "uint8"),
        "label": ((), "int64"),
    }
    assert first["text"].max() < 7
    assert first["label"] in (0, 1, 2)
    assert all(np.array_equal(array, dataset[4][name]) for name, array in first.items())
    assert not np.array_equal(first["images"], second["images"])
    values = np.stack([sample["images"] for sample in DummyDataset(num_samples=2000, seq_len=1, samples={
        "images": SAMPLES["images"]}).__getitems__(range(2000))])  # fmt: skip
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_what_is_said_about_it() -> None:
    dataset = DummyDataset(num_samples=10, seq_len=4, vocab_size=256)
    assert (len(dataset), dataset.num_tokens, dataset.num_documents) == (10, 40, 10)
    assert dataset.bytes_per_token == 1.0
    assert dataset.tokenizer_fingerprint == ""
    assert dataset.tokenizer_path is None
    dataset.check_vocabulary(256)
    with pytest.raises(DataError, match=r"vocab_size of DummyDataset \(256\) must be at most the model's .* \(255\)"):
        dataset.check_vocabulary(255)
    with pytest.raises(IndexError, match=r"sample \(10\) must be below the 10 samples of dummy"):
        dataset[10]


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        DummyDataset(num_samples=0, seq_len=0, seed=-1)
    assert caught.value.problems == [
        "num_samples (0) must be at least 1; set it to 1 or more",
        "seq_len (0) must be at least 1; set it to 1 or more",
        "seed (-1) must be at least 0; set it to 0 or more",
        "vocab_size (None) must be given without samples; set DummyDataset.vocab_size",
    ]
    with pytest.raises(ConfigError) as caught:
        DummyDataset(num_samples=1, seq_len=1, samples={
            "a": {"shape": (2,), "dtype": "float16"}, "b": {"shape": (0,), "dtype": "float32"},
            "c": {"shape": (2,), "dtype": "uint8", "high": 257}, "d": {"shape": (2,), "dtype": "float32", "low": 1},
        })  # fmt: skip
    assert caught.value.problems == [
        "dtype of samples['a'] ('float16') must be one of float32, float64, uint8, int32, int64; name one",
        "shape of samples['b'] ((0,)) must be a tuple of sizes of at least 1; e.g. (3, 8, 8)",
        "high of samples['c'] (257) must be 1 to 256 for uint8; set it",
        "samples['d'] has no field 'low'; it may have shape, dtype, high",
    ]
