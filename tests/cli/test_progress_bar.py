from __future__ import annotations

import io
import sys

import pytest

from modlib.cli import progress_bar as module
from modlib.cli.progress_bar import Unit, progress_bar


@pytest.mark.parametrize(
    ("unit", "amount", "speed"),
    [("bytes", "1 KiB of 4 KiB", "B/s"), ("tokens", "1.02k of 4.1k tokens", " tokens/s")],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_amounts_are_in_what_is_counted(
    unit: Unit, amount: str, speed: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "_LINE_S", 0.0)
    for name, value in (("COLUMNS", "200"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    with progress_bar("merge", unit) as update:
        update(512, 4096)
        update(1024, 4096, "a note")
    shown = stream.getvalue()
    assert amount in shown
    assert speed in shown
    assert "ETA" in shown
    assert "a note" in shown
    assert ("bytes" in shown or "KiB" in shown) is (unit == "bytes")
