"""The end of a run: what came out and what to do next."""

from __future__ import annotations

import dataclasses
import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from modlib.tracking.broker import Missed
from modlib.tracking.jsonl import JSONL
from modlib.tracking.messages import MetricsLogged
from modlib.tracking.summary import RunSummary, best_evaluations, broken_up, command_line, end_summary, next_commands

RUN = Path("runs/quickstart-1a2b3c4d")
COMMAND = ("launch.py", "--gin_file", "quickstart.gin", "--name", "mine", "--gin_param", "DATA = 'a b'")
SUMMARY = RunSummary(
    run_name=RUN.name,
    run_path=RUN,
    reason="finished",
    step=600,
    num_steps=600,
    tokens=4_915_200,
    seconds=151.0,
    command=COMMAND,
    tokens_per_s=32543.2,
    mfu=0.412,
    mfu_of="measured matmul peak",
    values={
        "train/loss": 3.41234,
        "val/validation/loss": 3.6,
        "val/validation/perplexity": 36.6,
        "val/validation/bits_per_byte": 1.52,
    },
    checkpoints=[RUN / "checkpoints/step-00000400", RUN / "checkpoints/step-00000600"],
    sample="import os\n\x1b[31mdef main():",
)


def shown(summary: RunSummary, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(end_summary(summary))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_finished_run(width: int) -> None:
    text = shown(SUMMARY, width)
    assert max(len(line) for line in text.splitlines()) <= width
    for expected in [
        "quickstart-1a2b3c4d finished",
        "600 of 600",
        "4,915,200 = 4.92M",
        "2m 31s, 32.5k tokens/s, MFU 41.2% of measured matmul peak",
        "train loss  3.4123",
        "loss 3.6000, perplexity 36.6, bits per byte 1.5200",
        "checkpoints/step-00000600 (+1 older)",
        "runs/quickstart-1a2b3c4d/metrics.jsonl",
        "import os",
        "�[31mdef main():",
        "tensorboard --logdir runs/quickstart-1a2b3c4d/tb",
        "modlib generate runs/quickstart-1a2b3c4d",
    ]:
        assert expected in text


def test_without_a_command_nothing_is_said_to_give_again() -> None:
    for summary in (SUMMARY, dataclasses.replace(SUMMARY, step=400, reason="stopped")):
        words = [command.split()[0] for _, command in next_commands(dataclasses.replace(summary, command=()))]
        assert words == ["tensorboard", "modlib"]


def test_the_next_commands_of_a_finished_run() -> None:
    commands = [command for _, command in next_commands(SUMMARY)]
    same = "python launch.py --gin_file quickstart.gin --name mine --gin_param 'DATA = '\"'\"'a b'\"'\"''"
    assert commands[0] == "tensorboard --logdir runs/quickstart-1a2b3c4d/tb"
    assert commands[1] == "modlib generate runs/quickstart-1a2b3c4d --prompt 'import '"
    assert commands[2] == same.replace("--name mine ", "") + " --gin_param LR=1e-3"  # another config, another folder
    assert commands[3] == same
    assert shlex.split(commands[3])[1:] == list(COMMAND)


def test_a_stopped_run_names_what_was_saved_and_the_command_that_continues() -> None:
    stopped = dataclasses.replace(SUMMARY, reason="stopped by SIGTERM", step=450, checkpoints=SUMMARY.checkpoints[:1])
    text = shown(stopped)
    assert "quickstart-1a2b3c4d stopped by SIGTERM" in text
    assert "450 of 600" in text
    assert "checkpoints/step-00000400" in text
    assert "older" not in text
    assert next_commands(stopped)[0] == ("continue from step-00000400", command_line(COMMAND))


def test_a_run_stopped_before_its_first_checkpoint() -> None:
    stopped = dataclasses.replace(SUMMARY, reason="stopped by SIGINT", step=3, checkpoints=[], sample=None)
    assert "none was saved" in shown(stopped)
    assert [what for what, _ in next_commands(stopped)] == ["start again", "look at the curves"]


def test_what_subscribers_missed_is_told() -> None:
    text = shown(dataclasses.replace(SUMMARY, missed={"TensorBoard": Missed(failed=2, dropped=7)}), 120)
    assert "TensorBoard missed 2 messages it failed on and 7 it was too slow for" in text


def test_the_best_evaluation_comes_from_metrics_jsonl(tmp_path: Path) -> None:
    jsonl = JSONL(run_path=tmp_path)
    for step, loss in [(100, 4.0), (200, 3.5), (300, float("nan")), (400, 3.6)]:
        jsonl.receive(MetricsLogged(step, 1, 1.0, 1, {"train/loss": 0.1}))
        jsonl.receive(MetricsLogged(step, 1, 1.0, 1, {"val/validation/loss": loss, "val/code/loss": 9.0}))
    jsonl.close()
    assert best_evaluations(tmp_path) == {"val/validation/loss": (3.5, 200), "val/code/loss": (9.0, 100)}
    text = shown(dataclasses.replace(SUMMARY, run_path=tmp_path), 120)
    assert "best loss 3.5000 at step 200" in text


def test_a_run_without_metrics_has_no_best(tmp_path: Path) -> None:
    assert best_evaluations(tmp_path) == {}


def test_long_commands_are_broken_so_that_they_can_be_pasted() -> None:
    command = command_line(COMMAND) + " --gin_param LR=1e-3"
    lines = broken_up(command, 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split(broken_up(command, 40).replace("\\\n", "")) == shlex.split(command)
    assert broken_up("short one", 40) == "short one"


def test_an_installed_command_is_shown_as_it_is() -> None:
    assert command_line(["modlib", "train", "a b"]) == "modlib train 'a b'"


def test_a_model_that_does_not_continue_text_is_not_asked_to() -> None:
    assert not any(
        "generate" in command for _, command in next_commands(dataclasses.replace(SUMMARY, writes_text=False))
    )
    assert any("generate" in command for _, command in next_commands(dataclasses.replace(SUMMARY, step=3)))
