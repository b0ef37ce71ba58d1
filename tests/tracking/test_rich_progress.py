"""Progress on a terminal and where there is none."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from modlib.tracking.lines import Clock
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, Notice, RunEnded, RunStarted, StepDone, TextLogged
from modlib.tracking.rich_progress import RichProgress, metrics_line, progress_lines
from tests.tracking.test_lines import EVALUATION, TRAINING

PROGRAM = """
import logging, sys, time
from pathlib import Path
from modlib.tracking.broker import Broker
from modlib.tracking.messages import *
from modlib.tracking.rich_progress import RichProgress
logging.basicConfig(format="%(levelname)s %(message)s")
from functools import partial
broker = Broker.of([partial(RichProgress, style=sys.argv[1] if sys.argv[1:] else "auto")], run_path=Path("runs/q"))
broker.publish(RunStarted("quick", Path("runs/q"), 1, 0, 20, 4096))
for step in range(1, 21):
    broker.publish(StepDone(step))
    if step % 10 == 0:
        broker.publish(MetricsLogged(step, step * 4096, time.time(), 1, {TRAINING} | {EVALUATION}))
broker.publish(CheckpointSaved(20, Path("runs/q/checkpoints/step-00000020"), 0.41, 50_000_000))
broker.publish(TextLogged(20, "sample", "import os"))
broker.publish(RunEnded("finished", 20))
broker.close()
logging.getLogger("modlib").warning("after the end, stdout is %s", "closed" if sys.stdout is None else "open")
""".replace("{TRAINING}", repr(TRAINING)).replace("{EVALUATION}", repr(EVALUATION))


def shown(renderable: object, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def clock(step: int) -> Clock:
    result = Clock(start_step=0, num_steps=600, started=0.0)
    result.saw(1, 10.0)
    result.saw(step, 110.0)
    return result


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_live_display_is_two_lines_that_fit(width: int) -> None:
    lines = shown(progress_lines("quickstart-1a2b3c4d", clock(101), TRAINING, 110.0, width), width)
    assert len(lines) == 2
    assert all(len(line) <= width for line in lines)
    assert "101/600" in lines[0]
    assert "loss 7.1235" in lines[1]


@pytest.mark.parametrize("width", [80, 120])
def test_every_field_is_on_the_screen(width: int) -> None:
    text = "\n".join(shown(progress_lines("quickstart-1a2b3c4d", clock(101), TRAINING, 110.0, width), width))
    for field in ("101/600", "17%", "1m 50s", "8m 19s left", "7.1235", "3.00e-04", "1.235", "12.3k tok/s", "MFU 34.1%"):
        assert field in text
    assert re.search(r"wait 0\.3%", text)
    assert "0.91GiB" in text


def test_the_line_before_the_first_metrics() -> None:
    assert metrics_line({}, 80).plain == "the first step takes longest"
    assert shown(progress_lines("q", Clock(0, 0, 0.0), {}, 0.0, 80), 80)[0].split()[-2:] == ["0%", "0.00s"]


def test_plain_lines_where_stderr_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RichProgress(Path("runs/q"))
    progress.receive(RunStarted("quick", Path("runs/q"), 1, 0, 20, 4096))
    progress.receive(StepDone(1))
    progress.receive(MetricsLogged(10, 1, 1.0, 1, TRAINING | EVALUATION))
    progress.receive(Notice("hello"))
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    assert [line.split()[2] for line in err.splitlines()] == ["start", "train", "eval", "info:"]


def test_a_closed_stdout_and_a_piped_stderr_do_not_matter(tmp_path: Path) -> None:
    log, program = tmp_path / "log", tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert subprocess.run(["sh", "-c", f"{sys.executable} {program} 1>&- 2>{log}"], timeout=60).returncode == 0
    text = log.read_text()
    assert "stdout is closed" in text
    assert text.count(" train step=") == 2
    assert "checkpoint step=20" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("style", ["lines", "live"])
@pytest.mark.parametrize("where", ["pipe without reader", "/dev/full"])
def test_a_stderr_that_takes_nothing_does_not_end_the_run(tmp_path: Path, style: str, where: str) -> None:
    program, done = tmp_path / "program.py", tmp_path / "done"
    program.write_text(PROGRAM + f"Path({str(done)!r}).touch()\nimport os\nos._exit(0)\n")
    if where == "/dev/full":
        writing = os.open(where, os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    try:
        command = [sys.executable, str(program), style]
        assert subprocess.run(command, stdout=writing, stderr=writing, timeout=60).returncode == 0
    finally:
        os.close(writing)
    assert done.exists()


def in_terminal(program: Path, columns: int = 80) -> tuple[int, str]:
    """Run a program on a pseudo-terminal; its exit code and everything it wrote."""
    pid, descriptor = pty.fork()
    if pid == 0:  # the child
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES="30")
        os.execv(sys.executable, [sys.executable, str(program)])
    written = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            block = os.read(descriptor, 65536)
        except OSError:  # the child closed the terminal
            break
        if not block:
            break
        written += block
    _, status = os.waitpid(pid, 0)
    os.close(descriptor)
    return os.waitstatus_to_exitcode(status), written.decode()


def screen(written: str) -> list[str]:
    """What is left on the screen: carriage return, cursor up and erase line are obeyed."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for match in re.finditer(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b]", written):
        text, command = match[0], match[2]
        if text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            while len(rows) <= row:
                rows.append([])
        elif command == "A":
            row = max(0, row - int(match[1] or 1))
        elif command == "K":
            rows[row] = []
        elif command is None:
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = text
            column += 1
    return ["".join(cells).rstrip() for cells in rows]


