"""Damaged and hostile checkpoints: named, skipped, never half loaded, never executed."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.checkpointing.loading import load, newest, restore_newest, verify
from modlib.checkpointing.manifest import DamagedCheckpointError, _digest
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError
from tests.checkpointing.training import Run, fingerprint

DATA = "data-00000-00000.bin"


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, str, str]:
    """A folder with checkpoints of steps 1 and 2, and their fingerprints."""
    run = Run(seed=1)
    prints = []
    for step in (1, 2):
        run.train(1)
        save(tmp_path, step=step, **run.parts, extra={"step": step}, rank_state={"seed": step})
        prints.append(fingerprint(run))
    return tmp_path, prints[0], prints[1]


def flip(path: Path, position: int = 77) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def swap(folder: Path) -> None:
    shutil.copy(folder.parent / "step-00000001" / DATA, folder / DATA)


def swap_rank_state(folder: Path) -> None:
    shutil.copy(folder.parent / "step-00000001" / "rank-00000.json", folder / "rank-00000.json")


def link(folder: Path) -> None:
    moved = folder.parent / "moved"
    (folder / DATA).rename(moved)
    (folder / DATA).symlink_to(moved)


def fifo(folder: Path) -> None:
    (folder / DATA).unlink()
    os.mkfifo(folder / DATA)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit flip": (lambda f: flip(f / DATA), rf"{DATA} has SHA-256 [0-9a-f]{{64}}, which must equal the manifest's"),
    "truncated": (lambda f: os.truncate(f / DATA, 100), rf"{DATA} has 100 bytes, which must equal the manifest's \d+"),
    "missing": (lambda f: os.unlink(f / DATA), rf"{DATA} must be a readable file; No such file"),
    "zeroed": (lambda f: (f / DATA).write_bytes(bytes((f / DATA).stat().st_size)), f"{DATA} has SHA-256"),
    "of another save": (swap, f"{DATA} has SHA-256"),
    "rank state of another save": (swap_rank_state, "rank-00000.json has another SHA-256"),
    "no manifest": (lambda f: os.unlink(f / "manifest.json"), "manifest.json must be a readable file; No such file"),
    "garbage manifest": (
        lambda f: (f / "manifest.json").write_bytes(b"\x80\x04gar"),
        "manifest.json must be UTF-8; byte 0",
    ),
    "torn manifest": (lambda f: os.truncate(f / "manifest.json", 500), "manifest.json must be JSON: "),
    "empty manifest": (lambda f: os.truncate(f / "manifest.json", 0), "manifest.json must be JSON: expecting value"),
    "other JSON": (lambda f: (f / "manifest.json").write_text("[1]"), "manifest.json must have an object, and has"),
    "deep JSON": (
        lambda f: (f / "manifest.json").write_text("[" * 100_000),
        "manifest.json must be JSON of at most 100 levels",
    ),
    "manifest of another": (lambda f: (f / "manifest.json").write_text("{}"), "is not of the format modlib-checkpoint"),
    "linked shard": (link, f"{DATA} must be a readable file; Too many levels of symbolic links"),
    "fifo": (fifo, f"{DATA} has 0 bytes, which must equal the manifest's"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    two: tuple[Path, str, str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, older, _ = two
    harm, text = DAMAGES[damage]
    harm(folder / "step-00000002")
    run = Run(seed=3)
    before = fingerprint(run)
    with pytest.raises(DamagedCheckpointError, match=text):
        load(folder / "step-00000002", **run.parts)
    assert fingerprint(run) == before, "the run is untouched"
    state = restore_newest(folder, **run.parts)
    assert state is not None
    assert (state.step, state.extra, state.rank_state) == (1, {"step": 1}, {"seed": 1})
    assert fingerprint(run) == older
    assert "step-00000002 is" in caplog.text
    assert "skipped" in caplog.text
    if damage != "rank state of another save":
        assert len(verify(folder / "step-00000002")) == 1


def test_without_a_good_checkpoint_nothing_is_started_from_scratch_by_surprise(two: tuple[Path, str, str]) -> None:
    folder, _, _ = two
    for step in (1, 2):
        flip(folder / f"step-0000000{step}" / DATA)
    run = Run(seed=3)
    before = fingerprint(run)
    text = (
        r"checkpoints in .* \(step-00000002, step-00000001\) must have at least one that is undamaged; "
        r"move them away to start from scratch\n(.*\n)?.*step-00000002/data-00000-00000.bin has SHA-256"
    )
    with pytest.raises(CheckpointError, match=text):
        restore_newest(folder, **run.parts)
    assert fingerprint(run) == before
    assert restore_newest(folder / "none", **run.parts) is None


@settings(max_examples=30)
@given(data=st.data())
def test_any_damage_to_any_byte_is_found_or_harmless(two: tuple[Path, str, str], data: st.DataObject) -> None:
    folder, older, newer = two
    files = sorted((folder / "step-00000002").iterdir())
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    changed = {
        "flip": content[:position]
        + bytes([content[position] ^ data.draw(st.integers(1, 255))])
        + content[position + 1 :],
        "cut": content[:position],
        "insert": content[:position] + b"7" + content[position:],
    }[kind]
    path.write_bytes(changed)
    try:
        run = Run(seed=3)
        state = restore_newest(folder, **run.parts)
    finally:
        path.write_bytes(content)
    assert state is not None
    assert fingerprint(run) == {1: older, 2: newer}[state.step]
    assert state.extra == {"step": state.step}
    assert state.rank_state == {"seed": state.step}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as someone would who knows how to fix its hash."""
    path = folder / "step-00000002" / "manifest.json"
    body = json.loads(path.read_bytes())
    del body["sha256"]
    change(body)
    path.write_text(json.dumps({"sha256": _digest(body), **body}))


