"""Old module names, which job scripts and gin files on users' disks have, still work."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys

import pytest

from modlib.moved import MOVED


def test_every_old_name_leads_to_a_module() -> None:
    assert "modlib.cli.slurm_job" in MOVED
    assert [new for new in MOVED.values() if importlib.util.find_spec(new) is None] == []


def test_an_old_name_is_the_same_module(caplog: pytest.LogCaptureFixture) -> None:
    import modlib.data.packed.header as new

    with caplog.at_level(logging.WARNING, "modlib"):
        old = importlib.import_module("modlib.data.packed_header")
    assert old is new
    assert new.__spec__ is not None
    assert new.__spec__.name == "modlib.data.packed.header"
    assert "modlib.data.packed_header is now modlib.data.packed.header; use the new name" in caplog.text
    sys.modules.pop("modlib.data.packed_header")


def test_what_never_was_there_is_still_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("modlib.data.packed_nonsense")


def test_a_job_script_that_names_the_old_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "modlib.cli.slurm_job"], capture_output=True, text=True, timeout=120)
    assert "modlib.cli.slurm_job is now modlib.cli.processes.slurm_job; use the new name" in done.stderr
    assert "sys.argv[1]" in done.stderr  # it asks for its verb
