"""How packed files were made: kept beside them, and read again."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import modlib
from modlib.data.block_encoder import SourceCount
from modlib.data.packed_file import PackedFile
from modlib.data.packed_header import PackedHeader
from modlib.data.sources import Source


@dataclass(frozen=True)
class PackSummary:
    """What was packed.

    Args:
        outputs: Path -> header of each packed file.
        record: The file that tells how it was made.
        skipped: The file that lists the rows left out; None when there are none.
        num_skipped: Rows left out.
        engine: What tokenized.
        seconds: Of this call.
    """

    outputs: dict[Path, PackedHeader]
    record: Path
    skipped: Path | None
    num_skipped: int
    engine: str
    seconds: float


def completed(record: Path, settings: Mapping[str, Any], started: float) -> PackSummary | None:
    """What an earlier call with the same settings finished; None when it did not."""
    try:
        told = json.loads(record.read_text("utf-8"))
        same = told["decided_by"] == json.loads(json.dumps(settings))
        outputs = [record.with_name(name) for name in told["outputs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same or not all(output.is_file() for output in outputs):
        return None
    headers = {output: PackedFile(output).header for output in outputs}
    skipped = None if told["skipped"] is None else record.with_name(told["skipped"])
    return PackSummary(
        headers, record, skipped, told["num_skipped"], "none: it was complete", time.perf_counter() - started
    )


def record_of(
    summary: PackSummary,
    told: Mapping[str, Any],
    settings: Mapping[str, Any],
    sources: Sequence[Source],
    counts: Mapping[int, SourceCount],
) -> dict[str, Any]:
    """How the outputs were made, as JSON."""
    packages = {}
    for name in ("numpy", "tokenizers", "tiktoken", "sentencepiece", "pyarrow", "zstandard", "jinja2"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "settings": dict(told),
        "outputs": {
            output.name: {
                "documents": header.num_documents,
                "tokens": header.num_tokens,
                "bytes_of_text": header.num_bytes_of_text,
                "sha256": header.sha256,
            }
            for output, header in summary.outputs.items()
        },
        "skipped": None if summary.skipped is None else summary.skipped.name,
        "num_skipped": summary.num_skipped,
        "engine": summary.engine,
        "seconds": round(summary.seconds, 2),
        "versions": {"modlib": modlib.__version__, "python": platform.python_version(), **packages},
        "inputs": [
            {"path": str(one.path), "bytes": one.num_bytes, **asdict(counts.get(number, SourceCount()))}
            for number, one in enumerate(sources)
        ],
        "decided_by": dict(settings),
    }
