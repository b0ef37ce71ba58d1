"""Images of coloured shapes with their captions, drawn on the fly: image-caption pairs that need no download."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.cache import writable_cache
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.seeds import derive

Array = npt.NDArray[Any]

RECIPE = "captioned shapes 1"  # changes when the same arguments would give other samples
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 220, 50),
    "purple": (160, 50, 200),
    "white": (240, 240, 240),
}
RADII = {"small": (0.13, 0.15), "large": (0.20, 0.23)}  # shares of the image's size
RELATIONS = {"left of": 1, "above": 0}  # of the first to the second shape: the axis (row 0, column 1) they lie along
GAP = 0.04  # least distance between two shapes, as a share of the image's size
ONE_SHAPE = 0.25  # share of images with only one
HELD_OUT_ONE_IN = 8
PAD, START, END = "<pad>", "<start>", "<end>"
TOKENS_PER_CAPTION = 11  # of the longest: ten words and the end


def _circle(rows: Array, columns: Array, radius: float) -> Array:
    return np.sqrt(rows**2 + columns**2) - radius


def _square(rows: Array, columns: Array, radius: float) -> Array:
    return np.maximum(np.abs(rows), np.abs(columns)) - radius


def _triangle(rows: Array, columns: Array, radius: float) -> Array:
    """Point up: bounded by the base below, and by two sides with normals of slope 1/2."""
    sides = (2.0 * np.abs(columns) - rows - radius) / np.sqrt(5.0)
    return np.maximum(rows - 0.8 * radius, sides)


def _cross(rows: Array, columns: Array, radius: float) -> Array:
    arm = 0.33 * radius
    upright = np.maximum(np.abs(rows) - radius, np.abs(columns) - arm)
    level = np.maximum(np.abs(columns) - radius, np.abs(rows) - arm)
    return np.minimum(upright, level)


SHAPES: dict[str, Callable[[Array, Array, float], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""Signed distance in pixels from the edge, negative inside, of offsets from the centre and a radius."""


