"""Bytes that move from file to file are the span's, also where the kernel cannot do it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from modlib.runtime import file_spans
from modlib.runtime.file_spans import FileSpan, append_span


def refuse(*_: int) -> int:
    raise OSError(errno.EINVAL, "not on this file system")


@pytest.mark.parametrize("in_kernel", [True, False], ids=["kernel", "read"])
def test_a_span_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "source").write_bytes(content)
    monkeypatch.setattr(file_spans, "_PIECE", 1000)
    if not in_kernel:
        monkeypatch.setattr(os, "sendfile", refuse)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb", buffering=0) as target:
        target.write(b"head")
        append_span(target.fileno(), FileSpan(source.fileno(), 5, 9000))
        append_span(target.fileno(), FileSpan(source.fileno(), 0, 3))
        target.write(b"tail")
        with pytest.raises(OSError, match="a file ended while it was read"):
            append_span(target.fileno(), FileSpan(source.fileno(), len(content) - 2, 3))
    assert (tmp_path / "target").read_bytes()[:-2] == b"head" + content[5:9005] + content[:3] + b"tail"