def tensor(body: dict[str, Any]) -> dict[str, Any]:
    return body["tensors"]["model.norm.weight"]


def halves(stored: dict[str, Any], *offsets: int) -> list[dict[str, Any]]:
    """Two chunks of half a vector's values each, with bytes of their own, at these places."""
    (chunk,) = stored["chunks"]
    size = chunk["sizes"][0] // 2
    return [
        {**chunk, "offsets": [offset], "sizes": [size], "start": chunk["start"] + 4 * size * number}
        for number, offset in enumerate(offsets)
    ]


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "path traversal": (
        lambda b: b["files"].update({"../../canary": {"size": 1, "sha256": "0" * 64}}),
        "names a file ('../../canary') that no checkpoint has",
    ),
    "absolute path": (
        lambda b: b["files"].update({"/etc/passwd": {"size": 1, "sha256": "0" * 64}}),
        "names a file ('/etc/passwd') that no checkpoint has",
    ),
    "absurd shape": (lambda b: tensor(b).update(shape=[1 << 40]), "has chunks that do not make up the tensor"),
    "absurd chunk": (
        lambda b: (tensor(b).update(shape=[1 << 40]), tensor(b)["chunks"][0].update(sizes=[1 << 40])),
        "has a chunk of model.norm.weight outside its stream",
    ),
    "huge number": (lambda b: tensor(b).update(shape=[1 << 70]), "has a number (1180591620717411303424) that must be"),
    "negative": (lambda b: tensor(b)["chunks"][0].update(start=-8), "has a number (-8) that must be an int >= 0"),
    "not a number": (lambda b: b.update(step="2"), "has a number ('2') that must be an int >= 0"),
    "outside its tensor": (lambda b: tensor(b)["chunks"][0].update(offsets=[5]), "has a chunk outside its tensor"),
    "unknown rank": (lambda b: tensor(b)["chunks"][0].update(rank=9), "outside its stream"),
    "unknown dtype": (lambda b: tensor(b).update(dtype="load"), "has an unknown dtype ('load')"),
    "list as dtype": (lambda b: tensor(b).update(dtype=["float32"]), "has a dtype that is no text"),
    "two equal halves": (
        lambda b: tensor(b).update(chunks=halves(tensor(b), 0, 0)),
        "has chunks that do not make up the tensor model.norm.weight",
    ),
    "halves that share a value": (
        lambda b: tensor(b).update(chunks=[*halves(tensor(b), 0, 1), {**tensor(b)["chunks"][0], "sizes": [0]}]),
        "has chunks that do not make up the tensor model.norm.weight",
    ),
    "bytes of another tensor": (
        lambda b: tensor(b)["chunks"][0].update(start=0),
        "in the bytes of another one",
    ),
    "deep state": (
        lambda b: b.update(extra=functools.reduce(lambda inner, _: [inner], range(150), 1)),
        "must be JSON of at most 100 levels",
    ),
    "many dimensions": (lambda b: tensor(b).update(shape=[1] * 100), "has a malformed shape"),
    "huge stream": (lambda b: b["streams"]["0"].update(size=1 << 60), "has a stream of rank 0 without its files"),
    "no tensors": (lambda b: b.pop("tensors"), "has a missing or malformed entry (KeyError: 'tensors')"),
    "bad alias": (lambda b: b["aliases"].update(a="b"), "has an alias of a tensor it does not hold"),
    "newer format": (lambda b: b.update(format_version=2), "has format_version (2), which must equal 1"),
    "bad hash": (lambda b: b["files"][DATA].update(sha256="x"), f"has a malformed sha256 for {DATA}"),
    "unknown tag": (
        lambda b: b.update(extra={"!": "object", "items": []}),
        "has malformed state (unknown tag 'object')",
    ),
    "extra of another kind": (lambda b: b.update(extra=[1]), "has malformed state"),
    "another step": (lambda b: b.update(step=9), "is of step 9, which must equal 2"),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_manifest_is_refused(
    two: tuple[Path, str, str], forgery: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, older, _ = two
    change, text = FORGED[forgery]
    rewrite(folder, change)
    run = Run(seed=3)
    state = restore_newest(folder, **run.parts)
    assert state is not None
    assert state.step == 1
    assert fingerprint(run) == older
    assert text in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b["optimizer"].pop("groups"),
        lambda b: b["optimizer"]["groups"].append(3),
        lambda b: b["optimizer"]["state"].update({"norm.weight": 5}),
        lambda b: b["optimizer"]["state"]["norm.weight"]["tensors"].append("nowhere"),
        lambda b: b["optimizer"]["groups"][0].update(values={"!": "os.system"}),
        lambda b: b["scheduler"].pop("state"),
        *(
            lambda b, name=name, value=value: b["optimizer"]["groups"][0]["values"].update({name: value})
            for name, value in (
                ("weight_decay", math.nan),
                ("eps", math.inf),
                ("lr", "fast"),
                ("lr", None.__class__.__name__),
                ("weight_decay", [0.1]),
                ("betas", {"!": "tuple", "items": [0.9, math.nan]}),
                ("betas", {"!": "tuple", "items": [0.9]}),
                ("betas", [0.9, 0.99]),
                ("initial_lr", -math.inf),
                ("lr", 10**400),
            )
        ),
        *(
            lambda b, name=name, value=value: b["scheduler"]["state"].update({name: value})
            for name, value in (
                ("base_lrs", [math.inf, 0.1]),
                ("_step_count", "2"),
                ("last_epoch", math.nan),
                ("base_lrs", 0.1),
                ("_last_lr", {"!": "dict", "items": []}),
            )
        ),
    ],
)
def test_a_forged_state_is_refused_before_anything_changes(
    two: tuple[Path, str, str], change: Callable[[dict[str, Any]], object]
) -> None:
    folder, _, _ = two
    rewrite(folder, change)
    run = Run(seed=3)
    before = fingerprint(run)
    with pytest.raises(CheckpointError, match=r"step-00000002 (has a malformed optimizer or scheduler|must fit)"):
        load(folder / "step-00000002", **run.parts)
    assert fingerprint(run) == before


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["manifest.json", DATA, "rank-00000.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_no_pickle_in_a_checkpoint_is_ever_run(two: tuple[Path, str, str], name: str, how: str) -> None:
    folder, _, _ = two
    canary = folder / "canary"
    path = folder / "step-00000002" / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    else:
        buffer = io.BytesIO()
        torch.save(Canary(canary), buffer)
        path.write_bytes(buffer.getvalue())
    content = path.read_bytes()
    known = json.loads((folder / "step-00000001" / "manifest.json").read_text())["files"]
    if name in known:  # with the right size and hash, so that nothing but its content protects us

        def adopt(body: dict[str, Any]) -> None:
            body["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

        rewrite(folder, adopt)
    run = Run(seed=3)
    found = newest(folder)
    assert found is not None
    verify(folder / "step-00000002")
    restore_newest(folder, **run.parts)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary works"


def test_the_source_unpickles_nothing() -> None:
    root = Path(__file__).parents[2] / "modlib" / "checkpointing"
    for path in root.glob("*.py"):
        text = path.read_text()
        if path.name == "model_loading.py":  # other people's files; what it lets through has tests of its own
            assert text.count("torch.load(") == text.count("weights_only=True") == 1
            continue
        assert "pickle" not in text.replace("no pickle", ""), path
        assert "torch.load" not in text, path
