"""TensorBoard: scalars, the configuration and samples as text, hyperparameters; in the run folder's tb/."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modlib.components import component
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted, TextLogged

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_FOLDER = "tb"


@component("results_subscriber", "tensorboard", runtime_args=("run_path",))
class TensorBoard:
    """Writes TensorBoard event files while the run goes on; the x axis is the optimizer step.

    All attempts of a run share one TensorBoard run: what a killed attempt wrote beyond the step at which the next one
    starts is marked as purged. Values are float32, TensorBoard's precision. The configuration is the text "config",
    samples are texts under their tag. Hyperparameters are every value of the resolved configuration, written once when
    the run is complete, in the same TensorBoard run (`SummaryWriter.add_hparams` would open a second one).

    Args:
        run_path: The run folder; known at run time.
        flush_s: Seconds until what was logged is on disk for a TensorBoard that looks on.
    """

    receives = (RunStarted, MetricsLogged, TextLogged, CheckpointSaved, RunEnded)
    once_per_run = True

    def __init__(self, run_path: Path, *, flush_s: int = 10) -> None:
        # imported here, on the main thread: nobody pays for it who does not use it
        from torch.utils.tensorboard import SummaryWriter

        self._open_writer = SummaryWriter
        self._folder = Path(run_path) / TENSORBOARD_FOLDER
        self._flush_s = flush_s
        self._writer: SummaryWriter | None = None
        self._started: RunStarted | None = None
        self._values: dict[str, float] = {}

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._start(message)
        if self._writer is None:
            return  # it could not be opened, which was said once
        if isinstance(message, MetricsLogged):
            for name, value in message.values.items():
                self._values[name] = value
                self._writer.add_scalar(name, value, message.step, message.time)
        elif isinstance(message, TextLogged):
            self._writer.add_text(message.tag, as_code(message.text), message.step)
        elif isinstance(message, CheckpointSaved):
            self._writer.flush()
        elif isinstance(message, RunEnded):
            self._end(message)

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _start(self, message: RunStarted) -> None:
        self.close()
        self._started = message
        _wait_until_newest(self._folder)
        step = message.start_step
        self._writer = self._open_writer(
            log_dir=str(self._folder), purge_step=step + 1 if step else 0, flush_secs=self._flush_s
        )
        if message.config_text:
            self._writer.add_text("config", as_code(message.config_text), step)
        self._writer.flush()

    def _end(self, message: RunEnded) -> None:
        assert self._writer is not None
        if self._started is not None and message.step >= self._started.num_steps and self._started.resolved:
            from torch.utils.tensorboard.summary import hparams

            finals = {**self._values, **message.values}
            for summary in hparams(_plain(self._started.resolved), finals):
                self._writer._get_file_writer().add_summary(summary)
        self._writer.flush()


def as_code(text: str) -> str:
    """The text as a Markdown code block, with a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _plain(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and strings stay; whatever else a configuration holds is written as text."""
    return {
        name: value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value)
        for name, value in resolved.items()
    }


def _wait_until_newest(folder: Path) -> None:
    """TensorBoard reads event files by name, which holds the second: a new attempt's must sort behind the old ones."""
    seconds = [
        int(match[1]) for path in folder.glob("*tfevents*") if (match := re.search(r"tfevents\.(\d+)", path.name))
    ]
    deadline = time.monotonic() + 3.0  # a clock that went back by more is not waited for
    while seconds and time.time() < max(seconds) + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
