"""How training is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modlib.launching.command import calling_words, own_call, typed_words


def test_a_checkout_is_called_by_its_script_and_another_by_its_package(tmp_path: Path) -> None:
    assert calling_words()[1].endswith("/launch.py")
    assert typed_words() == ["python", "launch.py"]
    assert calling_words(tmp_path)[:2] == [sys.executable, "-c"]


@pytest.mark.parametrize(
    ("called", "repeated"),
    [
        (["launch.py", "--gin_file", "a.gin"], ["launch.py", "--gin_file", "a.gin"]),
        (["/x/launch.py", "--gin_file", "a.gin"], ["/x/launch.py", "--gin_file", "a.gin"]),
        (["/env/bin/modlib", "train", "--gin_file", "a.gin"], ["modlib", "train", "--gin_file", "a.gin"]),
        (["/lib/modlib/__main__.py", "train", "--gin_file", "a"], ["modlib", "train", "--gin_file", "a"]),
        (["-c", "--gin_file", "a.gin"], ["modlib", "train", "--gin_file", "a.gin"]),
        (["/lib/ipykernel_launcher.py", "-f", "kernel.json"], []),
        (["my_script.py"], []),
    ],
)
def test_a_call_as_a_person_repeats_it(called: list[str], repeated: list[str]) -> None:
    assert own_call(called) == repeated
