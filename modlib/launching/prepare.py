"""From a checked configuration to a run folder that this attempt may use."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Literal

from modlib.config import Config, diff, load, render_diff
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.hardware import disk_free_bytes
from modlib.runtime.run_folder import RunFolder, check_name
from modlib.runtime.units import format_bytes

logger = logging.getLogger("modlib")

MOST_PATCH_BYTES = 5 << 20
Resume = Literal["auto", "never", "must"]


def default_name(config: Config) -> str:
    """`<stem of the last gin file>-<first 8 digits of the config's hash>`."""
    stem = Path(config.files[0]).stem if config.files else "run"
    return f"{stem[:50]}-{config.hash[:8]}"


def prepare(
    config: Config, *, runs_dir: Path, name: str | None = None, resume: Resume = "auto", needed_bytes: int = 0
) -> RunFolder:
    """Make the run's folder, or find it again and see that it is the same run.

    Args:
        config: The checked configuration.
        runs_dir: Where run folders live.
        name: The run's name; None takes `default_name`.
        resume: "auto" continues a run that exists; "never" refuses one that has checkpoints; "must" refuses to start.
        needed_bytes: Size of one checkpoint.

    Raises:
        ConfigError: The name is no name, or the run exists with another configuration.
        RunFolderError: The folder cannot be written, the disk is too small, or `resume` forbids.
    """
    run = RunFolder(Path(runs_dir) / check_name(default_name(config) if name is None else name))
    has_checkpoints = run.checkpoints_path.is_dir() and any(run.checkpoints_path.glob("step-*"))
    if resume == "never" and has_checkpoints:
        raise RunFolderError(
            f"run '{run.name}' must be new with --resume never, but has checkpoints in {run.checkpoints_path}; "
            "choose another --name, or leave --resume out to continue it"
        )
    if resume == "must" and not has_checkpoints:
        raise RunFolderError(
            f"run '{run.name}' must have a checkpoint with --resume must, but there is none in {run.checkpoints_path}; "
            "check --name and --runs_dir, or leave --resume out to start it"
        )
    if run.config_path.is_file():
        _compare(config, run)
    run.create()
    _require_space(run, needed_bytes)
    config.to_run_folder(run.path)
    if not run.run_json_path.is_file():
        run.update(name=run.name, status="created", **code_state(run))
    run.update(config_hash=config.hash)
    return run


def _compare(config: Config, run: RunFolder) -> None:
    """Refuse a run of another configuration; tell what differs where it does not matter."""
    before = load([run.config_path])
    differences = diff(before, config)
    if before.hash != config.hash:
        raise ConfigError(
            f"run '{run.name}' exists with a different config ({run.config_path}):\n{render_diff(differences)}\n"
            "    start it as a new run with another --name, or set these values back to continue this one"
        )
    if differences:
        logger.info("this run continues with changed settings that change no number:\n%s", render_diff(differences))


def _require_space(run: RunFolder, needed_bytes: int) -> None:
    free = disk_free_bytes(run.path)
    if free < needed_bytes:
        raise RunFolderError(
            f"free space in {run.path.parent} ({format_bytes(free)}) must be at least one checkpoint "
            f"({format_bytes(needed_bytes)}); free some or choose another --runs_dir"
        )


def code_state(run: RunFolder) -> dict[str, object]:
    """The commit of the code that runs, and what was changed since it, as dirty.patch in the run folder."""
    source = Path(__file__).parents[2]
    commit = _git(source, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": None}
    patch = _git(source, "diff", "HEAD", "--binary") or ""
    untracked = (_git(source, "ls-files", "--others", "--exclude-standard") or "").split("\n")
    if patch:
        durable.atomic_write_text(run.path / "dirty.patch", patch[:MOST_PATCH_BYTES])
    return {
        "git_commit": commit.strip(),
        "git_dirty": bool(patch),
        "git_untracked": [name for name in untracked if name][:100],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
