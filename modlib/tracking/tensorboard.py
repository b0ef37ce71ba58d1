"""TensorBoard: scalars, the configuration and samples as text, hyperparameters; in the run folder's tb/."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modlib.components import component
from modlib.tracking.growing_file import GrowingFile
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted, TextLogged

TENSORBOARD_FOLDER = "tb"
# what the tab "Custom Scalars" shows, most wanted first: the other tabs sort by name
CHARTS = {
    "training": {
        "loss": ["Multiline", ["train/loss", "val/.*/loss"]],
        "learning rate": ["Multiline", ["train/lr"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
        "router balance": ["Multiline", ["train/router_balance_loss"]],
    },
    "speed and memory": {
        "tokens per second": ["Multiline", ["throughput/tokens_per_s"]],
        "MFU": ["Multiline", ["throughput/mfu"]],
        "peak memory in GiB": ["Multiline", ["memory/peak_gib"]],
    },
}


@component("results_subscriber", "tensorboard", runtime_args=("run_path",))
class TensorBoard:
    """Writes TensorBoard event files while the run goes on; the x axis is the optimizer step.

    All attempts of a run share one TensorBoard run: what a killed attempt wrote beyond the step at which the next one
    starts is marked as purged. It stays in the files, and TensorBoard's default reader, which does not look at the
    mark, shows such a point until the same tag gets one at its step or before: with `--load_fast=false` none is shown,
    and `modlib track RUN --to tensorboard` writes files without them. Values are float32, TensorBoard's precision. The
    configuration is the text "config", samples are texts under their tag. TensorBoard sorts its cards by name; the tab
    "Custom Scalars" has the losses first. Hyperparameters are what the command line, the macros and the gin files of
    the run set, in this order; validation losses come first among the metrics. They are written once when the run is
    complete.

    What cannot be written, e.g. on a full disk, waits in memory and is written when there is space again.

    Args:
        run_path: The run folder; known at run time.
        flush_s: Seconds until what was logged is forced to disk, for a TensorBoard on another machine.
    """

    receives = (RunStarted, MetricsLogged, TextLogged, CheckpointSaved, RunEnded)
    once_per_run = True

    def __init__(self, run_path: Path, *, flush_s: int = 10) -> None:
        # imported here, on the main thread: nobody pays for it who does not use it
        from torch.utils.tensorboard import summary

        self._summary = summary
        self._folder = Path(run_path) / TENSORBOARD_FOLDER
        self._flush_s = flush_s
        self._file: GrowingFile | None = None
        self._synced = 0.0
        self._started: RunStarted | None = None
        self._values: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """Messages that could not be written yet."""
        return len(self._file.waiting) if self._file is not None else 0

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._start(message)
        if self._file is None:
            return  # no run was started
        if isinstance(message, MetricsLogged):
            self._values.update(message.values)
            scalars = [self._summary.scalar(name, value) for name, value in message.values.items()]
            self._write(scalars, message.step, message.time)
        elif isinstance(message, TextLogged):
            self._write([self._summary.text(message.tag, as_code(message.text))], message.step)
        elif isinstance(message, RunEnded):
            self._end(message)
        if isinstance(message, (CheckpointSaved, RunEnded)) or time.monotonic() - self._synced >= self._flush_s:
            self._synced = time.monotonic()
            self._file.sync()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _start(self, message: RunStarted) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata

        self.close()
        self._started = message
        _wait_until_newest(self._folder)
        step, now = message.start_step, time.time()
        self._file = GrowingFile(self._folder / _file_name(now))
        version = "brain.Event:2"
        first = Event(wall_time=now, file_version=version, source_metadata=SourceMetadata(writer="modlib"))
        purge = step + 1 if step else 0
        begin = Event(wall_time=now, step=purge, session_log=SessionLog(status=SessionLog.START))
        head = [first, Event(wall_time=now, step=purge, file_version=version), begin]
        self._file.waiting.append(b"".join(map(_record, head)))
        texts = [self._summary.text("config", as_code(message.config_text))] if message.config_text else []
        self._write([self._summary.custom_scalars(CHARTS), *texts], step)

    def _end(self, message: RunEnded) -> None:
        started = self._started
        if started is not None and message.step >= started.num_steps and (chosen := started.chosen or started.resolved):
            finals = {**self._values, **message.values}
            metrics = {name: finals[name] for name in sorted(finals, key=_importance)}
            experiment, start, end = self._summary.hparams(_plain(chosen), metrics)
            _name_session(start, f"{started.run_path.resolve().parent.name}/{started.run_name}")
            self._write([experiment, start, end], 0)

    def _write(self, summaries: Iterable[Any], step: int, wall_time: float | None = None) -> None:
        """Write summaries at once: they are here on this subscriber's own thread, so nobody waits for the disk.

        torch's SummaryWriter has a thread that dies at the first error of the disk, and loses all that follows.
        """
        from tensorboard.compat.proto.event_pb2 import Event

        assert self._file is not None
        now = time.time() if wall_time is None else wall_time
        records = b"".join(_record(Event(wall_time=now, step=step, summary=one)) for one in summaries)
        self._file.waiting.append(records)  # before the folder, which a full disk may not let be made either
        self._folder.mkdir(exist_ok=True)
        self._file.write()


def as_code(text: str) -> str:
    """The text as a Markdown code block, with a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _record(event: Any) -> bytes:
    """An event as it is in a file: its length and itself, each with a checksum."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _file_name(now: float) -> str:
    return f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.0"


def _importance(metric: str) -> tuple[int, str]:
    """Validation losses first, then the training loss, then what else was validated, then the rest."""
    if metric.startswith("val/"):
        return (0 if metric.endswith("/loss") else 2), metric
    return (1 if metric == "train/loss" else 3), metric


def _name_session(start: Any, name: str) -> None:
    """Let the table of hyperparameters call the run by its name; it would be its folder's, "tb"."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = start.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    content.session_start_info.group_name = name
    plugin.content = content.SerializeToString()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and strings stay; whatever else a configuration holds is written as text."""
    return {
        name: value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value)
        for name, value in values.items()
    }


def _wait_until_newest(folder: Path) -> None:
    """TensorBoard reads event files by name, which holds the second: a new attempt's must sort behind the old ones."""
    seconds = [
        int(match[1]) for path in folder.glob("*tfevents*") if (match := re.search(r"tfevents\.(\d+)", path.name))
    ]
    deadline = time.monotonic() + 3.0  # a clock that went back by more is not waited for
    while seconds and time.time() < max(seconds) + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
