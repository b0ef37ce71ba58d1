from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest

from modlib.data.text.fields import Field, text_of
from modlib.runtime.errors import ConfigError


@pytest.mark.parametrize("name", ["a.b[0].c", ".a.b[0].c", "a.b.0.c"])
def test_a_path_leads_to_the_text(name: str) -> None:
    assert Field(name).text({"a": {"b": [{"c": "x"}]}}) == "x"
    assert Field(name).column == "a"
    assert text_of(b'{"a": {"b": [{"c": "x"}]}}', name) == "x"


@pytest.mark.parametrize("row", [b'{"a.b.c": "x", "a": {"b": {"c": "y"}}}', b'{"a": {"b.c": "x", "b": {"c": "y"}}}'])
def test_a_name_with_dots_comes_before_the_path(row: bytes) -> None:
    assert text_of(row, "a.b.c") == "x"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"other": 1}, "has no 'text' (there is other)"),
        ({"text": 3}, "has no text at 'text' but int"),
        ({"text": None}, "has no text at 'text' but null"),
        ({"text": ""}, "has an empty text at 'text'"),
        ({"text": "\ud800"}, "has half of a surrogate pair at 'text' (character 0)"),
        ([1], "has no 'text' (a list of 1)"),
        ("text", "has no 'text' (there is str)"),
    ],
)
def test_what_is_no_text_is_named(row: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        Field("text").text(row)


def test_a_function_makes_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_fields.py").write_text(
        "def both(row):\n    return row['title'] + ': ' + row['body']\ndef number(row):\n    return 3\nx = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    field = pickle.loads(pickle.dumps(Field("my_fields:both")))
    assert field.text({"title": "a", "body": "b"}) == "a: b"
    assert field.column is None
    with pytest.raises(ValueError, match=r"^makes my_fields:both fail \(KeyError: 'body'\)$"):
        field.text({"title": "a"})
    with pytest.raises(ValueError, match=r"^has no text at 'my_fields:number' but int$"):
        Field("my_fields:number").text({})
    with pytest.raises(ConfigError, match=r"field \('my_fields:x'\) must name a function of my_fields; it has no"):
        Field("my_fields:x")
    with pytest.raises(ConfigError, match=r"field \('no_such_module:f'\) must name a module that can be imported"):
        Field("no_such_module:f")
    sys.modules.pop("my_fields")


@pytest.mark.parametrize("name", ["", "a..b", "a[x]", "a b:c", "[0]"])
def test_what_is_no_field_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a path such as text or a\.b\[0\]\.c, or module:function"):
        Field(name)


def test_values_of_any_type_and_names_beside() -> None:
    field = Field("a.b", beside=("tools",))
    assert field.value({"a": {"b": [1, {"c": None}]}}) == [1, {"c": None}]
    assert (field.column, field.beside) == ("a", ("tools",))
    assert pickle.loads(pickle.dumps(field)).beside == ("tools",)
    with pytest.raises(ValueError, match=r"^has no 'a.b' \(there is c\)$"):
        field.value({"a": {"c": 1}})
