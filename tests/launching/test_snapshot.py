"""What was submitted is what runs: from the copy, whatever was edited since; a copy that was edited is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.config import Config, load
from modlib.launching.git import SOURCE
from modlib.launching.snapshot import ABANDONED_S, MANIFEST, Snapshot, take_snapshot, verify_snapshot
from modlib.runtime import faults
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder
from tests.launching.projects import commit_all, git, importing, new_project, write


@pytest.fixture(scope="module")
def config() -> Config:
    return load(["debug/tiny.gin"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = new_project(tmp_path / "source")
    write(source, {"modlib/part.py": "PART = 1\n", "data/values.txt": "1 2 3\n"})
    (source / "link.txt").symlink_to("data/values.txt")
    commit_all(source, "two")
    return source


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "run")
    run.create()
    return run


@pytest.fixture
def taken(run: RunFolder, config: Config, source: Path) -> Snapshot:
    return take_snapshot(run, config, source)


def refusal(path: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        verify_snapshot(path)
    return str(caught.value)


def edited(snapshot: Snapshot, what: str) -> str:
    return (
        f"code snapshot ({snapshot.path}) must be the code that was submitted ({snapshot.sha256[:12]}), but was edited "
        f"({what}); set this back, or submit again"
    )


# ------------------------------------------------------------------------------------- what was submitted is what runs

MODEL = """
import sys
import helper
from modlib.components import component
from modlib.models.gpt2 import GPT2

@component("model", "mine")
class Mine(GPT2):
    '''A small GPT-2.'''
    def __init__(self, vocab_size: int, seq_len: int):
        super().__init__(vocab_size=vocab_size, seq_len=seq_len, num_layers=1, num_heads=1, dim=16)
        import lazy.helper, modlib
        words = [modlib.__version__, "OLD", helper.VALUE, lazy.helper.VALUE]
        print("this is", *words, file=sys.stderr)
