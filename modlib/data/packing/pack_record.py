"""How packed files were made: kept beside them, and read again."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.packing.block_encoder import SourceCount
from modlib.data.packing.journal import changed
from modlib.data.text.sources import Source
from modlib.runtime.errors import DataError
from modlib.runtime.json_files import read_json
from modlib.version import VERSION


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
        chat_probe: A made-up conversation with its mask, as text; None for texts.
    """

    outputs: dict[Path, PackedHeader]
    record: Path
    skipped: Path | None
    num_skipped: int
    engine: str
    seconds: float
    chat_probe: str | None = None


def completed(record: Path, settings: Mapping[str, Any], started: float) -> PackSummary | DataError | None:
    """What an earlier call with the same settings finished; the reason when something else lies there; else None."""
    try:
        told = read_json(record, dict[str, Any])
        decided_by: dict[str, Any] = told["decided_by"]
        hashes = {record.with_name(name): str(output["sha256"]) for name, output in told["outputs"].items()}
        skipped = None if told["skipped"] is None else record.with_name(told["skipped"])
        num_skipped = int(told["num_skipped"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if reason := changed(decided_by, settings, "finished"):
        return DataError(reason)
    if not all(output.is_file() for output in hashes):
        return None
    headers = {output: PackedFile(output).header for output in hashes}
    for output, header in headers.items():
        if header.sha256 != hashes[output]:
            return DataError(
                f"SHA-256 of {output} ({header.sha256[:12]}) must be the one that {record.name} tells of "
                f"({hashes[output][:12]}); it was made by something else: choose another output, or replace it with "
                "--overwrite"
            )
    return PackSummary(headers, record, skipped, num_skipped, "none: it was complete", time.perf_counter() - started)


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
        "versions": {"modlib": VERSION, "python": platform.python_version(), **packages},
        "inputs": [
            {"path": str(one.path), "bytes": one.num_bytes, **asdict(counts.get(number, SourceCount()))}
            for number, one in enumerate(sources)
        ],
        "decided_by": dict(settings),
    }


def packed_chat_template(path: Path) -> str | None:
    """The chat template that a packed file's conversations were rendered with; None where no record tells of one.

    Args:
        path: The packed file; its record is in the same folder and names it, with its content's hash.
    """
    for record in sorted(path.parent.glob("*.pack.json")):
        try:
            told = read_json(record, dict[str, Any])
            template = told["settings"].get("chat_template")
            output = told["outputs"][path.name]
            if isinstance(template, str) and output["sha256"] == PackedFile(path).header.sha256:
                return template
        except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None
