"""The end of a run: what came out and what to do next."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from modlib.runtime.shell import command_line
from modlib.tracking.summary import RunSummary, changed, end_summary, next_commands

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
    change="LR=5e-4",
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
        words = [command[0] for _, command in next_commands(dataclasses.replace(summary, command=()))]
        assert words == ["tensorboard", "modlib"]


def test_the_next_commands_of_a_finished_run() -> None:
    commands = [command_line(command) for _, command in next_commands(SUMMARY)]
    assert commands == [
        "tensorboard --logdir runs/quickstart-1a2b3c4d/tb",
        "modlib generate runs/quickstart-1a2b3c4d --prompt 'import '",
        "python launch.py --gin_file quickstart.gin --gin_param \"DATA = 'a b'\" --gin_param LR=5e-4",
        "python launch.py --gin_file quickstart.gin --name mine --gin_param \"DATA = 'a b'\"",
    ]
    assert "change a parameter" not in shown(dataclasses.replace(SUMMARY, change=None))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("--name mine --gin_file a.gin", "--gin_file a.gin --gin_param LR=5e-4"),
        ("--gin_file a.gin --name=mine --resume must", "--gin_file a.gin --gin_param LR=5e-4"),
        ("--gin_param LR=1e-3 --gin_param SEED=1", "--gin_param SEED=1 --gin_param LR=5e-4"),
        ("--gin-file a.gin --gin-param=LR=1e-3", "--gin-file a.gin --gin_param LR=5e-4"),
        ("--gin_param LR_X=1 --runs_dir mine", "--gin_param LR_X=1 --runs_dir mine --gin_param LR=5e-4"),
    ],
)
def test_a_changed_command_is_of_a_new_run_and_sets_the_parameter_once(before: str, after: str) -> None:
    assert changed(before.split(), "LR=5e-4") == after.split()


def test_a_changed_point_is_a_run_beside_its_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "lr"
    (sweep / "p1").mkdir(parents=True)
    (sweep / "sweep.json").write_text("{}")
    words = ["--gin_file", f"{sweep}/p1/config.gin", "--name", "p1", "--runs_dir", str(sweep)]
    after = [*words[:2], "--runs_dir", str(tmp_path / "runs"), "--gin_param", "AdamW.lr=5e-4"]
    assert changed(words, "AdamW.lr=5e-4") == after


def test_a_stopped_run_names_what_was_saved_and_the_command_that_continues() -> None:
    stopped = dataclasses.replace(SUMMARY, reason="stopped by SIGTERM", step=450, checkpoints=SUMMARY.checkpoints[:1])
    text = shown(stopped)
    assert "quickstart-1a2b3c4d stopped by SIGTERM" in text
    assert "450 of 600" in text
    assert "checkpoints/step-00000400" in text
    assert "older" not in text
    assert next_commands(stopped)[0] == ("continue from step-00000400", COMMAND)


def test_a_run_stopped_before_its_first_checkpoint() -> None:
    stopped = dataclasses.replace(SUMMARY, reason="stopped by SIGINT", step=3, checkpoints=[], sample=None)
    assert "none was saved" in shown(stopped)
    assert [what for what, _ in next_commands(stopped)] == ["start again", "look at the curves"]


def test_what_could_not_be_written_is_told() -> None:
    lines = ["JSONL: 23 messages could not be recorded", "exit.json: 1 write failed (No space left on device)"]
    text = shown(dataclasses.replace(SUMMARY, incomplete=lines), 120)
    assert [line.split("incomplete")[1].strip(" │") for line in text.splitlines() if "incomplete" in line] == lines


def test_the_best_evaluation_is_told() -> None:
    best = {"val/validation/loss": (3.5, 200)}
    assert "best loss 3.5000 at step 200" in shown(dataclasses.replace(SUMMARY, best=best), 120)


def test_a_model_that_does_not_continue_text_is_not_asked_to() -> None:
    assert not any(
        "generate" in command for _, command in next_commands(dataclasses.replace(SUMMARY, writes_text=False))
    )
    assert any("generate" in command for _, command in next_commands(dataclasses.replace(SUMMARY, step=3)))
