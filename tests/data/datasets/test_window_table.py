from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.cache import one_at_a_time
from modlib.data.datasets import window_table
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packed import file as packed_file
from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime import faults
from modlib.runtime.errors import EXIT_DATA, DataError
from tests.conftest import ROOT

HEADER_BYTES = 4096
LENGTHS = [3, 0, 2, 4, 9, 1, 2, 5, 0, 14, 1]
PACKINGS: list[Any] = ["in_order", "best_fit"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tables, in a cache of the test's own; the smallest file has its table kept."""
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(window_table, "_KEPT_FROM", 0)
    return tmp_path / "cache" / "windows"


def write(path: Path, lengths: Any = LENGTHS, loss_mask: bool = False) -> Path:
    """Documents of these lengths, whose tokens count up from 1 through all of them."""
    with PackedFileWriter(path, vocab_size=60_000, end_of_document_id=0, overwrite=True, loss_mask=loss_mask) as writer:
        tokens = np.arange(1, sum(lengths) + 1) % 60_000
        writer.write_documents(tokens, np.array(lengths), trained=tokens % 3 == 0 if loss_mask else None)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> str:
    return str(write(tmp_path / "documents.packed"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file whose table is kept without a test's doing: 70,000 documents."""
    lengths = np.random.default_rng(0).integers(1, 9, 70_000).tolist()
    return str(write(tmp_path_factory.mktemp("large") / "large.packed", lengths))


def look(dataset: PackedDocuments) -> list[Any]:
    """All that a dataset says."""
    windows = dataset.__getitems__(range(len(dataset)))
    ids = None if windows.document_ids is None else windows.document_ids.tolist()
    said = [dataset.num_tokens, dataset.padding, dataset.num_truncated_tokens, dataset.fingerprint]
    return [windows.ids.tolist(), windows.trained.tolist(), windows.present.tolist(), ids, *said]


def tables(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.windows"))


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=30).filter(any),
    st.integers(1, 9),
    st.sampled_from(PACKINGS),
    st.sampled_from(["truncate", "cut", "refuse"]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60)
def test_a_kept_table_is_the_one_that_is_made_in_memory(
    tmp_path: Path, lengths: list[int], seq_len: int, packing: Any, long_documents: Any, apart: bool, loss_mask: bool
) -> None:
    if long_documents == "refuse":
        lengths = [min(length, seq_len + 1) for length in lengths]
    path = write(tmp_path / "any.packed", lengths, loss_mask)

    def opened() -> PackedDocuments:
        return PackedDocuments(
            path=str(path),
            seq_len=seq_len,
            packing=packing,
            long_documents=long_documents,
            intra_document_masking=apart,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_table, "_KEPT_FROM", 1_000)
        in_memory = opened()
    first, second = opened(), opened()
    assert in_memory._table.path is None
    assert first._table.path == second._table.path
    assert str(second._table.path).endswith(".windows")
    assert look(first) == look(second) == look(in_memory)


def test_tables_of_few_documents_are_not_kept(packed: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_table, "_KEPT_FROM", len(LENGTHS) + 1)
    PackedDocuments(path=packed, seq_len=4, long_documents="cut")
    assert not cache.exists()
    monkeypatch.setattr(window_table, "_KEPT_FROM", len(LENGTHS))
    PackedDocuments(path=packed, seq_len=4, long_documents="cut")
    assert len(tables(cache)) == 1


def test_a_table_is_made_once_wherever_the_file_lies(
    packed: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = look(PackedDocuments(path=packed, seq_len=4, long_documents="cut"))
    (kept,) = tables(cache)
    before = os.stat(kept)
    monkeypatch.setattr(window_table, "make_table", None)  # would fail if it were called
    assert look(PackedDocuments(path=packed, seq_len=4, long_documents="cut")) == wanted
    copied = shutil.copy(packed, tmp_path / "copy.packed")
    assert look(PackedDocuments(path=str(copied), seq_len=4, long_documents="cut")) == wanted
    after = os.stat(kept)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_settings_and_documents_have_other_tables(packed: str, tmp_path: Path, cache: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"seq_len": 4, "long_documents": "cut"},
        {"seq_len": 5, "long_documents": "cut"},
        {"seq_len": 4, "long_documents": "truncate"},
        {"seq_len": 4, "long_documents": "cut", "packing": "best_fit"},
    ]
    for number, kind in enumerate(kinds):
        PackedDocuments(path=packed, **kind)
        PackedDocuments(path=packed, intra_document_masking=True, **kind)  # of the same windows
        assert len(tables(cache)) == number + 1
    PackedDocuments(path=str(write(Path(packed), LENGTHS[::-1])), **kinds[0])
    assert len(tables(cache)) == len(kinds) + 1


def truncate(kept: Path, other: Path) -> None:
    os.truncate(kept, kept.stat().st_size - 1)


def lengthen(kept: Path, other: Path) -> None:
    kept.write_bytes(kept.read_bytes() + b"\0")


def empty(kept: Path, other: Path) -> None:
    kept.write_bytes(b"")


def change_a_digit(kept: Path, other: Path) -> None:
    kept.write_bytes(kept.read_bytes().replace(b'"num_tokens": ', b'"num_tokens": 1', 1))


def put_another(kept: Path, other: Path) -> None:
    kept.write_bytes(other.read_bytes())


def put_a_pickle(kept: Path, other: Path) -> None:
    kept.write_bytes(pickle.dumps({"sizes": {}}).ljust(HEADER_BYTES))


DAMAGES = {
    truncate: "it has .* bytes, not",
    lengthen: "it has .* bytes, not",
    empty: "its header does not fit its hash",
    change_a_digit: "its header does not fit its hash",
    put_another: "it is of {.*'seq_len': 5",
    put_a_pickle: "its header does not fit its hash",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_that_does_not_fit_is_made_again(
    packed: str, cache: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path, Path], None], packing: Any
) -> None:
    wanted = look(PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing=packing))
    (kept,) = tables(cache)
    PackedDocuments(path=packed, seq_len=5, long_documents="cut", packing=packing)
    (other,) = set(tables(cache)) - {kept}
    sound = kept.read_bytes()
    damage(kept, other)
    with caplog.at_level(logging.INFO, "modlib"):
        assert look(PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing=packing)) == wanted
    assert kept.read_bytes() == sound
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings
    assert all(text.startswith(f"table {kept} is damaged and is made again: ") for text in warnings)
    caplog.clear()
    assert look(PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing=packing)) == wanted
    assert not caplog.records


