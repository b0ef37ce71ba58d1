"""What looks like a name of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.runtime.hub_names import hub_hint


@pytest.mark.parametrize(
    ("name", "download"),
    [
        ("openai-community/gpt2", "hf download openai-community/gpt2 --local-dir gpt2"),
        ("meta-llama/Llama-3.1-8B", "hf download meta-llama/Llama-3.1-8B --local-dir Llama-3.1-8B"),
        ("folder", ""),
        ("a/b/c", ""),
        ("/a/b", ""),
        ("data/train.packed", ""),
    ],
)
def test_a_name_and_what_is_none(name: str, download: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_hint(name).partition(": ")[2] == download
