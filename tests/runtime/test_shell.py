"""Commands in hints: they read well, and a shell reads them as they were."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from modlib.runtime.shell import broken_up, command_line, quoted

COMMAND = ("launch.py", "--gin_file", "quickstart.gin", "--name", "mine", "--gin_param", "DATA = 'a b'")


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("LR=5e-4", "LR=5e-4"),
        ("BASE='my_model'", "\"BASE='my_model'\""),
        ("LR=[1e-4, 3e-4]", "'LR=[1e-4, 3e-4]'"),
        ("", "''"),
        ("it's $5", "'it'\"'\"'s $5'"),
        ("it's so!", "'it'\"'\"'s so!'"),
    ],
)
def test_quotes_that_read_well(word: str, shown: str) -> None:
    assert quoted(word) == shown


def test_a_shell_reads_every_word_as_it_was() -> None:
    words = ["a b", "D='x'", "%M", "@X", "*", "~", "a'b\"c", "$HOME'", "\\'", "'`id`", "!'", "", "x\n'y", "a;b", "'#"]
    script = f"printf '%s\\0' {command_line(words)}"
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split("\0")[:-1] == words


def test_a_python_file_is_called_with_python() -> None:
    assert command_line(COMMAND[:3]) == "python launch.py --gin_file quickstart.gin"
    assert command_line(["modlib", "train", "a b"]) == "modlib train 'a b'"
    assert command_line([]) == ""


def test_long_commands_are_broken_so_that_they_can_be_pasted() -> None:
    lines = broken_up([*COMMAND, "--gin_param", "LR=1e-3"], 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert all(line.endswith(" \\") for line in lines[:-1])
    words = shlex.split(broken_up(COMMAND, 40).replace("\\\n", ""))
    assert words == ["python", *COMMAND]
    assert broken_up(["short", "one"], 40) == "short one"
