"""What a packing has done so far, on the disk: so that it can go on after it was cut off."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from modlib.data.packing.block_encoder import SourceCount
from modlib.data.text.sources import Place
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.json_files import parse_json

logger = logging.getLogger("modlib")


def partial_folder(path: Path) -> Path:
    """Where a packing is kept until it is finished: `books.packed` -> `books.packed.partial`."""
    return path.with_name(f"{path.name}.partial")


def unfinished_tokens(folder: Path) -> int | None:
    """How many tokens an interrupted packing brought to the disk; None when there is nothing to go on with."""
    try:
        lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]
        outputs = parse_json(lines[1:][-1], dict[str, Any])["outputs"]
        return sum(int(shard["num_tokens"]) for output in outputs for shard in output)
    except (OSError, ValueError, LookupError, TypeError):
        return None


class PackJournal:
    """A folder beside the output, with the unfinished files and the journal; only one process can hold it.

    The journal is a file of JSON lines: the settings, then a line for each time when all files were brought to the
    disk. A line that was cut off while it was written is left out.

    Args:
        folder: Made if need be.
        settings: What decides the output's bytes; they must be the same to go on.
        resume: Whether to go on with what is there.
        overwrite: Whether it may be thrown away otherwise.

    Raises:
        DataError: Another process packs here, what is there may not be thrown away, the settings differ, or the folder
            cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.state: dict[str, Any] | None = None
        self.counts: dict[int, SourceCount] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / "lock", "a")  # noqa: SIM115  held until close
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror}; choose another output") from error
        try:
            self._take()
            if resume:
                self._read(settings)
            elif (tokens := unfinished_tokens(folder)) is not None:
                if not overwrite:
                    raise ConfigError(
                        f"{folder} holds unfinished work ({tokens:,} tokens); go on with --resume, or start again with "
                        "--overwrite"
                    )
                logger.warning("%s, which an interrupted packing left, is thrown away", folder)
            if self.state is None:
                durable.atomic_write_text(self.path, json.dumps({"settings": settings}) + "\n")
        except BaseException:
            self._lock.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"output of {self.folder} is being packed by another process; wait for it, or choose another output"
            ) from error
        except OSError as error:
            logger.debug("no lock on %s (%s)", self.folder, error)

    def _read(self, settings: Mapping[str, Any]) -> None:
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was cut off
        except FileNotFoundError:
            return
        try:
            before, *states = (parse_json(line, dict[str, Any], place=str(self.path)) for line in lines)
            earlier = before["settings"]
        except (ValueError, KeyError) as error:
            raise DataError(f"{self.folder} cannot be gone on with ({error}); start again with --overwrite") from error
        if reason := changed(earlier, settings, "interrupted"):
            raise DataError(reason)
        for state in states:
            self.counts |= {int(number): SourceCount(**count) for number, count in state.pop("counts").items()}
            self.state = state
        with open(self.path, "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    @property
    def place(self) -> Place:
        """Where reading goes on."""
        return Place(*self.state["place"]) if self.state else Place()

    def append(self, place: Place, counts: Mapping[int, SourceCount], **state: Any) -> None:
        """Note that everything before this place is on the disk; what changed since the last line is enough."""
        self.state = {"place": [place.source, place.position, place.row], **state}
        line = {**self.state, "counts": {number: asdict(count) for number, count in counts.items()}}
        with open(self.path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            durable.fsync_file(file.fileno(), self.path)

    def put(self, path: Path, data: bytes | None) -> None:
        """Make a file beside the folder, whole or not at all; a part that is cut off lies in here. None: nothing."""
        if data is None:
            return
        aside = self.folder / "aside"
        try:
            aside.unlink(missing_ok=True)
            durable.write_new_file(aside, data)
            durable.rename(aside, path)
            durable.fsync_directory(path.parent)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}; free space, then go on with --resume"
            ) from error

    def close(self, *, keep: bool) -> None:
        """Let go of the folder, and remove it unless it is kept."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def changed(before: Mapping[str, Any], now: Mapping[str, Any], packing: Literal["interrupted", "finished"]) -> str:
    """Which setting is not as it was in an earlier packing, as an error says it; empty when all are.

    Args:
        before: What decided the bytes of the earlier packing's outputs, as it was read from JSON.
        now: What does now.
        packing: What the earlier one was.
    """
    now = parse_json(json.dumps(now), dict[str, Any])  # tuples become what a reader sees
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            then, its = _different(before.get(name), now.get(name))
            return (
                f"{name} ({its}) must be as they were in the {packing} packing ({then}) to go on with it; "
                "set them back, or start again with --overwrite"
            )
    return ""


def _different(before: Any, now: Any) -> tuple[Any, Any]:
    """Of two lists the first entries that differ."""
    if isinstance(before, list) and isinstance(now, list):
        pairs = [pair for pair in zip(before, now, strict=False) if pair[0] != pair[1]]
        return pairs[0] if pairs else (f"{len(before)} of them", f"{len(now)} of them")
    return before, now
