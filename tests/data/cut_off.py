"""A packing in a process of its own, killed in the midst of its work; and what conversations are rendered with."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

CHAT_TEMPLATE = """{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""


def noted(journal: Path) -> int:
    """Lines of a packing's journal."""
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_midway(command: Sequence[str], journal: Path, deadline_s: float = 60) -> list[psutil.Process]:
    """Start a packing and kill it with -9 after four more notes in its journal; returns the workers that it had."""
    before = noted(journal)
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + deadline_s
        while noted(journal) < before + 4:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return psutil.Process(process.pid).children()
    finally:
        process.kill()
        process.wait()
