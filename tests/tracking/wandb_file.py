"""Reads a W&B run file, as wandb writes it offline: a log of protobuf records in blocks of 32 KiB."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Every whole record of the file; a torn end is left out."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert struct.unpack_from("<4sHB", data) == (b":W&B", 0xBEE1, 0)
    place, parts = 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        payload = data[place + 7 : place + 7 + length]
        if len(payload) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        assert zlib.crc32(bytes([kind]) + payload) == checksum
        place += 7 + length
        parts = payload if kind in (FULL, FIRST) else parts + payload
        if kind in (FULL, LAST):
            yield Record.FromString(parts)


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of the history, name -> value."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def run_record(path: Path) -> Any:
    """Id, project, group, tags and so on."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def config(path: Path) -> dict[str, Any]:
    """The configuration, without what wandb adds."""
    updates = {item.key: json.loads(item.value_json) for item in run_record(path).config.update}
    return {name: value for name, value in updates.items() if name != "_wandb"}


def run_files(run: Path) -> list[Path]:
    """The run files of all attempts, in order."""
    return sorted((run / "wandb").glob("*run-*/run-*.wandb"))
