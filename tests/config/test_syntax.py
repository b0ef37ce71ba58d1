"""What may be written in a gin file, and the texts for what may not."""

from __future__ import annotations

import pytest

from modlib.config.statements import Binding, Import, Include, Macro
from modlib.config.syntax import parse
from modlib.config.values import Items, Literal, MacroUse, Operation, Pairs, Reference


def problems(text: str, *, is_file: bool = True) -> list[str]:
    return [str(problem) for problem in parse(text, "a.gin" if is_file else "--gin_param #1", is_file=is_file)[1]]


def value(text: str) -> object:
    (statement,), wrong = parse(f"X = {text}\n", "a.gin")
    assert not wrong, wrong
    assert isinstance(statement, Macro)
    return statement.value


def test_statements_with_their_lines() -> None:
    text = """\
# comment
import my_project.my_model
from my_project import other
include 'models/a.gin'
SEED = 0
train/opt.AdamW.lr = 1e-3  # why

Model:
    # inside
    dim = 8

    betas = (0.9,
             0.95)
val/Eval:
  name = 'v'
LAST = 1"""
    statements, wrong = parse(text, "a.gin")
    assert not wrong
    assert [(type(one), one.origin.line) for one in statements] == [
        (Import, 2), (Import, 3), (Include, 4), (Macro, 5), (Binding, 6), (Binding, 10), (Binding, 12), (Binding, 15),
        (Macro, 16),
    ]  # fmt: skip
    assert [one.module for one in statements if isinstance(one, Import)] == ["my_project.my_model", "my_project.other"]
    binding = statements[4]
    assert isinstance(binding, Binding)
    assert (binding.scope, binding.selector, binding.parameter) == (("train",), "opt.AdamW", "lr")
    assert str(binding.origin) == "a.gin:6"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-3", Literal(-3)),
        ("+2.5", Literal(2.5)),
        ("1_000", Literal(1000)),
        ("0x10", Literal(16)),
        ("'a' \"b\"", Literal("ab")),
        ("'a'\\\n 'b'", Literal("ab")),
        ("b'\\x00'", Literal(b"\x00")),
        ("r'\\d'", Literal(r"\d")),
        ("'''two\nlines'''", Literal("two\nlines")),
        ("None", Literal(None)),
        ("float('-inf')", Literal(float("-inf"))),
        ("@Model", Reference("Model")),
        ("@a/b/model.Model()", Reference("model.Model", ("a", "b"), True)),
        ("@Model( )", Reference("Model", (), True)),
        ("%a/NAME", MacroUse("a/NAME")),
        ("%module.NAME", MacroUse("module.NAME")),
        ("()", Items(tuple, ())),
        ("(1)", Literal(1)),
        ("(1,)", Items(tuple, (Literal(1),))),
        ("[1, @A,\n  # comment\n  %B]", Items(list, (Literal(1), Reference("A"), MacroUse("B")))),
        ("{'a': [1], 2: {}}", Pairs(((Literal("a"), Items(list, (Literal(1),))), (Literal(2), Pairs(()))))),
        ("%A / 2", Operation("/", (MacroUse("A"), Literal(2)))),
        ("%A/2", Operation("/", (MacroUse("A"), Literal(2)))),
        ("%A/%B", Operation("/", (MacroUse("A"), MacroUse("B")))),
        ("7 % %A", Operation("%", (Literal(7), MacroUse("A")))),
        ("1 - 2 - 3", Operation("-", (Operation("-", (Literal(1), Literal(2))), Literal(3)))),
        ("1 + 2 * 3", Operation("+", (Literal(1), Operation("*", (Literal(2), Literal(3)))))),
        ("-2 ** 2", Operation("-", (Operation("**", (Literal(2), Literal(2))),))),
        ("2 ** -1", Operation("**", (Literal(2), Literal(-1)))),
        ("(1\n + 2)", Operation("+", (Literal(1), Literal(2)))),
    ],
)
def test_value(text: str, expected: object) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A.b = true", "a.gin:1: true is not a value; write True"),
        ("A.b = null", "a.gin:1: null is not a value; write None"),
        ("A.b = inf", "a.gin:1: inf is not a value; write float('inf')"),
        (
            "A.b = float('x')",
            "a.gin:1: only float('inf'), float('-inf') and float('nan') can be written so; write the number",
        ),
        ("A.b = gelu", "a.gin:1: gelu is not a value; strings need quotes: A.b = 'gelu'"),
        ("A.b = Gelu", "a.gin:1: Gelu is not a value; a component is written @Gelu; strings need quotes: A.b = 'Gelu'"),
        (
            "A.b = LR",
            "a.gin:1: LR is not a value; a macro is written %LR, a component @LR; strings need quotes: A.b = 'LR'",
        ),
        ("A:\n  b = two words # c", "a.gin:2: two words is not a value; strings need quotes: b = 'two words'"),
        ("A.b = /data/x", "a.gin:1: expected a value, found /; strings need quotes: A.b = '/data/x'"),
        ("A.b = 12ab", "a.gin:1: 12ab is not a number; strings need quotes: A.b = '12ab'"),
        ("A.b = 3j", "a.gin:1: 3j is a complex number; use a real one"),
        ("A.b = f'x'", "a.gin:1: a format string is not a value; write the text itself in quotes"),
        ("A.b = {1, 2}", "a.gin:1: a set is not a value; use a list"),
        ("A.b = {1 2}", "a.gin:1: expected ':' after a key"),
        ("A.b = [1 2]", "a.gin:1: expected ',' or ']', found 2"),
        ("A.b = min(1, 2)", "a.gin:1: min cannot be used here; a value is a literal, @Component, %MACRO or arithmetic"),
        (
            "A.b = lambda: 1",
            "a.gin:1: lambda cannot be used here; a value is a literal, @Component, %MACRO or arithmetic",
        ),
        ("A.b = 1, 2", "a.gin:1: a value ends at the comma; put several values in brackets: [a, b]"),
        ("A.b = 1; C = 2", "a.gin:1: one statement a line; begin a new line instead of ';'"),
        ("A.b = 1 = 2", "a.gin:1: a second '=' in one statement; one statement a line"),
        (
            "A.b = 1 $",
            "a.gin:1: expected the end of the line, found $; a value is a literal, @Component, %MACRO or arithmetic",
        ),
        ("A.b =", "a.gin:1: A.b has no value; write A.b = value"),
        ("A.b = # nothing", "a.gin:1: A.b has no value; write A.b = value"),
        ("A.b = 'x", "a.gin:1: the string 'x is never closed; close its quotes"),
        ("A.b = '''x", "a.gin:1: a string that starts with three quotes is never closed; close it"),
        ("B = 1\nA.b = [1,\nC = 2", "a.gin:2: a bracket is never closed; close it"),
        ("A.b = @", "a.gin:1: expected the name of a component after '@', found the end of the line"),
        ("A.b = @Model(dim=3)", "a.gin:1: arguments cannot be given here; write @Model() and bind Model.<parameter>"),
        ("A.b = %", "a.gin:1: expected the name of a macro after '%', found the end of the line"),
        ("@A = 1", "a.gin:1: a line starts with a name; write NAME = value, or Component.parameter = value"),
        ("A.b 3", "a.gin:1: expected '=' after A.b; write A.b = value"),
        ("3 = 4", "a.gin:1: expected NAME = value, or Component.parameter = value, found 3"),
        ("x.y/A.b = 1", "a.gin:1: a scope has no dots: x.y; write scope/Component.parameter"),
        ("A:\nB = 1", "a.gin:1: the block A is empty; indent its lines, or remove it"),
        ("A: b = 1", "a.gin:1: after 'A:' begin a new line, and indent it; or write A.parameter = value"),
        (
            "A:\n  A.b = 1",
            "a.gin:2: expected 'parameter = value' in the block A; A is already named by the block, so leave it out "
            "here",
        ),
        ("A:\n  b 1", "a.gin:2: expected 'parameter = value' in the block A; write b = value"),
        ("A:\n  b = 1\n c = 2", "a.gin:3: the indentation matches no line above; indent all lines of a block alike"),
        ("include a.gin", "a.gin:1: expected the name of a file in quotes; write include 'file.gin'"),
        ("from a", "a.gin:1: expected 'import' after 'from a'; write import a"),
        ("import a as b", "a.gin:1: 'as' has no use here; components are named by their own names"),
        (
            "from __gin__ import dynamic_registration",
            "a.gin:1: gin's dynamic_registration is not supported; import the module, and use @component in it",
        ),
    ],
)
def test_error_text(text: str, expected: str) -> None:
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPT.act=gelu", "--gin_param #1: gelu is not a value; strings need quotes: --gin_param \"GPT.act='gelu'\""),
        (
            "DATA=/a/b.bin",
            "--gin_param #1: expected a value, found /; strings need quotes: --gin_param \"DATA='/a/b.bin'\"",
        ),
        (
            "DATA=stdlib:train",
            "--gin_param #1: stdlib:train is not a value; strings need quotes: --gin_param \"DATA='stdlib:train'\"",
        ),
        ("A.b=true", "--gin_param #1: true is not a value; write True"),
        ("include 'a.gin'", "--gin_param #1: a parameter cannot include a file; use --gin_file"),
        ("A.api_key=abc", "--gin_param #1: *** is not a value; strings need quotes: --gin_param \"A.api_key='***'\""),
    ],
)
def test_error_text_of_a_parameter(text: str, expected: str) -> None:
    assert problems(text, is_file=False) == [expected]