ROW_DAMAGES = [(-1, 2), (40, 2), (1 << 62, 2), (0, 0), (0, -3), (0, 6), (0, (1 << 31) - 1)]


@pytest.mark.parametrize(("start", "length"), ROW_DAMAGES)
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_damaged_row_is_an_error(packed: str, cache: Path, packing: Any, start: int, length: int) -> None:
    sound = look(PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing=packing))
    (kept,) = tables(cache)
    content = bytearray(kept.read_bytes())
    content[-12:] = struct.pack("<qi", start, length)  # the last piece of the last window
    kept.write_bytes(content)
    dataset = PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing=packing)
    last = len(dataset) - 1
    assert dataset.__getitems__(range(last)).ids.tolist() == sound[0][:last]
    with pytest.raises(DataError) as caught:
        dataset.__getitems__([0, last])
    assert str(caught.value) == (
        f"window {last} in the table {kept} must be 5 tokens or less within the 41 of its packed file; "
        "the table is damaged: delete it, it is made again"
    )
    assert caught.value.exit_code == EXIT_DATA
    with pytest.raises(DataError, match="the table is damaged: delete it"):
        dataset.read_ahead(np.array([last]))
    kept.unlink()
    assert look(PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing=packing)) == sound


@pytest.mark.parametrize("first", [-1, 1 << 40, 0])
def test_a_damaged_first_piece_is_an_error(packed: str, cache: Path, first: int) -> None:
    PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing="best_fit")
    (kept,) = tables(cache)
    content = bytearray(kept.read_bytes())
    content[HEADER_BYTES + 8 : HEADER_BYTES + 16] = struct.pack("<q", first)  # of window 1
    kept.write_bytes(content)
    dataset = PackedDocuments(path=packed, seq_len=4, long_documents="cut", packing="best_fit")
    with pytest.raises(DataError, match=r"window [01] in the table .*\.windows must be 5 tokens or less"):
        dataset.__getitems__([1, 0])


def test_damaged_documents_do_not_leave_their_table_to_the_sound_ones(packed: str, cache: Path) -> None:
    """The hash in the header of a packed file is a promise; it is not compared when a large one is opened."""
    offset, _ = PackedFile(packed).header.sections["documents"]
    sound = Path(packed).read_bytes()
    status = os.stat(packed)

    def put(content: bytes) -> list[int]:
        before = os.stat(packed).st_ctime_ns
        while os.stat(packed).st_ctime_ns == before:  # the clock of some file systems ticks every few milliseconds
            Path(packed).write_bytes(content)
            os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
        table = window_table.window_table(PackedFile(packed), 4, "cut", "in_order")
        return table.rows["start"].tolist()

    wanted = put(sound)
    damaged = bytearray(sound)
    damaged[offset + 32 : offset + 40] = struct.pack("<q", 8)  # where the fifth document begins: 9
    assert put(bytes(damaged)) != wanted
    assert put(sound) == wanted
    assert len(tables(cache)) == 2


