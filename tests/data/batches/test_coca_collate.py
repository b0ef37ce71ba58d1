"""Images normalised, captions shifted and padded, bad samples named or skipped."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from modlib.data.batches.coca_collate import CoCaCollator
from modlib.runtime.errors import ConfigError, DataError


def sample(given: list[float], **changes: Any) -> dict[str, Any]:
    return {"image": np.full((3, 4, 4), 255, np.uint8), "tokens": np.array(given), "index": 41} | changes


def test_captions_are_shifted_padded_and_masked() -> None:
    inputs, targets = CoCaCollator(seq_len=4, pad_id=9)([sample([1, 5, 6, 2]), sample([1, 2]), sample([1, 3, 4, 5, 2])])
    assert inputs["input_ids"].tolist() == [[1, 5, 6, 9], [1, 9, 9, 9], [1, 3, 4, 5]]
    assert targets.tolist() == [[5, 6, 2, -100], [2, -100, -100, -100], [3, 4, 5, 2]]
    assert inputs["attention_mask"].tolist() == [[True, True, True, False], [True, False, False, False], [True] * 4]
    assert {tensor.dtype for tensor in (inputs["input_ids"], targets)} == {torch.int64}
    assert all(tensor.is_contiguous() for tensor in (*inputs.values(), targets))


def test_images_are_normalised_float32() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    inputs, _ = CoCaCollator(seq_len=4, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))([sample([1, 2], image=image)])
    expected = (image / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 1.0, 2.0])[:, None, None]
    assert inputs["images"].dtype == torch.float32
    assert np.allclose(inputs["images"][0].numpy(), expected, atol=1e-6)
    floats, _ = CoCaCollator(seq_len=4)([sample([1, 2], image=image.astype(np.float64) / 255)])
    assert np.allclose(floats["images"][0].numpy(), (image / 255 - 0.5) / 0.5, atol=1e-6)


def test_nothing_is_shared_with_the_data() -> None:
    given = sample([1, 5, 2])
    inputs, targets = CoCaCollator(seq_len=4)([given])
    inputs["images"].zero_(), inputs["input_ids"].zero_(), targets.zero_()
    assert given["tokens"].tolist() == [1, 5, 2]
    assert (given["image"] == 255).all()


BAD = [
    ([1, 2, 3, 4, 5, 6], {}, r"caption tokens \(6,\) must be at least 2 and at most seq_len \+ 1 \(5\); shorten the"),
    ([1], {}, r"caption tokens \(1,\) must be at least 2"),
    ([1.0, 2.0], {}, r"caption tokens \(float64\) must be integers"),
    ([1, 2], {"image": np.zeros((4, 4), np.uint8)}, r"image \(4, 4\) of uint8 must be \(C, H, W\) of uint8 or floats"),
    ([1, 2], {"image": np.zeros((3, 4, 4), np.int64)}, r"image \(3, 4, 4\) of int64 must be \(C, H, W\)"),
    ([1, 2], {"image": np.full((3, 4, 4), np.nan)}, r"image must be finite, has NaN or Inf"),
    ([1, 2], {"image": np.zeros((3, 4, 5), np.uint8)}, r"image \(3, 4, 5\) of uint8 must be as the batch's first"),
]


@pytest.mark.parametrize(("tokens", "changes", "message"), BAD)
def test_a_bad_sample_is_named(tokens: list[int], changes: dict[str, Any], message: str) -> None:
    good = sample([1, 3, 2], index=40)
    with pytest.raises(DataError, match=f"sample 41: {message}.*; or set CoCaCollator.skip_bad_samples = True"):
        CoCaCollator(seq_len=4)([good, sample(tokens, **changes)])


@pytest.mark.parametrize(("tokens", "changes", "message"), BAD)
def test_a_bad_sample_is_skipped_when_told_to(
    tokens: list[int], changes: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    collate, good = CoCaCollator(seq_len=4, skip_bad_samples=True), sample([1, 3, 2], index=40)
    with caplog.at_level(logging.WARNING, "modlib"):
        inputs, targets = collate([good, sample(tokens, **changes)])
    assert caplog.messages[0].startswith("skipped sample 41: ")
    assert targets[1].tolist() == [-100] * 4
    assert not inputs["attention_mask"][1].any()
    alone, alone_targets = collate([good])
    assert targets[0].tolist() == alone_targets[0].tolist()
    assert torch.equal(inputs["images"][0], alone["images"][0])


def test_without_an_index_the_place_in_the_batch_is_named() -> None:
    nameless = {"image": np.zeros((3, 4, 4), np.uint8), "tokens": [1]}
    with pytest.raises(DataError, match=r"sample 1 of the batch: caption tokens"):
        CoCaCollator(seq_len=4)([sample([1, 2]), nameless])


def test_what_is_no_sample_is_named_or_skipped() -> None:
    text = r"sample 1 of the batch: what it has \(ndarray\) must include image and tokens; use a dataset of images and"
    with pytest.raises(DataError, match=text):
        CoCaCollator(seq_len=4)([sample([1, 2]), np.arange(5)])
    captionless = {"image": np.zeros((3, 4, 4), np.uint8), "index": 7}
    with pytest.raises(DataError, match=r"sample 7: what it has \(image, index\) must include tokens; use a dataset"):
        CoCaCollator(seq_len=4)([captionless])
    _, targets = CoCaCollator(seq_len=4, skip_bad_samples=True)([captionless, sample([1, 2])])
    assert targets.tolist() == [[-100] * 4, [2, -100, -100, -100]]


def test_a_batch_without_a_good_sample_is_skipped_whole() -> None:
    """By the shape of its own images, or else of those that came before."""
    collate = CoCaCollator(seq_len=4, skip_bad_samples=True)
    inputs, targets = collate([sample([1]), sample([1])])
    assert (targets == -100).all()
    assert inputs["images"].shape == (2, 3, 4, 4)
    assert (inputs["images"] == -1).all()  # black
    assert not inputs["attention_mask"].any()
    flat = sample([1, 2], image=np.zeros((4, 4), np.uint8))
    again, targets = collate([flat])
    assert (targets == -100).all()
    assert torch.equal(again["images"], inputs["images"][:1])
    with pytest.raises(DataError, match=r"samples \(1\) must have at least one that can be used; see the warnings"):
        CoCaCollator(seq_len=4, skip_bad_samples=True)([flat])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"seq_len \(0\) must be at least 1; set SEQ_LEN"):
        CoCaCollator(seq_len=0)
    with pytest.raises(ConfigError, match=r"std \(0.0\) must be above 0 for each channel"):
        CoCaCollator(seq_len=4, std=0.0)
    with pytest.raises(DataError, match=r"image channels \(3\) must be as many as mean \(2\) and std \(1\)"):
        CoCaCollator(seq_len=4, mean=(0.1, 0.2))([sample([1, 2])])
