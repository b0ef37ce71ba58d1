"""The names inside a checkpoints folder, and which of them count.

`step-00000100` is a committed checkpoint. Names that begin with a dot are never checkpoints: `.tmp-` is being
written, `.trash-` is being deleted, `.replaced-` was set aside while a new save of the same step took its place.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{8,})", re.ASCII)
_ASIDE = re.compile(r"\.(tmp|trash|replaced)-step-(\d{8,})\.[0-9a-f]{8}", re.ASCII)


def step_name(step: int) -> str:
    """The directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step a directory name stands for; None when it is not exactly the name of a committed checkpoint."""
    match = _STEP.fullmatch(name)
    if match is None or step_name(int(match[1])) != name:
        return None
    return int(match[1])


def aside_name(kind: str, step: int) -> str:
    """A fresh name for a directory that is not a checkpoint; kind is "tmp", "trash" or "replaced"."""
    return f".{kind}-{step_name(step)}.{secrets.token_hex(4)}"


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Every directory with a checkpoint's name, newest step first; links are not directories."""
    return sorted(
        ((step, path) for name, path in _directories(folder) if (step := step_of(name)) is not None), reverse=True
    )


def aside_folders(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Every leftover directory of a kind ("tmp", "trash" or "replaced") with its step."""
    matches = ((_ASIDE.fullmatch(name), path) for name, path in _directories(folder))
    return sorted((int(match[2]), path) for match, path in matches if match is not None and match[1] == kind)


def _directories(folder: Path) -> list[tuple[str, Path]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, folder / entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
