"""One vocabulary for all commands: the same thing has the same name, type and meaning wherever it is asked for.

A command or an option that is new must be put into a table here: the question is where it belongs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from modlib.cli.data.commands import COMMANDS as DATA_COMMANDS
from modlib.cli.data.commands import MAKERS
from modlib.cli.main import COMMANDS, app
from modlib.cli.start.launch import app as launch_app
from modlib.runtime.run_folder import SWEEP_FILE, RunFolder
from tests.cli.commands import modlib
from tests.launching_command import ROOT

TAKE_A_RUN = {
    "cancel": ("RUN",),
    "data batch": ("RUN", "1"),
    "diff": ("RUN", "RUN"),
    "export": ("RUN", "OUT"),
    "follow": ("RUN",),
    "generate": ("RUN",),
    "logs": ("RUN",),
    "plot": ("RUN", "--out", "OUT.png"),
    "reproduce": ("RUN",),
    "resume": ("RUN",),
    "show": ("RUN",),
    "status": ("RUN",),
    "track": ("RUN", "--to", "tensorboard"),
    "verify": ("RUN",),
}
"""A call of each command that takes a run, with RUN where the run is meant."""
TAKE_A_SWEEP = {"sweep": ("RUN",)}
LOOK_INTO_RUNS_DIR = {"ls", "queue", "train"}
TAKE_NO_RUN = {"import", "list", *(f"data {name}" for name in DATA_COMMANDS if name != "batch")}
READ_A_CHECKPOINT = {"export", "generate", "train"}  # train: with --branch_from
TAKE_GIN_FILES = {"show", "train", *(f"data {name}" for name in MAKERS)}

SAME_NAME_OTHER_TYPE = {
    "--metric": "plot draws several, a sweep is judged by one",
    "--resume": "launch.py also knows never and must",
    "--to": "track means a tracker, data convert a format",
    "--tokenizer": "data pack also takes that of a corpus, stdlib:train",
}
OTHER_WORDS = {
    "--checkpoint": "--step",
    "--directory": "--runs_dir",
    "--dir": "--runs_dir",
    "--run_dir": "--runs_dir",
    "--config": "--gin_file",
    "--file": "--gin_file",
    "--output": "--out",
    "--param": "--gin_param",
    "--set": "--gin_param",
    "--force": "--overwrite",
    "--num_workers": "--workers",
    "--yes": "--overwrite",
}
"""Words that another option has here already; only an alias that the help does not show may use them."""


def parsed(name: str, *words: str) -> Any:
    """The context of a command, which holds its options and what the words set, without running it."""
    group: Any = typer.main.get_command(app)
    path = name.split()
    context = group.make_context("modlib", [*path, *words], resilient_parsing=True)
    rest = [*path, *words]
    for _ in path:
        child, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(child, rest, parent=context, resilient_parsing=True)
        rest = [*context._protected_args, *context.args] if child == "data" else rest
    return context


def options(context: Any) -> list[Any]:
    return [one for one in context.command.params if one.param_type_name == "option"]


NAMES = sorted([*(name for name in COMMANDS if name != "data"), *(f"data {name}" for name in DATA_COMMANDS)])


def launch_context(*words: str) -> Any:
    command: Any = typer.main.get_command(launch_app)
    return command.make_context("launch.py", list(words), resilient_parsing=True)


def context_of(name: str, *words: str) -> Any:
    return launch_context(*words) if name == "launch.py" else parsed(name, *words)


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """Two runs and two sweeps whose names begin alike."""
    folder = tmp_path / "runs"
    for name in ("two-a", "two-b"):
        RunFolder(folder / name).create()
        RunFolder(folder / name).update(name=name, status="created")
    for name in ("two-c", "two-d"):
        (folder / name).mkdir()
        (folder / name / SWEEP_FILE).write_text("{}")
    return folder


def called(command: str, run: str, runs_dir: Path, tmp_path: Path) -> str:
    """What a command says on stderr of a run that it cannot have, which is an error with exit code 4."""
    words = (TAKE_A_RUN | TAKE_A_SWEEP)[command]
    words = tuple(word.replace("RUN", run).replace("OUT", str(tmp_path / "out")) for word in words)
    return modlib(*command.split(), *words, "--runs-dir", runs_dir, code=4).stderr


def test_every_command_is_in_a_table() -> None:
    assert sorted([*TAKE_A_RUN, *TAKE_A_SWEEP, *LOOK_INTO_RUNS_DIR, *TAKE_NO_RUN]) == NAMES


@pytest.mark.parametrize("command", [*TAKE_A_RUN, *TAKE_A_SWEEP])
def test_a_run_is_named_in_the_same_ways_everywhere(command: str, runs_dir: Path, tmp_path: Path) -> None:
    """By its name or the beginning of it, looked for in --runs_dir; the same words where it means none or several."""
    kind = "sweep" if command in TAKE_A_SWEEP else "run"
    missing = called(command, "zzz", runs_dir, tmp_path)
    assert f" (zzz) must be a {kind} in {runs_dir}/" in missing
    names = "two-c, two-d" if kind == "sweep" else "two-a, two-b"
    assert f"the {kind}s there: {names}" in missing
    assert f" (two) must mean one {kind}, and may mean {names}; write more of the name" in called(
        command, "two", runs_dir, tmp_path
    )


@pytest.mark.parametrize("command", [*TAKE_A_RUN, *TAKE_A_SWEEP, *sorted(LOOK_INTO_RUNS_DIR), "launch.py"])
def test_runs_are_looked_for_in_runs_dir(command: str) -> None:
    context = context_of(command, "--runs-dir", "mine")
    assert context.params["runs_dir"] == Path("mine")
    assert context_of(command).params["runs_dir"] == Path("runs")


def test_a_checkpoint_is_named_by_its_step() -> None:
    known = {name for name in NAMES if "--step" in [option.opts[0] for option in options(parsed(name))]}
    assert known == READ_A_CHECKPOINT


def test_gin_files_and_parameters_come_together() -> None:
    for name in NAMES:
        words = {option.opts[0] for option in options(parsed(name))} & {"--gin_file", "--gin_param"}
        assert len(words) == (2 if name in TAKE_GIN_FILES else 0), name


@pytest.mark.parametrize("name", [*NAMES, "launch.py"])
def test_every_option_may_be_written_with_dashes(name: str) -> None:
    for option in options(context_of(name)):
        word = option.opts[0]
        assert re.fullmatch("--[a-z]+(_[a-z]+)*", word), "options have underscores, as parameters in gin files have"
        for written in {word, "--" + word[2:].replace("_", "-")}:
            context = context_of(name, written, *([] if option.is_flag else ["1"]))
            assert context.get_parameter_source(option.name).name == "COMMANDLINE", written


def test_one_option_has_one_type() -> None:
    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in (*NAMES, "launch.py"):
        for option in options(context_of(name)):
            assert option.hidden or option.opts[0] not in OTHER_WORDS, f"{name}: say {OTHER_WORDS[option.opts[0]]}"
            kind = f"{option.type_descriptor.annotation} {option.multiple}"
            kinds[option.opts[0]][kind].append(name)
    differing = {word: dict(found) for word, found in kinds.items() if len(found) > 1}
    assert set(differing) == set(SAME_NAME_OTHER_TYPE), differing


def completed(*words: str) -> list[str]:
    """What bash would offer for the last word."""
    environment = {"_MODLIB_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["modlib", *words])}
    environment["COMP_CWORD"] = str(len(words))
    done: Result = CliRunner().invoke(app, [], env=environment, prog_name="modlib")  # type: ignore[assignment]
    return done.stdout.split()


@pytest.mark.parametrize("command", [*TAKE_A_RUN, *TAKE_A_SWEEP])
def test_the_shell_completes_runs(command: str, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["two-c", "two-d"] if command in TAKE_A_SWEEP else ["two-a", "two-b"]
    assert completed(*command.split(), "--runs_dir", str(runs_dir), "tw") == names
    monkeypatch.chdir(runs_dir.parent)
    assert completed(*command.split(), "two-") == names


def test_the_shell_completes_gin_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick_mine.gin").write_text("")
    monkeypatch.chdir(tmp_path)
    assert completed("show", "quick") == ["quickstart.gin", "quick_mine.gin"]
    assert completed("show", "--gin_file", "optim/mu") == ["optim/muon.gin"]
    assert completed("diff", "quickstart.gin", "quickstart.gin+optim/mu") == ["quickstart.gin+optim/muon.gin"]
    offered = completed("data", "pack", "--gin_file", "")
    assert "quick_mine.gin" in offered
    assert any("commands/" in name for name in offered)
    assert "quickstart.gin" not in offered, "that is for a run"
    assert not any("commands/" in name for name in completed("show", "--gin_file", ""))


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import atexit, sys\nfrom modlib.cli.main import app\n"
        "atexit.register(lambda: print(sys.modules.keys() & {'torch', 'numpy'}, file=sys.stderr))\n"
        "app(prog_name='modlib')"
    )
    environment = {"_MODLIB_COMPLETE": "complete_bash", "COMP_WORDS": "modlib show quick", "COMP_CWORD": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("quickstart.gin\n", "set()\n")


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("shwo", "No such command 'shwo'. Did you mean 'show'?"),
        ("trian", "No such command 'trian'. Did you mean 'train', 'track'?"),
        ("launhc", "No such command 'launhc'; training is started with: modlib train --gin_file quickstart.gin"),
        ("zzz", "No such command 'zzz'."),
    ],
)
def test_a_command_that_is_none(word: str, answer: str) -> None:
    assert answer in flat(modlib(word, code=2))


def test_a_command_for_data_that_is_none() -> None:
    assert "No such command 'pakc'. Did you mean 'pack'?" in flat(modlib("data", "pakc", code=2))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("quickstart.gin", "python launch.py --gin_file quickstart.gin"),
        (
            "--dry-run quickstart.gin optim/muon.gin LR=1e-3",
            "python launch.py --dry-run --gin_file quickstart.gin --gin_file optim/muon.gin --gin_param LR=1e-3",
        ),
        ("--gin_file quickstart.gin DATA='x'", "python launch.py --gin_file quickstart.gin --gin_param \"DATA='x'\""),
    ],
)
def test_launch_says_what_to_type_for_words_without_flags(words: str, answer: str) -> None:
    done: Any = CliRunner().invoke(launch_app, words.split(), prog_name="launch.py")
    assert done.exit_code == 2
    assert f"without a flag; write: {answer}" in flat(done)


def test_launch_offers_no_completion_that_could_not_work() -> None:
    done: Any = CliRunner().invoke(launch_app, ["quickstart.gin", "--help"], prog_name="launch.py")
    assert done.exit_code == 0, done.output
    assert "completion" not in done.output


@pytest.mark.parametrize("module", ["modlib", "modlib.cli.main"])
def test_as_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout), done.stderr


def test_no_text_leaves_it_to_the_reader_whether_it_is_one_or_many() -> None:
    """`counted` says "1 rank" and "2 ranks"."""
    for path in (ROOT / "modlib").rglob("*.py"):
        assert not re.search(r"[a-z]\(s\)(?!=)", path.read_text()), path


def flat(done: Result) -> str:
    """An error as one line, without its box and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", done.output).split())
