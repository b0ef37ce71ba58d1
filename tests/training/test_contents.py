"""Data is hashed before it is trained on, compared with its header, the checkpoint and other ranks: runs end with 3."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from modlib.checkpointing.loading import complete_checkpoints
from modlib.cli.start.launch import app
from modlib.data import cache
from modlib.data.datasets import of_packed_file
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed import file as packed_file
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import HEADER_BYTES
from modlib.data.packed.writer import PackedFileWriter
from modlib.distributed.process_group import World
from modlib.runtime import faults
from modlib.runtime.errors import DataError, StoppedEarly
from modlib.runtime.signals import StopRequest
from modlib.runtime.watchdog import Watchdog
from modlib.training import contents
from modlib.training.contents import Contents, data_of
from tests.changing_files import overwrite_in_place
from tests.launching_command import metrics
from tests.workers import run_ranks

ALONE = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def large_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every file counts as large, whose hash is remembered, in a cache of this test, and not looked at on opening."""
    monkeypatch.setattr(packed_file, "_REMEMBERED_FROM_BYTES", 1)
    monkeypatch.setattr(of_packed_file, "_VERIFIED_ON_OPEN_BYTES", 0)
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))


def write(path: Path, seed: int = 0, tokens: int = 4000) -> Path:
    with PackedFileWriter(path, vocab_size=4096, overwrite=True) as writer:
        writer.write(np.random.default_rng(seed).integers(0, 4096, tokens), num_bytes_of_text=4 * tokens)
    return path


def change_in_place(path: Path, token: int = 7) -> None:
    """Another valid id, with the file's times put back."""
    place = HEADER_BYTES + 2 * token
    old = int.from_bytes(path.read_bytes()[place : place + 2], "little")
    overwrite_in_place(path, place, (old ^ 1).to_bytes(2, "little"))


def launch(runs: Path, path: Path, *, val: Path | None = None) -> tuple[int, str]:
    params = [f"DATA='{path}'", f"VAL_DATA='{val or path}'", "NUM_STEPS=12", "EVAL_EVERY=4", "CHECKPOINT_EVERY=4"]
    words = [word for param in params for word in ("--gin_param", param)]
    flags = ["--name", "run", "--runs_dir", str(runs)]
    result = CliRunner().invoke(app, ["--gin_file", "debug/tiny.gin", *words, *flags])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def once_after(part: str, action: Callable[[], None]) -> Callable[[str, str], None]:
    """A fault point's action: once, when an operation on a path with this part begins."""
    left = [action]

    def act(name: str, operation: str) -> None:
        if part in operation and left:
            left.pop()()

    return act


def test_a_file_changed_during_the_run_with_its_times_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "data.packed")
    sound = path.read_bytes()
    with faults.installed("fs.operation", once_after("step-00000004", partial(change_in_place, path))):
        code, text = launch(tmp_path, path)
    assert (code, f"SHA-256 of the contents of {path}" in text) == (3, True), text
    assert metrics(tmp_path / "run")[-1]["step"] < 12
    code, text = launch(tmp_path, path)  # and at the next start
    assert (code, f"SHA-256 of the contents of {path}" in text) == (3, True), text
    path.write_bytes(sound)
    assert launch(tmp_path, path)[0] == 0


@pytest.mark.slow
def test_a_large_file_is_hashed_before_the_first_step(tmp_path: Path, large_files: None) -> None:
    path = write(tmp_path / "data.packed")
    sound = path.read_bytes()
    change_in_place(path)
    for _ in range(2):
        code, text = launch(tmp_path, path)
        assert (code, f"SHA-256 of the contents of {path}" in text) == (3, True), text
        assert metrics(tmp_path / "run") == []
    path.write_bytes(sound)
    with faults.installed("fs.operation", once_after("step-00000008", partial(change_in_place, path))):
        code, text = launch(tmp_path, path)
    assert (code, f"SHA-256 of the contents of {path}" in text) == (3, True), text
    path.write_bytes(sound)
    assert launch(tmp_path, path)[0] == 0


