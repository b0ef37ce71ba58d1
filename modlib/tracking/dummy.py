"""No display at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modlib.components import component


@component("progress_subscriber", "dummy", runtime_args=("run_path",))
class DummyProgress:
    """Shows nothing: for jobs whose log should hold warnings and errors alone.

    Args:
        run_path: The run folder; known at run time.
    """

    receives: tuple[type, ...] = ()

    def __init__(self, run_path: Path | None = None) -> None:
        pass

    def receive(self, message: Any) -> None:
        pass

    def close(self) -> None:
        pass
