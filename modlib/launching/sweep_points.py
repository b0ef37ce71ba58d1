"""The points of a sweep: what each sets, and what it is called."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from modlib.config.axes import Axis, Swept, short
from modlib.runtime.errors import ConfigError

MOST_POINTS = 1000
MOST_NAME = 60  # <sweep>.<point> is a W&B id, of at most 128 characters
MOST_KEYS = 24  # characters of all keys together, beyond which they are written without their components
DIGITS = 4  # of a drawn number: enough to tell points apart, few enough to read

Params = tuple[tuple[str, str], ...]  # (key, gin text of its value), in the order of the axes


def points_of(axes: Sequence[Axis], num_samples: int | None = None, seed: int = 0) -> list[Params]:
    """What each point sets: the grid of the listed axes, each cell with `num_samples` draws of the random ones.

    A draw depends on the seed, its number and its key alone: more samples add points, and every cell has the same.

    Raises:
        ConfigError: Too many points, or the number of samples is missing, wrong or without use.
    """
    listed = [axis for axis in axes if not axis.is_random]
    drawn = [swept for axis in axes if axis.is_random for swept in axis.swept]
    if drawn and num_samples is None:
        raise ConfigError(f"{drawn[0].key} is drawn at random; say how many points with --sweep_samples 8")
    if not drawn and num_samples is not None:
        raise ConfigError(
            f"--sweep_samples ({num_samples}) needs an axis that is drawn at random, as in "
            '--sweep "LR=loguniform(1e-5,1e-2)"; leave it out'
        )
    if num_samples is not None and num_samples < 1:
        raise ConfigError(f"--sweep_samples ({num_samples}) must be at least 1; set it to 1 or more")
    count = math.prod(len(axis.swept[0].choices) for axis in listed) * (num_samples or 1)
    if count > MOST_POINTS:
        raise ConfigError(
            f"number of points ({count}) must be at most {MOST_POINTS}; shorten an axis, draw at random, or make "
            "several sweeps of it"
        )
    order = {swept.key: place for place, swept in enumerate(swept for axis in axes for swept in axis.swept)}
    rows = [[[(one.key, text) for one, text in zip(axis.swept, row)] for row in _rows(axis)] for axis in listed]
    samples = [[(one.key, draw(one, seed, number)) for one in drawn] for number in range(num_samples or 1)]
    return [
        tuple(sorted(itertools.chain(*cell), key=lambda pair: order[pair[0]]))
        for cell in itertools.product(*rows, samples)
    ]


def _rows(axis: Axis) -> Iterable[tuple[str, ...]]:
    return zip(*(swept.choices for swept in axis.swept))


def draw(swept: Swept, seed: int, number: int) -> str:
    """The value of one random draw as gin text; the same on every machine and with every number of samples."""
    digest = hashlib.sha256(f"{seed}/{number}/{swept.key}".encode()).digest()
    share = (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)  # 0 <= share < 1
    if swept.distribution == "choice":
        return swept.choices[int(share * len(swept.choices))]
    assert swept.bounds is not None
    low, high = swept.bounds
    if swept.distribution == "integers":
        assert isinstance(low, int)
        return str(low + int(share * (high - low + 1)))
    if swept.distribution == "loguniform":
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    rounded = float(f"{value:.{DIGITS}g}")
    return short(float(min(max(rounded, low), high)))


def point_name(params: Params) -> str:
    """A run name for what a point sets, as `AdamW.lr-1e-4_SEED-0`; shortened with a hash where it would be too long.

    Whether the keys are written in full depends on the keys alone, so that all points of a sweep are called alike.
    """
    keys = [key for key, _ in params]
    brief = [key.rpartition(".")[2] for key in keys]
    if sum(map(len, keys)) > MOST_KEYS and len(set(brief)) == len(brief):
        keys = brief
    name = "_".join(f"{_plain(key)}-{_plain(_brief(text))}" for key, (_, text) in zip(keys, params)).lstrip("._-")
    return name if name and len(name) <= MOST_NAME else with_hash(name, params)


def with_hash(name: str, params: Params) -> str:
    """A name that no other point has, whatever the order of the axes."""
    digest = hashlib.sha256(label(tuple(sorted(params))).encode()).hexdigest()[:8]
    return f"{name[: MOST_NAME - 9].rstrip('._-') or 'point'}-{digest}"


def _plain(text: str) -> str:
    return re.sub("[^A-Za-z0-9._-]+", "-", text) or "empty"


def _brief(text: str) -> str:
    """A value without its quotes; of a path the last part."""
    if len(text) > 1 and text[0] == text[-1] in "'\"":
        text = text[1:-1]
        text = text.rstrip("/").rpartition("/")[2] or text
    return text.strip("@%[](){} ")


def point_names(cells: Sequence[Params], known: Mapping[frozenset[str], str]) -> list[str]:
    """A name for each point, different in every file system: the one that it has, else one of its values.

    Args:
        cells: What each point sets.
        known: The names of earlier points, by their bindings.
    """
    wanted = [point_name(params) for params in cells]
    counts = Counter(name.lower() for name in [*wanted, *known.values()])
    names = []
    for params, name in zip(cells, wanted):
        old = known.get(frozenset(bindings(params)))
        names.append(old or (with_hash(name, params) if counts[name.lower()] > 1 else name))
    return names


def bindings(params: Params) -> tuple[str, ...]:
    """What a point sets, as --gin_param takes it."""
    return tuple(f"{key}={text}" for key, text in params)


def label(params: Params) -> str:
    """What a point sets, for people."""
    return " ".join(bindings(params))


def grouped(wrong: Sequence[tuple[str, Sequence[str]]], num_points: int) -> list[str]:
    """The problems of all points, each text once, with the number of points that it concerns.

    Args:
        wrong: (name or values of a point, its problems).
        num_points: Of the sweep.
    """
    where: dict[str, list[str]] = {}
    for point, problems in wrong:
        for problem in dict.fromkeys(problems):
            where.setdefault(problem, []).append(point)
    texts = []
    for problem, points in where.items():
        first, *rest = problem.split("\n")
        at = f"all {num_points} points" if len(points) == num_points > 1 else some_of(points)
        texts.append("\n".join([f"{first} (at {at})", *rest]))
    return texts


def some_of(points: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(points[:most])
    if len(points) <= most:
        return shown if len(points) == 1 else f"{len(points)} points: {shown}"
    return f"{len(points)} points: {shown}, ..."