def test_documents_out_of_order_have_no_table(packed: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "_OFFSETS_CHECKED_ON_OPEN", 0)
    offset, _ = PackedFile(packed).header.sections["documents"]
    content = bytearray(Path(packed).read_bytes())
    content[offset + 8 : offset + 16] = struct.pack("<q", 30)
    Path(packed).write_bytes(content)
    for packing in PACKINGS:
        with pytest.raises(DataError, match=r"document 1 of .* \(tokens 30 to 3\) must lie in order within its 41"):
            window_table.window_table(PackedFile(packed), 4, "cut", packing)
    assert [path.suffix for path in cache.iterdir()] == [".json"]  # the hash of what was read, and no lock


OPEN = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from modlib.data.datasets.packed_documents import PackedDocuments
dataset = PackedDocuments(path=sys.argv[1], seq_len=32, packing="best_fit")
print(dataset.__getitems__(range(len(dataset))).ids.sum(), len(dataset), flush=True)
"""


def start(large: str, code: str = OPEN) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, large]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_of_processes_that_open_at_once_one_makes_the_table(large: str, cache: Path) -> None:
    PackedDocuments(path=large, seq_len=32, packing="best_fit")
    (kept,) = tables(cache)
    kept.unlink()
    lock = kept.with_name(f"{kept.name}.lock")
    processes = []
    try:
        with one_at_a_time(lock, lambda: None):
            processes = [start(large) for _ in range(3)]
            for process in processes:  # all of them have found no table, and wait
                assert process.stdout is not None
                assert process.stdout.readline() == f"waiting for another process that looks through {large}\n"
        said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0, 0]
    made = [line for lines in said for line in lines if "looking through 70000 documents once" in line]
    assert made == [f"{large}: looking through 70000 documents once, for {kept}"]
    assert len({lines[-1] for lines in said}) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".windows"]


KILL = """
import os, signal, sys
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.runtime import faults
operation, number = sys.argv[2], int(sys.argv[3])
def kill(name, detail):
    global number
    if ".windows" in detail and detail.startswith(operation):
        number -= 1
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)
with faults.installed("fs.operation", kill):
    PackedDocuments(path=sys.argv[1], seq_len=32, packing="best_fit")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "number"), [("create", 1), ("write", 1), ("write", 3), ("fsync", 1), ("rename", 1)]
)
def test_killed_while_it_is_made(large: str, cache: Path, operation: str, number: int) -> None:
    command = [sys.executable, "-c", KILL, large, operation, str(number)]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert tables(cache) == []
    dataset = PackedDocuments(path=large, seq_len=32, packing="best_fit")
    assert dataset._table.path is not None
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".windows"]  # what was left aside is gone


def test_without_a_cache_it_is_made_in_memory_and_said_once(
    packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = look(PackedDocuments(path=packed, seq_len=4, long_documents="cut"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "modlib"):
        dataset = PackedDocuments(path=packed, seq_len=4, long_documents="cut")
    assert look(dataset) == wanted
    (said,) = caplog.messages
    assert said.startswith(f"the table of windows of {packed} cannot be kept (cache folder must be writable: ")
    assert said.endswith("; every process makes its own: free space, or set MODLIB_CACHE to a writable folder")
    assert look(pickle.loads(pickle.dumps(dataset))) == wanted


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing_and_fails_nothing(
    packed: str, cache: Path, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    def full(name: str, detail: str) -> None:
        if ".windows" in detail and detail.startswith(operation):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with caplog.at_level(logging.WARNING, "modlib"), faults.installed("fs.operation", full):
        found = look(PackedDocuments(path=packed, seq_len=4, long_documents="cut"))
    (said,) = caplog.messages
    assert "cannot be kept ([Errno 28] No space left on device); every process makes its own" in said
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    assert found == look(PackedDocuments(path=packed, seq_len=4, long_documents="cut"))
    assert len(tables(cache)) == 1


WORKER = """
import pickle, sys
from modlib.data.datasets import window_table
window_table.make_table = None  # would fail if it were called
dataset = pickle.load(sys.stdin.buffer)
with open("/proc/self/maps") as maps:
    assert str(dataset._table.path) in maps.read()
print(dataset.__getitems__(range(len(dataset))).ids.sum())
"""


def test_a_worker_maps_the_same_file(large: str) -> None:
    dataset = PackedDocuments(path=large, seq_len=32, packing="best_fit")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 600
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER]
    said = subprocess.run(
        command, input=pickled, stdout=subprocess.PIPE, env=environment, check=True, timeout=60
    ).stdout
    assert int(said) == dataset.__getitems__(range(len(dataset))).ids.sum()


def test_a_table_that_is_deleted_or_replaced_does_not_disturb_who_has_it(packed: str, cache: Path) -> None:
    dataset = PackedDocuments(path=packed, seq_len=4, long_documents="cut")
    before = look(dataset)
    tables(cache)[0].unlink()
    PackedDocuments(path=packed, seq_len=4, long_documents="cut")
    tables(cache)[0].unlink()
    assert look(dataset) == before