@pytest.mark.slow
def test_the_hash_is_in_run_json_and_in_checkpoints_and_compared(tmp_path: Path, large_files: None) -> None:
    path, val = write(tmp_path / "data.packed"), write(tmp_path / "val.packed", seed=1)
    files = {
        use: [{"path": str(one), "sha256": PackedFile(one).sha256}]
        for use, one in (("train", path), ("val/validation", val))
    }
    stop = once_after("step-00000008", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with faults.installed("fs.operation", stop):
        assert launch(tmp_path, path, val=val)[0] == 75
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert {one["use"]: one["files"] for one in recorded} == files
    checkpoint = next(complete_checkpoints(tmp_path / "run" / "checkpoints"))
    assert checkpoint.extra["data_files"] == files
    write(val, seed=2)  # whole and sound, but another
    code, text = launch(tmp_path, path, val=val)
    assert (code, f"contents of {val}, data of val/validation (SHA-256 " in text) == (3, True), text
    assert f"must be what the checkpoint of step {checkpoint.extra['step']} read (" in text
    write(val, seed=1)
    assert launch(tmp_path, path, val=val)[0] == 0


def packed(path: Path) -> PackedDataset:
    return PackedDataset(path=str(path), seq_len=32)


def on_ranks(paths: list[str], cache_path: str) -> str:
    os.environ["MODLIB_CACHE"] = cache_path
    rank = dist.get_rank()
    world = World(rank, rank, 2, torch.device("cpu"), dist.group.WORLD)
    with StopRequest() as stop:
        try:
            Contents(data_of(packed(Path(paths[rank])), []), world).require_sound(world, Watchdog(), stop)
        except DataError as error:
            return str(error)
    return ""


def test_ranks_with_other_contents_are_refused_by_all(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.packed"), write(tmp_path / "other.packed", seed=1)
    cache_path = str(tmp_path / "cache")
    assert run_ranks(2, on_ranks, [str(one), str(one)], cache_path) == ["", ""]
    first, second = run_ranks(2, on_ranks, [str(one), str(other)], cache_path)
    assert first == second
    assert f"contents of {other}, data of train (SHA-256 {PackedFile(other).sha256[:12]}), must be what rank 0" in first
    assert f"read ({PackedFile(one).sha256[:12]}, {one})" in first


@pytest.fixture
def hashed_elsewhere(tmp_path: Path, large_files: None) -> Iterator[Path]:
    """A packed file that another process seems to hash, for as long as the test runs."""
    path = write(tmp_path / "data.packed")
    path.chmod(0o600)
    folder = cache.writable_cache() / "packed"
    lock = folder / f"{cache._hash_name(path, path.stat())}.lock"
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_while_the_data_is_hashed_ends_the_wait(hashed_elsewhere: Path, number: int) -> None:
    with StopRequest() as stop:
        contents = Contents(data_of(packed(hashed_elsewhere), []), ALONE)
        os.kill(os.getpid(), number)
        with pytest.raises(StoppedEarly, match="stopped before training began"):
            contents.require_sound(ALONE, Watchdog(), stop)


class StopsAfter(Watchdog):
    """A watchdog that is told of life, and then stops this process as a scheduler would."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def alive(self) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)


def test_waiting_for_another_process_that_hashes_is_no_hang(hashed_elsewhere: Path) -> None:
    watchdog = StopsAfter(2)
    with StopRequest() as stop, pytest.raises(StoppedEarly, match="SIGTERM: stopped before training began"):
        Contents(data_of(packed(hashed_elsewhere), []), ALONE).require_sound(ALONE, watchdog, stop)
    assert watchdog.left <= 0


def test_what_takes_long_is_told(
    tmp_path: Path, large_files: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contents, "_TOLD_EVERY_S", 1e-9)
    path = write(tmp_path / "data.packed", tokens=1_500_000)
    path.chmod(0o600)
    with StopRequest() as stop, caplog.at_level(logging.INFO, "modlib"):
        Contents(data_of(packed(path), []), ALONE).require_sound(ALONE, Watchdog(), stop)
    assert f"hashing {path} for the first time as it is now: 2.86 MiB of 2.86 MiB, 0.00s left" in caplog.messages
