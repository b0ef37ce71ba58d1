from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modlib.data.packing.journal import changed
from modlib.data.packing.settings import planned
from modlib.data.text.tokenizer import Tokenizer
from tests.data.packing.test_pack import write_jsonl


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"field": "body"}, "field"),
        ({"end_of_document": "a"}, "end of document"),
        ({"split": {"a": 0.5, "b": 0.5}}, "split"),
        ({"shard_tokens": 5}, "shard tokens"),
        ({"workers": 2}, None),
    ],
)
def test_what_decides_the_bytes(
    tokenizer: Tokenizer, tmp_path: Path, settings: dict[str, Any], name: str | None
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["x"])
    before = json.loads(json.dumps(planned([source], tmp_path / "a.packed", tokenizer).decided_by()))
    now = planned([source], tmp_path / "b.packed", tokenizer, **settings).decided_by()
    found = changed(before, now, "finished")
    assert found.partition(" (")[0] == (name or "")
    assert planned([source], tmp_path / "b.packed", tokenizer, **settings).told()["split"] == settings.get("split")


def test_only_outputs_that_are_meant_are_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["x"])
    names = ["z-00000-of-00002.packed", "z.a.packed", "z.packed"]
    for name in (*names, "z.b-00000-of-00002.packed"):
        (tmp_path / name).touch()
    split = {"a": 0.5, "b": 0.5}
    for settings, there in (
        ({}, ["z.packed"]),
        ({"split": split}, ["z.a.packed"]),
        ({"shard_tokens": 5}, ["z-00000-of-00002.packed"]),
        ({"shard_tokens": 5, "split": split}, ["z.b-00000-of-00002.packed"]),
    ):
        plan = planned([source], tmp_path / "z.packed", tokenizer, **settings)  # type: ignore[arg-type]
        assert [path.name for path in plan.existing] == there
