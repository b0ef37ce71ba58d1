"""What to type where a name of the hub was given for a folder: modlib downloads nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ENDING = re.compile(
    r"\.(gin|json|jsonl|ndjson|packed|model|bin|idx|pbin|npy|index|txt|jinja|yaml|parquet|arrow|safetensors|zst|gz)$"
)


def hub_hint(name: str | os.PathLike[str], what: Literal["model", "dataset"] = "model") -> str:
    """The end of an error about a path that is not there; empty where it does not look like `owner/name` of the hub."""
    text = os.fspath(name)
    if not _NAME.fullmatch(text) or _ENDING.search(text) or Path(text).parent.exists():
        return ""
    kind = "" if what == "model" else "--repo-type dataset "
    folder = text.rpartition("/")[2]
    return (
        f"; if {text} is a name of the hub, download it first, since modlib downloads nothing: "
        f"hf download {kind}{text} --local-dir {folder}"
    )
