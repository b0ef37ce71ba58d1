"""`modlib` itself: quick, complete, and free of what only a command needs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from modlib.cli.main import COMMANDS
from modlib.runtime.run_folder import RunFolder

HEAVY = "torch", "numpy", "tokenizers", "tensorboard", "transformers"


def modlib(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; the last line of stderr lists the heavy modules that it imported."""
    code = (
        "import sys\nfrom modlib.cli.main import main\ntry:\n    main()\n"
        f"finally:\n    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd)


def imported(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


def heavy_of(*commands: tuple[str, ...], cwd: Path | None = None) -> dict[str, Any]:
    """Of each command, called in turn in one process: its exit code and the heavy modules imported by then."""
    code = (
        "import json, sys\nfrom modlib.cli.main import app\nfound = {}\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try:\n        ended = app(words)\n    except SystemExit as error:\n        ended = error.code\n"
        f"    found[' '.join(words)] = [ended or 0, [name for name in {HEAVY!r} if name in sys.modules]]\n"
        "print(json.dumps(found), file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_help_imports_nothing_heavy() -> None:
    found = heavy_of(("--help",), ("--version",), *((name, "--help") for name in COMMANDS))
    assert found == {words: [0, []] for words in found}
    assert len(found) == 2 + len(COMMANDS)


def test_help_lists_every_command() -> None:
    text = modlib("--help").stdout
    for name, (module, line) in COMMANDS.items():
        assert name in text
        assert line.split(".")[0][:30] in text
        assert importlib.import_module(module)
    assert "--install-completion" in text


def test_unknown_command() -> None:
    done = modlib("lsit")
    assert done.returncode == 2
    assert "No such command 'lsit'" in done.stderr


def test_a_config_error_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.gin").write_text("train.seed = 'x'\ntrain.nope = 1\nSEDE = 3\nLocal.num_processes = '2'\n")
    done = modlib("show", "./a.gin", cwd=tmp_path)
    assert done.returncode == 2
    assert "a.gin:1: train.seed = 'x' is str, expected int" in done.stderr
    assert "a.gin:4: Local.num_processes = '2' is str, expected int or None; write 2" in done.stderr
    assert imported(done) == "[]"


def test_commands_around_a_run_import_nothing_heavy(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    run.create()
    run.begin_attempt().log_path(0).write_text("hello\n")
    run.update(status="finished")
    run.metrics_path.write_text('{"step": 1, "tokens": 32, "time": 1.0, "attempt": 1, "train/loss": 5.0}\n')
    commands = [("ls",), ("status",), ("status", "one"), ("logs", "one"), ("queue",), ("cancel", "one")]
    found = heavy_of(*commands, cwd=tmp_path)
    assert {words: heavy for words, (_, heavy) in found.items()} == {" ".join(words): [] for words in commands}


def test_completion_of_names(tmp_path: Path) -> None:
    environment = {"_MODLIB_COMPLETE": "complete_bash", "COMP_WORDS": "modlib list Ada", "COMP_CWORD": "2"}
    code = "from modlib.cli.main import app; app(prog_name='modlib')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert {"Adam", "AdamW", "Adafactor"} <= set(done.stdout.split()), done.stderr
