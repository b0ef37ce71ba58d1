"""From a checked configuration to a run folder that this attempt may use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from modlib.checkpointing.names import step_folders
from modlib.checkpointing.run_checkpoints import require_checkpoints
from modlib.config import Config
from modlib.launching.continuing import Resume, require_same
from modlib.launching.git import SOURCE, commit_of, git
from modlib.launching.identity import default_name, with_batch_of
from modlib.launching.lengthening import Change, branch, branch_checkpoint, extend, history_of, stored_hashes
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.hardware import disk_free_bytes
from modlib.runtime.run_folder import SWEEP_FILE, RunFolder, check_name
from modlib.runtime.secrets import mask
from modlib.runtime.units import format_bytes

logger = logging.getLogger("modlib")

MOST_PATCH_BYTES = 5 << 20
MOST_UNTRACKED = 100


def prepare(
    config: Config,
    *,
    runs_dir: Path,
    name: str | None = None,
    resume: Resume = "auto",
    needed_bytes: int = 0,
    change: Change | None = None,
) -> RunFolder:
    """Make the run's folder, or find it again and see that it is the same run.

    Args:
        config: The checked configuration, as `identify` gives it.
        runs_dir: Where run folders live.
        name: The run's name; None takes `default_name`.
        resume: "auto" continues a run that exists; "never" refuses one that has checkpoints; "must" refuses to start.
        needed_bytes: Size of one checkpoint.
        change: How the run is made longer, or begins with another's checkpoint; None for neither.

    Raises:
        ConfigError: The name is no name, or the run exists with another configuration.
        CheckpointError: The run has trained, and its checkpoints are gone.
        RunFolderError: The folder cannot be written, the disk is too small, `resume` forbids, or config.gin is missing
            or edited and the checkpoints are of another configuration.
    """
    run = RunFolder(Path(runs_dir) / check_name(default_name(config, runs_dir) if name is None else name))
    if (run.path / SWEEP_FILE).is_file():
        raise ConfigError(
            f"name ({run.name}) must be a run's, but {run.path} is the folder of a sweep; give its --sweep too, or "
            "choose another --name"
        )
    has_checkpoints = bool(step_folders(run.checkpoints_path))
    if resume == "never" and has_checkpoints:
        raise RunFolderError(
            f"run '{run.name}' must be new with --resume never, but has checkpoints in {run.checkpoints_path}; "
            "choose another --name, or leave --resume out to continue it"
        )
    branching = change is not None and change.kind == "branched"
    if resume == "must" and not has_checkpoints and not branching:
        raise RunFolderError(
            f"run '{run.name}' must have a checkpoint with --resume must, but there is none in {run.checkpoints_path}; "
            "check --name and --runs_dir, or leave --resume out to start it"
        )
    config = with_batch_of(config, run)
    if not branching:
        require_checkpoints(run)
    continued = require_same(config, run, longer=change is not None)
    same_as = {*continued.same_as, *(stored_hashes(change.source) if change is not None else ())} - {config.identity}
    _require_space(run, needed_bytes)
    run.create()
    with run.lock():  # a run that trains keeps the config that it was started with
        state = run.read()
        if change is not None:
            logger.info("%s", change.text())
            (branch if branching else extend)(run, change)
        if state.get("status") != "finished" or resume == "must" or not run.config_path.is_file() or change is not None:
            continued.tell()
            write_config(config, run, sorted(same_as))
        if change is not None and branching:
            branch_checkpoint(run, change)
        if "name" not in state:
            group = {"sweep": run.sweep} if run.sweep else {}
            run.update(name=run.name, status="created", **group, **code_state(run))
        elif (commit := commit_of(SOURCE)) not in (None, state.get("git_commit")):  # None in a job's snapshot
            logger.warning(
                "the code is of another commit (%s) than the run was started with (%s)", commit, state.get("git_commit")
            )
        run.update(config_hash=config.identity)
    return run


def write_config(config: Config, run: RunFolder, same_as: Sequence[str] = ()) -> None:
    """Write config.gin, unless it holds this very config: its own file must not become the origin of all its values.

    Args:
        config: That the run continues with.
        run: Its folder.
        same_as: Stored hashes that its checkpoints may have and that mean this configuration.
    """
    text = run.config_path.read_text(encoding="utf-8") if run.config_path.is_file() else None
    if text != config.text or not run.provenance_path.is_file():
        config.to_run_folder(run.path, same_as, history_of(run))


def _require_space(run: RunFolder, needed_bytes: int) -> None:
    free = disk_free_bytes(run.path)
    if free < needed_bytes:
        raise RunFolderError(
            f"free space in {run.path.parent} ({format_bytes(free)}) must be at least one checkpoint "
            f"({format_bytes(needed_bytes)}); free some or choose another --runs_dir"
        )


def code_state(run: RunFolder, source: Path = SOURCE) -> dict[str, object]:
    """The commit of the code that runs, and what was changed since it, as dirty.patch in the run folder.

    Values of secret environment variables and strings that look like keys are left out of the patch; untracked files
    are named, not copied.

    Args:
        run: Where dirty.patch goes.
        source: The folder that holds the package modlib.
    """
    commit = commit_of(source)
    if commit is None:
        return {"git_commit": None}
    patch = git(source, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
    if patch is None:
        logger.warning("what was changed since commit %s is not recorded: git diff failed or took too long", commit)
        return {"git_commit": commit, "git_dirty": None}
    state: dict[str, object] = {"git_commit": commit, "git_dirty": bool(patch)}
    if patch:
        data = mask(patch).encode(errors="surrogateescape")
        if len(data) > MOST_PATCH_BYTES:
            state["git_patch_cut_from_bytes"] = len(data)
            logger.warning(
                "dirty.patch holds the first %s of %s that were changed since commit %s; commit the code to record it",
                format_bytes(MOST_PATCH_BYTES),
                format_bytes(len(data)),
                commit,
            )
        durable.atomic_write_bytes(run.path / "dirty.patch", data[:MOST_PATCH_BYTES])
    untracked = git(source, "ls-files", "-z", "--others", "--exclude-standard") or ""
    names = [name.encode(errors="surrogateescape").decode(errors="replace") for name in untracked.split("\0") if name]
    return {**state, "git_untracked": names[:MOST_UNTRACKED]}
