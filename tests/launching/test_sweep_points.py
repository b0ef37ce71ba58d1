"""What the points of a sweep set, and what they are called."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.config.axes import Swept, read_axes
from modlib.launching.sweep_points import MOST_NAME, bindings, draw, point_name, point_names, points_of
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import check_name


def cells(*flags: str, samples: int | None = None, seed: int = 0) -> list[str]:
    return [" ".join(bindings(params)) for params in points_of(read_axes(flags), samples, seed)]


def problem(*flags: str, samples: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        cells(*flags, samples=samples)
    return str(caught.value)


def test_several_axes_are_a_grid_and_the_last_changes_fastest() -> None:
    assert cells("A=[1,2]", "B=['x','y']") == ["A=1 B='x'", "A=1 B='y'", "A=2 B='x'", "A=2 B='y'"]


def test_zipped_bindings_change_together() -> None:
    assert cells("A=[1,2];B=[3,4]", "C=[5,6]") == ["A=1 B=3 C=5", "A=1 B=3 C=6", "A=2 B=4 C=5", "A=2 B=4 C=6"]


def test_every_cell_of_the_grid_has_the_same_draws() -> None:
    found = cells("LR=loguniform(1e-5,1e-2)", "SEED=[0,1]", samples=3)
    assert len(found) == 6
    assert [text.endswith("SEED=0") for text in found] == [True] * 3 + [False] * 3
    assert [text.split()[0] for text in found[:3]] == [text.split()[0] for text in found[3:]]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(-5, 5))
def test_more_samples_add_points_and_change_none(few: int, more: int, seed: int) -> None:
    flags = ("LR=loguniform(1e-5,1e-2)", "A=choice([1,2,3]);B=integers(0,9)")
    few, more = sorted((few, more))
    assert cells(*flags, samples=more, seed=seed)[:few] == cells(*flags, samples=few, seed=seed)


def test_draws_are_the_same_on_every_machine() -> None:
    assert cells("LR=loguniform(1e-5,1e-2)", "N=integers(1,100)", "A=choice(['x','y'])", samples=3, seed=1) == [
        "LR=2.403e-4 N=4 A='y'",
        "LR=0.002994 N=64 A='x'",
        "LR=1.397e-4 N=39 A='y'",
    ]


def test_another_seed_key_or_number_draws_something_else() -> None:
    swept, other = Swept("A", (), "uniform", (0, 1)), Swept("B", (), "uniform", (0, 1))
    drawn = {draw(swept, 0, 0), draw(swept, 1, 0), draw(swept, 0, 1), draw(other, 0, 0)}
    assert len(drawn) == 4


def test_one_axis_more_leaves_the_draws_of_the_others() -> None:
    alone = cells("A=uniform(0,1)", samples=5)
    assert [text.split()[0] for text in cells("A=uniform(0,1)", "B=uniform(0,1)", samples=5)] == alone


@given(
    st.sampled_from(["uniform", "loguniform", "integers"]),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.integers(0, 1000),
)
def test_draws_stay_within_their_bounds(kind: str, low: int, more: int, number: int) -> None:
    text = draw(Swept("A", (), kind, (low, low + more)), 0, number)
    value = float(text)
    assert low <= value <= low + more
    assert (kind == "integers") == text.isdecimal()
    assert len(text.rstrip("0").replace(".", "").lstrip("0")) <= 7 or kind == "integers" or value in (low, low + more)


def test_draws_have_their_distribution() -> None:
    uniform = [float(draw(Swept("A", (), "uniform", (0, 1)), 0, number)) for number in range(2000)]
    log = [math.log10(float(draw(Swept("A", (), "loguniform", (1e-4, 1)), 0, number))) for number in range(2000)]
    whole = [int(draw(Swept("A", (), "integers", (1, 4)), 0, number)) for number in range(2000)]
    assert abs(sum(uniform) / 2000 - 0.5) < 0.02
    assert abs(sum(log) / 2000 + 2) < 0.08
    assert {value: abs(whole.count(value) - 500) < 80 for value in (1, 2, 3, 4)} == dict.fromkeys((1, 2, 3, 4), True)
    assert set(whole) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("flags", "samples", "expected"),
    [
        (("A=uniform(0,1)",), None, "A is drawn at random; say how many points with --sweep_samples 8"),
        (("A=uniform(0,1)",), 0, "--sweep_samples (0) must be at least 1; set it to 1 or more"),
        (
            ("A=[1]",),
            4,
            "--sweep_samples (4) needs an axis that is drawn at random, as in "
            '--sweep "LR=loguniform(1e-5,1e-2)"; leave it out',
        ),
        (
            ("A=uniform(0,1)", "B=[1,2,3]"),
            334,
            "number of points (1002) must be at most 1000; shorten an axis, draw at random, or make "
            "several sweeps of it",
        ),
    ],
)
def test_the_number_of_points(flags: tuple[str, ...], samples: int | None, expected: str) -> None:
    assert problem(*flags, samples=samples) == expected


def test_a_grid_that_nobody_could_run_is_refused_at_once() -> None:
    axes = [f"A{number}=[{','.join(map(str, range(50)))}]" for number in range(12)]
    assert problem(*axes).startswith(f"number of points ({50**12}) must be at most 1000")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ((("AdamW.lr", "1e-4"), ("SEED", "0")), "AdamW.lr-1e-4_SEED-0"),
        ((("DATA", "'/data/my corpus.packed'"),), "DATA-my-corpus.packed"),
        ((("train.scheduler", "@LinearWarmupCosine"),), "train.scheduler-LinearWarmupCosine"),
        ((("AdamW.betas", "(0.9, 0.95)"), ("AdamW.weight_decay", "0.1")), "betas-0.9-0.95_weight_decay-0.1"),
        ((("a/Evaluator.every", "1"), ("b/Evaluator.every", "2")), "a-Evaluator.every-1_b-Evaluator.every-2"),
        ((("A", "-1"), ("_B", "''")), "A--1__B-empty"),
    ],
)  # fmt: skip
def test_names_are_made_of_the_values(params: tuple[tuple[str, str], ...], expected: str) -> None:
    assert point_name(params) == expected


def test_a_long_name_is_cut_and_has_a_hash() -> None:
    first = point_name((("A", repr("x" * 70)),))
    second = point_name((("A", repr("x" * 71)),))
    assert first != second
    assert len(first) == len(second) == MOST_NAME
    assert first.startswith("A-xxxx")


def test_names_that_would_be_the_same_get_a_hash_and_earlier_ones_are_kept() -> None:
    upper, lower = (("A", "'X'"),), (("A", "'x'"),)
    names = point_names([upper, lower], {})
    assert [name[:4] for name in names] == ["A-X-", "A-x-"]
    assert len({name.lower() for name in names}) == 2
    grown = point_names([upper, lower], {frozenset(["A='X'"]): "A-X"})
    assert grown == ["A-X", names[1]]


KEYS = st.from_regex(r"\A([a-zA-Z_]\w{0,20}/)?([A-Za-z_]\w{0,20}\.)?[A-Za-z_]\w{0,20}\Z")
TEXTS = st.one_of(st.text(string.printable, max_size=80).map(repr), st.floats().map(repr), st.integers().map(repr))


@given(st.lists(st.tuples(KEYS, TEXTS), min_size=1, max_size=5, unique_by=lambda pair: pair[0]))
@pytest.mark.slow
def test_every_name_can_be_a_folder_and_a_wandb_id(pairs: list[tuple[str, str]]) -> None:
    name = point_name(tuple(pairs))
    assert check_name(name) == name
    assert len(name) <= MOST_NAME


@given(st.lists(TEXTS, min_size=1, max_size=8, unique=True))
def test_different_points_have_different_names(texts: list[str]) -> None:
    names = point_names([(("A", text),) for text in texts], {})
    assert len({name.lower() for name in names}) == len(texts)
    assert all(check_name(name) for name in names)