def test_on_a_terminal(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    code, written = in_terminal(program)
    assert code == 0
    left = [line for line in screen(written) if line]
    starts = [line.split()[0] for line in left]
    assert starts == ["eval", "eval", "checkpoint", "sample", "import", "quick", "loss", "WARNING"]
    assert "loss 4.0000  perplexity 54.6  bits per byte 1.9000" in left[0]
    assert "step 20  47.7 MiB in 0.41s" in left[2]
    assert "20/20 100%" in left[5]
    assert written.rstrip().endswith("WARNING after the end, stdout is open")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")  # the cursor is back


def test_log_lines_go_above_the_live_line_and_handlers_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(terminal)
    logger = logging.getLogger("modlib")
    logger.addHandler(handler)
    try:
        progress = RichProgress()
        progress.receive(RunStarted("quick", Path("q"), 1, 0, 20, 4096))
        assert handler.stream is not terminal
        logger.warning("look here")
        progress.receive(RunEnded("finished", 20))
        progress.close()
        assert handler.stream is terminal
        assert sys.stderr is terminal
    finally:
        logger.removeHandler(handler)
    assert "look here" in [line.strip() for line in screen(terminal.getvalue().replace("\n", "\r\n"))]


@pytest.mark.parametrize(("style", "control"), [("live", True), ("lines", False)])
def test_the_style_can_be_forced(capsys: pytest.CaptureFixture[str], style: str, control: bool) -> None:
    progress = RichProgress(Path("q"), style=style)  # type: ignore[arg-type]
    progress.receive(RunStarted("quick", Path("q"), 1, 0, 20, 4096))
    progress.receive(CheckpointSaved(20, Path("q/step-00000020"), 0.41, 50_000_000))
    progress.receive(TextLogged(20, "sample", "[bold]not markup[/bold]"))
    progress.close()
    err = capsys.readouterr().err
    assert ("\x1b" in err) is control
    assert "[bold]not markup[/bold]" in err


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    progress = RichProgress()
    progress.receive(RunStarted("quick", Path("q"), 1, 0, 20, 4096))
    assert "\x1b" not in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_no_stderr_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    progress = RichProgress()
    progress.receive(RunStarted("quick", Path("q"), 1, 0, 20, 4096))
    progress.close()
