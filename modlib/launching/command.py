"""How training is started: as a person types it, and as another process calls it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modlib.launching.git import SOURCE

SCRIPT = "launch.py"
CODE = "from modlib.cli.start.launch import main; main()"  # for a modlib that is installed without the script


def calling_words(source: Path = SOURCE) -> list[str]:
    """The words before the flags with which another process starts training.

    Args:
        source: The folder that holds the package modlib, and launch.py in a checkout.
    """
    script = source / SCRIPT
    return [sys.executable, *([str(script)] if script.is_file() else ["-c", CODE])]


def typed_words() -> list[str]:
    """The words before the flags as a person types them: launch.py in a checkout, else the installed command."""
    return ["python", SCRIPT] if (SOURCE / SCRIPT).is_file() else ["modlib", "train"]


def own_call(arguments: Sequence[str] | None = None) -> list[str]:
    """This process's call of training, as a person repeats it; empty where Python code called it.

    Args:
        arguments: Instead of sys.argv, e.g. `["/bin/modlib", "train", "--gin_file", "gpt2.gin"]`.
    """
    program, *words = sys.argv if arguments is None else arguments
    if Path(program).name == SCRIPT:
        return [program, *words]
    if words[:1] == ["train"]:
        return ["modlib", *words]
    return ["modlib", "train", *words] if program == "-c" and words[:1] == ["--gin_file"] else []