"""
GIN = """
include 'debug/tiny.gin'
import my_model
train.model = @Mine
Mine.vocab_size = 4096
Mine.seq_len = %SEQ_LEN
NUM_STEPS = 2
EVAL_EVERY = 2
CHECKPOINT_EVERY = 2
"""
SUBMIT = """
import json, sys
from modlib.config import load
from modlib.launching.snapshot import take_snapshot
from modlib.runtime.run_folder import RunFolder
config = load([sys.argv[1]], sys.argv[3:])
config.activate()
run = RunFolder(sys.argv[2])
run.create()
config.to_run_folder(run.path)
run.begin_attempt()
snapshot = take_snapshot(run, config)
print(json.dumps([str(snapshot.path), *map(str, snapshot.python_paths)]))
"""


@pytest.mark.slow
def test_a_job_trains_with_the_code_that_was_submitted_whatever_is_edited_later(
    tmp_path: Path, small_corpus: Path
) -> None:
    source, user, run = tmp_path / "source", tmp_path / "user", RunFolder(tmp_path / "runs" / "run")
    for name in ("modlib", "gin_configs"):
        shutil.copytree(SOURCE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = source / "modlib" / "__init__.py"
    init.write_text("__version__ = '0.OLD'\n")
    commit_all(source)
    write(user, {"my_model.py": MODEL, "helper.py": "VALUE = 'OLD'\n", "lazy/helper.py": "VALUE = 'OLD'\n"})
    write(user, {"mine.gin": GIN, ".env": "SECRET=1\n"})

    def python(paths: str, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "RANK": "0", "WORLD_SIZE": "1"}
        return subprocess.run(
            [sys.executable, *words], cwd=user, env=environment, capture_output=True, text=True, timeout=120
        )

    params = (f"DATA='{small_corpus}'", f"VAL_DATA='{small_corpus}'")
    submitted = python(str(source), "-c", SUBMIT, "./mine.gin", str(run.path), *params)
    assert submitted.returncode == 0, submitted.stderr
    path, *python_paths = json.loads(submitted.stdout)

    init.write_text("raise SystemExit('the edited modlib runs')\n")
    (user / "my_model.py").write_text(MODEL.replace("OLD", "NEW"))
    (user / "helper.py").write_text("VALUE = 'NEW'\n")
    shutil.rmtree(user / "lazy")
    shutil.rmtree(source / "gin_configs")
    job = python(os.pathsep.join(python_paths), "-m", "modlib.cli.processes.worker", str(run.path))
    assert job.returncode == 0, job.stderr
    assert "this is 0.OLD OLD OLD OLD\n" in job.stderr
    assert run.read()["step"] == 2
    assert verify_snapshot(Path(path)).path == Path(path)  # and it wrote nothing in there
    assert not [folder for folder in Path(path).rglob("__pycache__") if folder.is_dir()]
    assert not list(Path(path).rglob(".env"))


def test_bytecode_is_never_written_so_only_verified_text_runs(
    config: Config, run: RunFolder, source: Path, tmp_path: Path
) -> None:
    write(tmp_path, {"user/pack/mine.py": "VALUE = 1\n"})
    with importing(config, tmp_path / "user", "pack.mine") as active:
        taken = take_snapshot(run, active, source)
    script = "import pack.mine, modlib.part; print(pack.mine.__file__, modlib.__file__, pack.mine.__cached__)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, taken.python_paths)), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = sorted(taken.path.rglob("*"))
    out = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    file, project_file, cached = out.stdout.split()
    assert file == str(taken.path / "user" / "0" / "pack" / "mine.py")
    assert project_file == str(taken.path / "project" / "modlib" / "__init__.py")
    assert not Path(cached).exists()
    assert sorted(taken.path.rglob("*")) == before


# --------------------------------------------------------------------------------------------------------- the folder


def test_a_snapshot_is_complete_read_only_and_described(taken: Snapshot, run: RunFolder, source: Path) -> None:
    assert taken.path == run.path / "code" / taken.sha256[:12]
    assert taken.python_paths == (taken.path / "project",)
    assert (taken.path / "project" / "modlib" / "part.py").read_text() == "PART = 1\n"
    assert os.readlink(taken.path / "project" / "link.txt") == "data/values.txt"
    assert verify_snapshot(taken.path) == taken
    for path in taken.path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_mode & 0o222 == 0, path
    assert (taken.path / "project" / "launch.py").stat().st_mode & stat.S_IXUSR
    assert not (taken.path / "project" / "modlib" / "part.py").stat().st_mode & stat.S_IXUSR
    manifest = json.loads((taken.path / MANIFEST).read_text())
    assert (manifest["format"], manifest["sha256"]) == (1, taken.sha256)
    assert (manifest["git_commit"], manifest["git_dirty"]) == (git(source, "rev-parse", "HEAD"), False)
    assert manifest["sources"] == {"project": str(source)}
    assert manifest["files"]["project/launch.py"].startswith("100755 ")
    assert manifest["files"]["project/link.txt"].startswith("120000 ")
    assert [path.name for path in (run.path / "code").iterdir()] == [taken.path.name]


def test_what_is_left_out_is_in_the_manifest(config: Config, run: RunFolder, source: Path) -> None:
    write(source, {"look.ipynb": "{}", "modlib/part.py": "PART = 2\n"})
    git(source, "add", "look.ipynb")
    manifest = json.loads((take_snapshot(run, config, source).path / MANIFEST).read_text())
    assert manifest["left_out"] == {"project/look.ipynb": "a notebook"}
    assert manifest["git_dirty"] is True


def test_the_hash_is_of_content_names_and_executable_bits_alone(
    config: Config, run: RunFolder, source: Path, tmp_path: Path
) -> None:
    def sha256() -> str:
        return take_snapshot(run, config, source).sha256

    first = sha256()
    os.utime(source / "modlib" / "part.py", (1, 1))
    (source / "modlib" / "part.py").chmod(0o600)
    git(source, "commit", "--quiet", "--allow-empty", "-m", "three")
    assert sha256() == first
    (source / "modlib" / "part.py").chmod(0o755)
    executable = sha256()
    (source / "modlib" / "part.py").write_text("PART = 2\n")
    content = sha256()
    git(source, "mv", "modlib/part.py", "modlib/renamed.py")
    name = sha256()
    assert len({first, executable, content, name}) == 4
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere", symlinks=True)
    assert take_snapshot(run, config, elsewhere).sha256 == name


def test_names_that_are_not_text_are_kept(config: Config, run: RunFolder, source: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n.txt")
    (source / name).write_text("x")
    commit_all(source)
    taken = take_snapshot(run, config, source)
    assert (taken.path / "project" / name).read_text() == "x"
    assert verify_snapshot(taken.path) == taken
    os.unlink(taken.path / "project" / name)
    assert "(missing: project/caf\ufffd" in refusal(taken.path)


def test_without_git_a_snapshot_is_taken_all_the_same(
    config: Config, run: RunFolder, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    taken = take_snapshot(run, config, source)
    manifest = json.loads((taken.path / MANIFEST).read_text())
    assert (manifest["git_commit"], manifest["git_dirty"]) == (None, None)
    assert (taken.path / "project" / "modlib" / "part.py").is_file()
    assert not (taken.path / "project" / "launch.py").exists()


def test_a_relative_runs_dir_gives_absolute_paths(
    config: Config, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Path("runs") / "relative")
    run.create()
    taken = take_snapshot(run, config, source)
    assert taken.path.parent == tmp_path / "runs" / "relative" / "code"
    assert verify_snapshot(taken.path.relative_to(tmp_path)) == taken


# -------------------------------------------------------------------------------------------------- reuse, concurrency


def test_the_same_code_is_the_same_snapshot(taken: Snapshot, run: RunFolder, config: Config, source: Path) -> None:
    before = taken.path.stat().st_ino
    assert take_snapshot(run, config, source) == taken
    assert taken.path.stat().st_ino == before
    (source / "modlib" / "part.py").write_text("PART = 2\n")
    other = take_snapshot(run, config, source)
    assert other != taken
    assert verify_snapshot(taken.path) == taken  # an attempt that is queued keeps its own
    assert sorted(path.name for path in (run.path / "code").iterdir()) == sorted([taken.path.name, other.path.name])


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_damaged_one_is_replaced(
    taken: Snapshot,
    run: RunFolder,
    config: Config,
    source: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    can_exchange: bool,
) -> None:
    if not can_exchange:  # as on NFS
        monkeypatch.setattr("modlib.runtime.durable.exchange", lambda first, second: False)
    os.unlink(taken.path / "project" / "launch.py")
    assert take_snapshot(run, config, source) == taken
    assert verify_snapshot(taken.path) == taken
    assert f"taking the code snapshot anew: {edited(taken, 'missing: project/launch.py')}" in caplog.messages
    assert [path.name for path in (run.path / "code").iterdir()] == [taken.path.name]


def test_many_takes_at_once_are_one_snapshot(run: RunFolder, config: Config, source: Path) -> None:
    barrier, results = threading.Barrier(8), []

    def take() -> None:
        barrier.wait(30)
        results.append(take_snapshot(run, config, source))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 8
    assert len(set(results)) == 1
    assert verify_snapshot(results[0].path) == results[0]
    assert [path.name for path in (run.path / "code").iterdir()] == [results[0].path.name]


def test_a_job_that_submits_itself_again_keeps_its_snapshot(taken: Snapshot, run: RunFolder, config: Config) -> None:
    assert take_snapshot(run, config, taken.path / "project") == taken
    (taken.path / "project" / "added.py").write_text("")
    with pytest.raises(RunFolderError, match=r"\(added: project/added.py\)"):
        take_snapshot(run, config, taken.path / "project")


def test_an_error_in_the_middle_leaves_nothing_and_is_told(run: RunFolder, config: Config, source: Path) -> None:
    def full(point: str, detail: str) -> None:
        if detail.startswith("write ") and detail.endswith("/values.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), detail.removeprefix("write "))

    with faults.installed("fs.operation", full), pytest.raises(RunFolderError) as caught:
        take_snapshot(run, config, source)
    text = str(caught.value)
    assert text.startswith(f"code snapshot ({run.path / 'code'}) must be complete, but {run.path / 'code'}/.tmp-")
    assert text.endswith(
        "/project/data/values.txt cannot be read or written: No space left on device; correct that, or choose another "
        "--runs_dir, and submit again"
    )
    assert list((run.path / "code").iterdir()) == []


def test_a_take_that_was_killed_is_no_snapshot_and_is_removed_later(
    run: RunFolder, config: Config, source: Path
) -> None:
    def killed(point: str, detail: str) -> None:
        if detail.startswith("rename "):
            shutil.copytree(detail.split()[1], run.path / "code" / ".tmp-killed", symlinks=True)
            raise KeyboardInterrupt

    with faults.installed("fs.operation", killed), contextlib.suppress(KeyboardInterrupt):
        take_snapshot(run, config, source)
    assert [path.name for path in (run.path / "code").iterdir()] == [".tmp-killed"]
    taken = take_snapshot(run, config, source)
    assert {path.name for path in (run.path / "code").iterdir()} == {".tmp-killed", taken.path.name}  # may be at work
    long_ago = (run.path / "code" / ".tmp-killed").stat().st_mtime - ABANDONED_S - 1
    os.utime(run.path / "code" / ".tmp-killed", (long_ago, long_ago))
    take_snapshot(run, config, source)
    assert [path.name for path in (run.path / "code").iterdir()] == [taken.path.name]


# --------------------------------------------------------------------------------------------------------- tampering


def _overwrite(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("PART = 3\n")


def _relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("launch.py")


def _replace_by_link(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    (path.parents[3] / "outside.py").write_bytes(content)
    path.symlink_to(path.parents[3] / "outside.py")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("modlib/part.py", _overwrite, "changed: project/modlib/part.py"),
        ("modlib/part.py", lambda path: path.chmod(0o755), "changed: project/modlib/part.py"),
        ("modlib/part.py", _replace_by_link, "changed: project/modlib/part.py"),
        ("modlib/part.py", os.unlink, "missing: project/modlib/part.py"),
        ("link.txt", _relink, "changed: project/link.txt"),
        ("modlib/new.py", lambda path: path.write_text(""), "added: project/modlib/new.py"),
        ("new", lambda path: path.symlink_to("/"), "added: project/new"),
        ("part.pyc", lambda path: path.write_text(""), "added: project/part.pyc"),
        ("new.txt", os.mkfifo, "added: project/new.txt"),
    ],
)
def test_what_was_edited_is_named(taken: Snapshot, name: str, change: Callable[[Path], object], told: str) -> None:
    change(taken.path / "project" / name)
    assert refusal(taken.path) == edited(taken, told)


def test_everything_that_was_edited_is_named_at_once_up_to_ten(taken: Snapshot) -> None:
    _overwrite(taken.path / "project" / "modlib" / "part.py")
    os.unlink(taken.path / "project" / "launch.py")
    for number in range(13):
        (taken.path / f"new_{number:02d}.py").write_text("")
    added = ", ".join(f"new_{number:02d}.py" for number in range(10))
    assert refusal(taken.path) == edited(
        taken, f"changed: project/modlib/part.py; missing: project/launch.py; added: {added} and 3 more"
    )


def test_bytecode_does_not_count_as_added(taken: Snapshot) -> None:
    blocked = taken.path / "project" / "modlib" / "__pycache__"
    assert blocked.read_bytes() == b""
    blocked.unlink()
    assert verify_snapshot(taken.path) == taken
    write(taken.path, {"project/modlib/__pycache__/part.cpython-311.pyc": ""})
    assert verify_snapshot(taken.path) == taken


def test_a_manifest_that_was_edited_along_is_found(taken: Snapshot, run: RunFolder, config: Config) -> None:
    manifest = taken.path / MANIFEST
    text = manifest.read_text()
    manifest.chmod(0o644)
    manifest.write_text(text.replace('"python_paths": [\n  "project"', '"python_paths": [\n  "../elsewhere"'))
    assert refusal(taken.path) == edited(taken, f"changed: {MANIFEST}")
    manifest.write_text(text)
    other = taken.path.rename(taken.path.with_name("0" * 12))
    assert refusal(other) == edited(Snapshot(other, taken.sha256), f"changed: {MANIFEST}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "must be a readable file: No such file or directory"),
        ("", "must be JSON: expecting value (line 1, column 1)"),
        ('{"format": 1', "must be JSON: expecting ',' delimiter (line 1, column 13)"),
        ("[]", "must have an object, and has []"),
        ("{}", "must have 'format'"),
        ('{"format": 2}', "must have one of 1 at format, and has 2"),
        ('{"format": 1, "sha256": 3, "python_paths": []}', "must have a text at sha256, and has 3"),
    ],
)
def test_a_manifest_that_is_none(taken: Snapshot, text: str | None, problem: str) -> None:
    (taken.path / MANIFEST).unlink()
    if text is not None:
        (taken.path / MANIFEST).write_text(text)
    expected = (
        f"code snapshot ({taken.path}) must have a snapshot.json that this version of modlib reads (format 1), but "
        f"{taken.path / MANIFEST} {problem}; submit again"
    )
    assert refusal(taken.path) == expected
    with pytest.raises(RunFolderError) as caught:
        _ = taken.python_paths
    assert str(caught.value) == expected


def test_a_file_that_cannot_be_read_is_named(taken: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    path = taken.path / "project" / "modlib" / "part.py"

    def stale(file: Path) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr("modlib.launching.snapshot._entry", stale)  # what a file server that went away answers
    assert refusal(taken.path) == (
        f"code snapshot ({taken.path}) must be readable, but {path} is not: {os.strerror(errno.ESTALE)}; correct that, "
        "or submit again"
    )