@dataclass(frozen=True)
class Drawn:
    """One shape of an image.

    Args:
        size: "small" or "large".
        color: A key of COLORS.
        shape: A key of SHAPES.
    """

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a caption says: one shape, or two and how they lie.

    Each arrangement has one caption: the shape further left, or further up, is named first.

    Args:
        first: The shape named first.
        relation: A key of RELATIONS; None with one shape.
        second: The other shape.
    """

    first: Drawn
    relation: str | None = None
    second: Drawn | None = None

    @property
    def caption(self) -> str:
        """In words, such as "a small red circle left of a large blue square"."""
        return str(self.first) if self.second is None else f"{self.first} {self.relation} {self.second}"

    @property
    def is_held_out(self) -> bool:
        """Whether no training image has this caption; never with one shape, so that training sees each of them."""
        return self.second is not None and derive(0, RECIPE, "held out", self.caption) % HELD_OUT_ONE_IN == 0


@component("dataset", "captioned_shapes")
class CaptionedShapes:
    """Images of one or two coloured shapes, and captions that say which and how they lie.

    A sample is a pure function of (seed, split, index). Four shapes, six colours, two sizes and two relations give 4656
    captions. One in eight of those with two shapes is in no training image, and held-out images have only these, so
    they test whether what was learned is put together anew. Sizes within "small" and "large", positions, brightness
    and background vary from image to image.

    Args:
        split: "train", or "held_out" for captions that training never sees.
        num_samples: Images in one epoch.
        image_size: Height and width in pixels, at least 16.
        seq_len: Targets per sample; captions are at most 11 (10 words and the end).
        seed: Of the images.

    Raises:
        ConfigError: A number out of its range.
    """

    def __init__(
        self,
        *,
        split: Literal["train", "held_out"] = "train",
        num_samples: int,
        image_size: int = 32,
        seq_len: int = 12,
        seed: int = 0,
    ) -> None:
        problems = [
            f"{name} ({value}) must be at least {least}; set it to {least} or more"
            for name, value, least in (
                ("num_samples", num_samples, 1),
                ("image_size", image_size, 16),
                ("seq_len", seq_len, TOKENS_PER_CAPTION),
            )
            if value < least
        ]
        if split not in ("train", "held_out"):
            problems.append(f"split ({split!r}) must be 'train' or 'held_out'")
        if problems:
            raise ConfigError(problems)
        self.split, self.num_samples, self.image_size, self.seq_len, self.seed = (
            split, num_samples, image_size, seq_len, seed,
        )  # fmt: skip
        self.name = f"captioned_shapes:{split}"

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: "image" (3, S, S) uint8, "tokens" (n,) int64 from <start> to <end>, its "caption" and "index".

        Raises:
            IndexError: index is not in [0, num_samples).
        """
        if not 0 <= index < self.num_samples:
            raise IndexError(f"image ({index}) must be 0 to {self.num_samples - 1} of {self.name}")
        chance = random.Random(derive(self.seed, RECIPE, self.split, int(index)))
        scene = draw_scene(chance)
        while scene.is_held_out != (self.split == "held_out"):
            scene = draw_scene(chance)
        words = vocabulary()
        tokens = [words[word] for word in (START, *scene.caption.split(), END)]
        return {
            "image": render(scene, self.image_size, chance),
            "tokens": np.array(tokens, np.int64),
            "caption": scene.caption,
            "index": int(index),
        }

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> list[dict[str, Any]]:
        """Many samples at once."""
        return [self[int(index)] for index in indices]

    @property
    def fingerprint(self) -> str:
        """Changes when a sample changes; the same on every machine."""
        return f"{RECIPE}/{self.split}/samples={self.num_samples}/size={self.image_size}/seed={self.seed}"

    @property
    def num_tokens(self) -> int:
        """Target positions in one epoch, padding included."""
        return self.num_samples * self.seq_len

    @property
    def num_documents(self) -> int:
        """Captions in one epoch."""
        return self.num_samples

    @cached_property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of caption per target, of the first 256 captions."""
        samples = [self[index] for index in range(min(256, self.num_samples))]
        characters = sum(len(sample["caption"]) for sample in samples)
        return characters / sum(len(sample["tokens"]) - 1 for sample in samples)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer of words; see `tokenizer_path`."""
        from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint

        return tokenizer_fingerprint(tokenizer_json())

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json of the captions' words, written to the cache when it is not there.

        Raises:
            DataError: No cache folder can be written.
        """
        path = writable_cache() / f"captioned_shapes-{self.tokenizer_fingerprint[:16]}.tokenizer.json"
        if not path.is_file():
            durable.atomic_write_text(path, tokenizer_json())
        return path

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse a model with fewer token ids than there are words.

        Raises:
            DataError: vocab_size is too small.
        """
        if vocab_size < len(vocabulary()):
            raise DataError(
                f"vocab_size ({vocab_size}) of the model must be at least the {len(vocabulary())} words of "
                f"{self.name}; set it to {len(vocabulary())} or more"
            )

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse another tokenizer than that of the captions' words.

        Raises:
            DataError: The fingerprints differ.
        """
        if fingerprint != self.tokenizer_fingerprint:
            raise DataError(
                f"tokenizer of {self.name} ({self.tokenizer_fingerprint[:12]}) must be the tokenizer in use "
                f"({fingerprint[:12]}); use CaptionedShapes for training and evaluation"
            )


def draw_scene(chance: random.Random) -> Scene:
    """Any scene; each choice equally likely."""

    def choose(options: Sequence[str]) -> str:
        return options[int(chance.random() * len(options))]  # unlike choice(), the same in every Python version

    def shape() -> Drawn:
        return Drawn(choose(list(RADII)), choose(list(COLORS)), choose(list(SHAPES)))

    first = shape()
    return Scene(first) if chance.random() < ONE_SHAPE else Scene(first, choose(list(RELATIONS)), shape())


def render(scene: Scene, image_size: int, chance: random.Random) -> npt.NDArray[np.uint8]:
    """Draw a scene with smooth edges: (3, S, S), red, green and blue.

    Two shapes do not touch, and lie further apart along their relation's axis than along the other.

    Args:
        scene: What is to be seen.
        image_size: S, in pixels.
        chance: Where sizes, positions and brightness come from.
    """
    background = np.array([chance.uniform(0, 60) for _ in range(3)])
    image = np.broadcast_to(background[:, None, None], (3, image_size, image_size))
    rows, columns = np.meshgrid(*[np.arange(image_size) + 0.5] * 2, indexing="ij")
    drawn = [shape for shape in (scene.first, scene.second) if shape is not None]
    radii = [chance.uniform(*RADII[shape.size]) * image_size for shape in drawn]
    for shape, radius, (row, column) in zip(drawn, radii, _places(scene, radii, image_size, chance), strict=True):
        color = np.array(COLORS[shape.color]) * chance.uniform(0.8, 1.0)
        inside = np.clip(0.5 - SHAPES[shape.shape](rows - row, columns - column, radius), 0.0, 1.0)
        image = image + inside * (color[:, None, None] - image)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _places(scene: Scene, radii: Sequence[float], size: int, chance: random.Random) -> list[tuple[float, float]]:
    """The centre (row, column) of each shape, whole within the image."""
    if scene.relation is None:
        return [(chance.uniform(radii[0], size - radii[0]), chance.uniform(radii[0], size - radii[0]))]
    near, far = radii
    apart = near + far + GAP * size
    room = size - near - far - apart  # left over along the axis when both are at the edges and close to each other
    before, after = sorted((chance.uniform(0, room), chance.uniform(0, room)))
    along = (near + before, near + apart + after)
    distance = along[1] - along[0]
    first = chance.uniform(near, size - near)
    second = min(max(first + chance.uniform(-0.5, 0.5) * distance, far), size - far)
    if RELATIONS[scene.relation] == 1:
        return [(first, along[0]), (second, along[1])]
    return [(along[0], first), (along[1], second)]


@cache
def vocabulary() -> dict[str, int]:
    """Every word of the captions, and the three tokens around them, with its id."""
    relations = itertools.chain.from_iterable(relation.split() for relation in RELATIONS)
    words = (PAD, START, END, "a", *RADII, *COLORS, *SHAPES, *relations)
    return {word: number for number, word in enumerate(words)}


@cache
def tokenizer_json() -> str:
    """The tokenizer of these words as the text of a tokenizer.json."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary(), unk_token=PAD))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, START, END])
    return str(tokenizer.to_str(pretty=True))