@pytest.mark.parametrize(
    ("opened", "closed"), [("[", "]"), ("(", ")"), ("{1: ", "}"), ("-", ""), ("2 ** ", ""), ("1 + (", ")")]
)
def test_nesting_has_a_limit(opened: str, closed: str) -> None:
    for depth in (99, 100, 5000):
        nested = parse(f"A.x = {opened * depth}1{closed * depth}\n", "a.gin")[1]
        texts = [] if depth == 99 else ["A.x is nested more than 100 deep; write it flatter"]
        assert [str(problem).partition(": ")[2] for problem in nested[:1]] == texts, depth
    statements, _ = parse(f"A.x = {opened * 200}1{closed * 200}\nB = [[2]]\n", "a.gin")
    assert [one.name for one in statements if isinstance(one, Macro)] == ["B"]


def test_goes_on_after_errors() -> None:
    text = "A.b = true\nC = 1\nD:\n  e = nope\n  f = 2\n\nG:\n  h 3\nI = 4\nX = )\n"
    statements, wrong = parse(text, "a.gin")
    assert [problem.origin.line for problem in wrong] == [1, 4, 8, 10]
    assert [one.name for one in statements if isinstance(one, Macro)] == ["C", "I"]
    assert [one.parameter for one in statements if isinstance(one, Binding)] == ["f"]


def test_bytes_that_python_cannot_tokenize_are_a_problem_not_a_crash() -> None:
    for text in (
        "A = 1 ? 2",
        "A = $x",
        "!!",
        "A = \x00",
        "\ufeffA = 1",
        "A = 0777",
        "\\",
        "A = 'x' \\",
        "(((((",
        "A = 1e",
        "é = 3",
    ):
        parse(text, "a.gin")
