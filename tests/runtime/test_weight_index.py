"""The index of safetensors: read strictly, and never leads out of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modlib.runtime.errors import CheckpointError
from modlib.runtime.weight_index import indexed_files


def test_each_file_once(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}})
    )
    assert indexed_files(index) == [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "must have 'weight_map'; its weight_map must say which file holds each tensor"),
        ({"weight_map": 3}, "must have an object at weight_map, and has 3; "),
        ({"weight_map": {"a": 3}}, "must have a text at weight_map.a, and has 3; "),
        ({"weight_map": {"a": "../x"}}, r"file \('../x'\) of .* must be one of the same folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, r"file \('/etc/passwd'\) of .* must be one of the same folder"),
    ],
)
def test_what_is_no_index(tmp_path: Path, content: object, problem: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=problem):
        indexed_files(index)
