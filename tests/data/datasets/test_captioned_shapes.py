"""Images of shapes: a pure function of (seed, split, index), true to their captions, and splits that share none."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import tokenizers

from modlib.data.datasets.captioned_shapes import (
    COLORS,
    END,
    PAD,
    RADII,
    SHAPES,
    START,
    TOKENS_PER_CAPTION,
    CaptionedShapes,
    Drawn,
    Scene,
    render,
    vocabulary,
)
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import ConfigError, DataError


def shapes(**changes: Any) -> CaptionedShapes:
    return CaptionedShapes(**{"num_samples": 400, **changes})


def color_at(image: np.ndarray, row: int, column: int) -> str:
    """The color whose hue is closest, whatever its brightness."""
    pixel = image[:, row, column].astype(float)
    distances = {
        name: min(np.abs(pixel - share * np.array(color)).sum() for share in (0.8, 0.85, 0.9, 0.95, 1.0))
        for name, color in COLORS.items()
    }
    return min(distances, key=distances.__getitem__)


def blobs(image: np.ndarray) -> list[tuple[float, float, int]]:
    """(row, column, pixels) of each connected region that is not background."""
    background = np.array([np.bincount(channel.ravel(), minlength=256).argmax() for channel in image])
    inside = np.abs(image.astype(int) - background[:, None, None]).sum(0) > 120
    found = []
    while inside.any():
        seed = tuple(np.argwhere(inside)[0])
        region, todo = [], [seed]
        inside[seed] = False
        while todo:
            row, column = todo.pop()
            region.append((row, column))
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if all(0 <= at < side for at, side in zip(near, inside.shape)) and inside[near]:
                    inside[near] = False
                    todo.append(near)
        rows, columns = np.array(region).T
        found.append((rows.mean(), columns.mean(), len(region)))
    return found


def test_a_sample_depends_on_seed_split_and_index_alone() -> None:
    first, again = shapes()[7], pickle.loads(pickle.dumps(shapes(num_samples=9)))[7]
    assert np.array_equal(first["image"], again["image"])
    assert first["caption"] == again["caption"]
    assert (first["image"].shape, first["image"].dtype, first["index"]) == ((3, 32, 32), np.uint8, 7)
    for other in (shapes(seed=1)[7], shapes()[8], shapes(split="held_out")[7]):
        assert not np.array_equal(first["image"], other["image"])


def test_samples_are_the_same_on_every_machine() -> None:
    sample = shapes()[4]
    assert sample["caption"] == "a small blue circle above a large yellow cross"
    assert int(sample["image"].astype(int).sum()) == 133769


def test_many_at_once_are_those_one_by_one() -> None:
    both = shapes().__getitems__(np.array([5, 2]))
    assert [sample["index"] for sample in both] == [5, 2]
    assert np.array_equal(both[0]["image"], shapes()[5]["image"])


def test_splits_share_no_caption_and_words_are_in_both() -> None:
    train = {shapes()[i]["caption"] for i in range(400)}
    held_out = {shapes(split="held_out")[i]["caption"] for i in range(400)}
    assert not train & held_out
    words = {word for caption in train for word in caption.split()}
    assert words == {word for caption in held_out for word in caption.split()}
    assert words == set(vocabulary()) - {PAD, START, END}


def test_one_caption_in_eight_is_held_out() -> None:
    drawn = [Drawn(size, color, shape) for size in RADII for color in COLORS for shape in SHAPES]
    scenes = [Scene(shape) for shape in drawn]
    scenes += [Scene(a, relation, b) for relation in ("left of", "above") for a in drawn for b in drawn]
    assert len({scene.caption for scene in scenes}) == 4656
    assert sum(scene.is_held_out for scene in scenes) / 4656 == pytest.approx(1 / 8, abs=0.015)


def test_the_image_shows_what_the_caption_says() -> None:
    for sample in (shapes(image_size=64)[i] for i in range(100)):
        words = sample["caption"].split()
        regions = blobs(sample["image"])
        assert len(regions) == (1 if len(words) == 4 else 2), sample["caption"]
        if len(words) > 4:
            axis = 1 if "left" in words else 0
            regions.sort(key=lambda region: region[axis])
            along, across = (abs(regions[1][at] - regions[0][at]) for at in (axis, 1 - axis))
            assert along > across, sample["caption"]
        for (row, column, _), color in zip(regions, (words[2], words[-2])):
            assert color_at(sample["image"], round(row), round(column)) == color


@pytest.mark.parametrize("shape", list(SHAPES))
def test_large_is_larger_than_small(shape: str) -> None:
    sizes = {
        size: [blobs(render(Scene(Drawn(size, "white", shape)), 64, random.Random(i)))[0][2] for i in range(20)]
        for size in RADII
    }
    assert max(sizes["small"]) < min(sizes["large"])


def test_tokens_are_the_captions_words_between_start_and_end() -> None:
    dataset = shapes()
    tokenizer = Tokenizer(dataset.tokenizer_path)
    assert tokenizer.fingerprint == dataset.tokenizer_fingerprint
    longest = 0
    for index in range(50):
        sample = dataset[index]
        start, *words, end = sample["tokens"].tolist()
        assert (start, end) == (tokenizer.token_id(START), tokenizer.token_id(END))
        assert tokenizer.encode(sample["caption"]) == words
        assert tokenizer.decode(words) == sample["caption"]
        longest = max(longest, len(words) + 1)
    assert longest == TOKENS_PER_CAPTION <= dataset.seq_len
    assert tokenizers.Tokenizer.from_file(str(dataset.tokenizer_path)).get_vocab_size() == len(vocabulary())


def test_what_a_dataset_says_of_itself() -> None:
    dataset = shapes()
    assert (len(dataset), dataset.num_tokens, dataset.num_documents) == (400, 4800, 400)
    assert 4 < dataset.bytes_per_token < 5
    prints = {shapes(**change).fingerprint for change in ({}, {"seed": 1}, {"split": "held_out"}, {"image_size": 24})}
    assert len(prints) == 4
    dataset.check_vocabulary(19)
    dataset.check_tokenizer(shapes(split="held_out").tokenizer_fingerprint)
    with pytest.raises(DataError, match=r"vocab_size \(18\) of the model must be at least the 19 words of"):
        dataset.check_vocabulary(18)
    with pytest.raises(DataError, match=r"tokenizer of captioned_shapes:train \(.*\) must be the tokenizer in use"):
        dataset.check_tokenizer("abc")
    with pytest.raises(IndexError, match=r"image \(400\) must be 0 to 399 of captioned_shapes:train"):
        dataset[400]


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        shapes(split="test", num_samples=0, image_size=8, seq_len=10)
    assert caught.value.problems == [
        "num_samples (0) must be at least 1; set it to 1 or more",
        "image_size (8) must be at least 16; set it to 16 or more",
        "seq_len (10) must be at least 11; set it to 11 or more",
        "split ('test') must be 'train' or 'held_out'",
    ]
