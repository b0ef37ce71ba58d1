"""One reader for all JSON: whatever is wrong is one error that names the file and the place."""

from __future__ import annotations

import ast
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from modlib.runtime.json_files import MOST_DEPTH, JSONError, parse_json, read_bytes, read_json

ROOT = Path(__file__).parents[2]


class Shard(TypedDict):
    path: str
    sizes: list[int]


class Record(TypedDict, total=False):
    step: int | None
    rate: float
    kind: Literal["a", "b"]
    shards: dict[str, Shard]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"step": 3, "unknown": []}', {"step": 3, "unknown": []}),
        (b'{"rate": 1}', {"rate": 1}),
        ('{"shards": {"x": {"path": "p", "sizes": [1, 2]}}}', {"shards": {"x": {"path": "p", "sizes": [1, 2]}}}),
        ("{}", {}),
    ],
)
def test_what_fits_the_schema(text: str | bytes, value: Any) -> None:
    assert parse_json(text, Record) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"step": "12"}', "must have a whole number or null at step, and has '12'"),
        ('{"step": true}', "must have a whole number or null at step, and has True"),
        ('{"step": 1.0}', "must have a whole number or null at step, and has 1.0"),
        ('{"rate": "fast"}', "must have a number at rate, and has 'fast'"),
        ('{"rate": 1' + 400 * "0" + "}", "must have a number of at most 64 bits at rate, and has 1000"),
        ('{"kind": "c"}', "must have one of 'a', 'b' at kind, and has 'c'"),
        ('{"shards": {"x": {"sizes": []}}}', "must have 'path' at shards.x"),
        ('{"shards": {"x": {"path": "p", "sizes": [1, null]}}}', "must have a whole number at shards.x.sizes.1, and"),
        ("[]", "must have an object, and has []"),
        ("", "must be JSON: expecting value (line 1, column 1)"),
        ('{"step": 1,\n "rate"', "must be JSON: expecting ':' delimiter (line 2, column 8)"),
        (b'{"\xff": 1}', "must be UTF-8; byte 2 is not"),
        ("\ufeff{}", "must be JSON: unexpected UTF-8 BOM"),
        ("9" * 5000, "must be JSON with numbers that can be used: Exceeds the limit"),
        ("[" * 200_000, "must be JSON of at most 100 levels of objects and lists; it has more"),
    ],
)
def test_what_does_not(text: str | bytes, problem: str) -> None:
    with pytest.raises(JSONError) as caught:
        parse_json(text, Record, place="run.json")
    assert str(caught.value).startswith(f"run.json {problem}")


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_the_depth_has_a_limit_that_does_not_depend_on_the_stack(opened: str) -> None:
    closed = {"[": "]", '{"a":': "}"}[opened]
    for depth, fits in ((MOST_DEPTH, True), (MOST_DEPTH + 1, False)):
        text = opened * depth + ("1" if ":" in opened else "") + closed * depth
        if fits:
            parse_json(text, Any)
        else:
            with pytest.raises(JSONError, match="at most 100 levels"):
                parse_json(text, Any)
    assert len(parse_json("[" + ",".join(["[]"] * 1000) + "]", list)) == 1000  # wide is not deep


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[1, 2e400]"])
def test_numbers_that_are_not_finite_are_refused_where_finite_ones_are_wanted(text: str) -> None:
    parse_json(text, Any)
    with pytest.raises(JSONError, match=r"numbers that can be used: .* is not finite"):
        parse_json(text, Any, finite=True)


def test_whatever_is_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(JSONError, match=r"gone must be a readable file: No such file or directory") as caught:
        read_json(tmp_path / "gone", dict)
    assert caught.value.missing
    with pytest.raises(JSONError, match=r"must be a regular file; move away what is in its place") as caught:
        read_json(tmp_path, dict)
    assert not caught.value.missing
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(read_json, tmp_path / "pipe", dict)
        try:
            assert isinstance(reading.exception(timeout=10), JSONError)
        finally:  # one that waits gets its writer
            os.close(os.open(tmp_path / "pipe", os.O_RDWR))
    (tmp_path / "large").write_bytes(b" " * 11)
    with pytest.raises(JSONError, match="at most 10 bytes; it has 11"):
        read_bytes(tmp_path / "large", 10)
    (tmp_path / "good").write_text('{"step": 3}')
    assert read_json(tmp_path / "good", Record) == {"step": 3}


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(JSONError("run.json", "must be JSON", missing=True)))
    assert (str(error), error.place, error.missing) == ("run.json must be JSON", "run.json", True)


def test_nothing_else_in_modlib_reads_json() -> None:
    """A reader of its own has exceptions of its own, and one is always forgotten."""
    found = []
    for path in sorted((ROOT / "modlib").rglob("*.py")):
        if path.name == "json_files.py":
            continue
        source = path.read_text()
        names = {"load", "loads", "JSONDecoder", "JSONDecodeError"}
        for node in ast.walk(ast.parse(source)):
            whole = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "json"
            alone = isinstance(node, ast.ImportFrom) and node.module == "json"
            if (whole and node.attr in names) or (alone and names & {one.name for one in node.names}):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
        assert "json.load" not in source or found, path  # also not in a text that becomes a program
    assert found == [], "use modlib.runtime.json_files"
