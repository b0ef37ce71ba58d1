"""The axes of a sweep: what may be written, what it means, and the texts for what may not."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.components import SHIPPED
from modlib.config.axes import Axis, Swept, parse_axes, read_axes, short
from modlib.runtime.errors import ConfigError

SWEEPS = sorted((SHIPPED / "gin_configs" / "sweeps").glob("*.gin"))


def axis(text: str) -> Axis:
    (found,) = read_axes([text])
    return found


def problem(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_axes(flags)
    return str(caught.value)


def test_a_list_of_values() -> None:
    found = axis("AdamW.lr=[1e-4, 0.0003 ,1]")
    assert found == Axis((Swept("AdamW.lr", ("1e-4", "3e-4", "1")),), "--sweep #1")
    assert not found.is_random
    assert str(found) == "AdamW.lr=[1e-4, 3e-4, 1]"


def test_values_are_gin_values() -> None:
    found = axis(
        """A.b = ('x', None, True, @GPT2, @s/B(), %LR, 2 * %LR, [1, 2.0], (0.9,), {'a': 1}, -3, float('inf'))"""
    )
    assert found.swept[0].choices == (
        "'x'", "None", "True", "@GPT2", "@s/B()", "%LR", "2 * %LR", "[1, 2.0]", "(0.9,)", "{'a': 1}", "-3", "1e999",
    )  # fmt: skip


def test_scopes_and_white_space() -> None:
    assert axis("  val/Evaluator.every = [ 1,\n 2, ]  # why").swept == (Swept("val/Evaluator.every", ("1", "2")),)


def test_zipped_lists_change_together() -> None:
    found = axis("LR=[1e-4,3e-4];WARMUP_STEPS=[10,10]")
    assert found.swept == (Swept("LR", ("1e-4", "3e-4")), Swept("WARMUP_STEPS", ("10", "10")))
    assert str(found) == "LR=[1e-4, 3e-4]; WARMUP_STEPS=[10, 10]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("LR=loguniform(1e-5, 1e-2)", Swept("LR", (), "loguniform", (1e-5, 1e-2))),
        ("LR=uniform(-1, 2 / 4)", Swept("LR", (), "uniform", (-1, 0.5))),
        ("N=integers(1, 2**5)", Swept("N", (), "integers", (1, 32))),
        ("A=choice(['x', @B, 1])", Swept("A", ("'x'", "@B", "1"), "choice")),
        ("A=choice((1, 1, 2),)", Swept("A", ("1", "1", "2"), "choice")),
    ],
)
def test_distributions(text: str, expected: Swept) -> None:
    found = axis(text)
    assert found.swept == (expected,)
    assert found.is_random
    assert axis(str(found)).swept == found.swept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", '--sweep #1: there is no axis in it; give one, as in --sweep "AdamW.lr=[1e-4,3e-4]"'),
        ("LR", '--sweep #1: expected \'=\' after LR; write --sweep "LR=[value, value]", or name a file'),
        ("=[1]", "--sweep #1: expected NAME=[value, value] or Component.parameter=[value, value], found ="),
        ("LR=", '--sweep #1: LR has no values; write --sweep "LR=[value, value]"'),
        ("LR=[]", '--sweep #1: LR has no values; write --sweep "LR=[value, value]"'),
        (
            "LR=1e-4",
            '--sweep #1: LR (1e-4) must be a list of values; write --sweep "LR=[1e-4]", or give one '
            'value to all points '
            'with --gin_param "LR=1e-4"',
        ),
        (
            "DATA=a.packed",
            '--sweep #1: DATA (a.packed) must be a list of values; write --sweep '
            '"DATA=[\'a.packed\']", or give one value '
            "to all points with --gin_param \"DATA='a.packed'\"",
        ),
        ("D=[a,'b']", "--sweep #1: a is not a value; strings need quotes: --sweep \"D=['a','b']\""),
        ("D=choice([a])", "--sweep #1: a is not a value; strings need quotes: --sweep \"D=choice(['a'])\""),
        ("D=[true]", "--sweep #1: true is not a value; write True"),
        (
            "D=[1,",
            "--sweep #1: a bracket is never closed; close it; in a shell, quote the whole axis: "
            '--sweep "AdamW.lr=[1e-4,3e-4]"',
        ),
        ("LR=[1,2],B=[3]", "--sweep #1: expected ';' or the end of the axis, found ,"),
        ("LR=[1 2]", "--sweep #1: expected ',' or ']', found 2"),
        ("LR=[1,1]", "--sweep #1: LR takes 1 twice; leave one out"),
        ("A=[1,1];B=[2,2]", "--sweep #1: A and B take 1 and 2 twice; leave one out"),
        ("A=[1];A=[2]", "--sweep #1: A is twice in one axis; leave one out"),
        (
            "A=[1,2];B=[1]",
            "--sweep #1: zipped lists must have equally many values (A 2 and B 1); give each its own "
            "--sweep for a grid",
        ),
        (
            "A=[1];B=uniform(0,1)",
            "--sweep #1: A and B are zipped, so all must be lists or all be drawn at random; give each its own --sweep "
            "to combine them",
        ),
        (
            "A=normal(0,1)",
            "--sweep #1: normal is no distribution to draw A from. Write one of uniform, loguniform, "
            "integers, choice",
        ),
        (
            "A=unifrom(0,1)",
            "--sweep #1: unifrom is no distribution to draw A from. Did you mean uniform or "
            "loguniform?",
        ),
        ("A=choice(1,2)", '--sweep #1: choice takes a list; write --sweep "A=choice([value, value])"'),
        ("A=choice([1],[2])", '--sweep #1: choice takes one list; write --sweep "A=choice([value, value])"'),
        (
            "A=uniform(1)",
            '--sweep #1: uniform for A takes two numbers, the least and the largest value; write '
            '--sweep "A=uniform(1e-5, 1e-2)"',
        ),
        (
            "A=integers(0.5,1)",
            '--sweep #1: integers for A takes two whole numbers, the least and the largest value; '
            'write --sweep "A=integers(1, 8)"',
        ),
        (
            "A=uniform(2,1)",
            "--sweep #1: uniform for A: the least value (2) must be less than the largest (1); "
            "exchange or correct them",
        ),
        (
            "A=loguniform(0,1)",
            "--sweep #1: loguniform for A: the least value (0) must be greater than 0; use uniform, "
            "or a small positive number",
        ),
        (
            "A=uniform(%B,1)",
            '--sweep #1: the bounds of uniform for A must be numbers, not macros; write --sweep '
            '"A=uniform(1e-5, 1e-2)"',
        ),
        ("A=uniform(1/0,1)", "--sweep #1: 1 / 0: division by zero; correct the divisor"),
        (
            "hf_token=['abc']",
            "--sweep #1: hf_token holds a secret, which would be written into names; it cannot be "
            "swept",
        ),
        ("A=['hf_abcdefghijklmnopqrstuvwxyz']", "--sweep #1: a value of A looks like a secret; it cannot be swept"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_flag_and_what_works(text: str, expected: str) -> None:
    assert problem(text) == expected


def test_secrets_are_not_shown() -> None:
    assert "sentinel" not in problem("A.api_key=['sentinel']")
    assert "hf_abc" not in problem("A=['hf_abcdefghijklmnopqrstuvwxyz']")


def test_all_problems_of_all_flags_are_told_together() -> None:
    assert problem("A=[1,2]", "A=1", "B=[", "A=[3]").splitlines() == [
        '--sweep #2: A (1) must be a list of values; write --sweep "A=[1]", or give one value to all points with '
        '--gin_param "A=1"',
        "--sweep #3: a bracket is never closed; close it; in a shell, quote the whole axis: --sweep "
        '"AdamW.lr=[1e-4,3e-4]"',
        "--sweep #4: A is swept by --sweep #1 already; put all of its values into one axis",
    ]


def test_a_file_has_one_axis_a_line(tmp_path: Path) -> None:
    file = tmp_path / "axes.gin"
    file.write_text("# which\nLR = [1e-4,\n      3e-4]  # why\n\nSEED = [0, 1]; A.b = ['x', 'y']\nC = uniform(0, 1)\n")
    found = read_axes(["D=[1]", str(file)])
    assert [str(one) for one in found] == [
        "D=[1]", "LR=[1e-4, 3e-4]", "SEED=[0, 1]; A.b=['x', 'y']", "C=uniform(0, 1)",
    ]  # fmt: skip
    assert [one.origin for one in found] == ["--sweep #1", f"{file}:2", f"{file}:5", f"{file}:6"]


def test_the_problems_of_a_file_have_lines(tmp_path: Path) -> None:
    file = tmp_path / "axes.gin"
    file.write_text("LR = 3\nB = [x]\nC = [1\n")
    assert problem(str(file)).splitlines() == [
        f"{file}:3: a bracket is never closed; close it",
        f"{file}:1: LR (3) must be a list of values; write LR=[3], or give one value to all points with "
        '--gin_param "LR=3"',
        f"{file}:2: x is not a value; strings need quotes: B=['x']",
    ]
    file.write_text("# nothing\n")
    assert problem(str(file)) == f'{file}: there is no axis in it; give one, as in --sweep "AdamW.lr=[1e-4,3e-4]"'


def test_a_missing_file_is_told_with_similar_names() -> None:
    text = problem("sweeps/lr_and_sed.gin")
    assert text.startswith("--sweep #1: cannot find 'sweeps/lr_and_sed.gin'; looked in ")
    assert "similar: sweeps/lr_and_seed.gin" in text


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_shipped_files_are_found_by_name(path: Path) -> None:
    assert read_axes([f"sweeps/{path.name}"])


@given(st.floats(allow_nan=False))
def test_short_means_the_same_number(value: float) -> None:
    assert float(ast.literal_eval(short(value))) == value
    assert len(short(value)) <= max(len(repr(value)), len("-1e999"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1e-4, "1e-4"), (0.0015, "0.0015"), (0.001, "1e-3"), (0.3, "0.3"), (100.0, "100.0"), (3e10, "3e10"), (1, "1"),
     (0.0, "0.0"), ((0.9, 1e-8), "(0.9, 1e-8)"), ([1e-3], "[1e-3]"), ("a", "'a'"), (-2e-5, "-2e-5")],
)  # fmt: skip
def test_short(value: object, expected: str) -> None:
    assert short(value) == expected


VALUES = st.one_of(
    st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)


@given(st.lists(VALUES, min_size=1, max_size=6, unique_by=repr))
def test_every_literal_comes_back_as_itself(values: list[object]) -> None:
    text = f"KEY=[{', '.join(map(repr, values))}]"
    axes, problems = parse_axes(text, "--sweep #1", is_file=False)
    if problems:  # two ways to write one number
        assert "twice" in str(problems[0])
        return
    back = [ast.literal_eval(choice) for choice in axes[0].swept[0].choices]
    assert [(type(one), one) for one in back] == [(type(one), one) for one in values]
    again, _ = parse_axes(str(axes[0]), "--sweep #1", is_file=False)
    assert again == axes


@given(st.text(max_size=30))
def test_any_text_is_an_axis_or_a_config_error(text: str) -> None:
    try:
        assert read_axes([text])
    except ConfigError as error:
        problems = error.problems
    else:
        problems = []
    assert all(problem.startswith("--sweep #1: ") for problem in problems)


def test_numbers_that_only_look_alike_are_kept_apart() -> None:
    assert axis("A=[1, 1.0, True]").swept[0].choices == ("1", "1.0", "True")
    assert math.isclose(float(axis("A=[0.1]").swept[0].choices[0]), 0.1)
