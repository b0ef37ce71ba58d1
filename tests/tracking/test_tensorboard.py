"""TensorBoard: the same numbers as metrics.jsonl, one run over all attempts."""

from __future__ import annotations

import contextlib
import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from modlib.config import load
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.broker import Broker
from modlib.tracking.jsonl import JSONL, read_lines
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted, TextLogged
from modlib.tracking.rebuilding import rebuild_tensorboard
from modlib.tracking.tensorboard import TensorBoard, as_code

RESOLVED = {"AdamW.lr": 3e-4, "AdamW.betas": (0.9, 0.95), "train.model": "@GPT2", "GPT2.bias": True, "x.none": None}
CHOSEN = {"SEED": 3, "LR": 3e-4, "AdamW.lr": 3e-4, "GPT2.bias": True, "AdamW.betas": "(0.9, 0.95)", "x.none": None}
CONFIG = "train.model = @GPT2\nAdamW.lr = 3e-4\n# a ``` fence\n"


def started(path: Path, step: int, attempt: int = 1) -> RunStarted:
    return RunStarted("run", path, attempt, step, 10, 100, CONFIG, RESOLVED, chosen=CHOSEN)


def metrics(step: int, attempt: int = 1) -> MetricsLogged:
    values = {"train/loss": 10 / 3 / (step + attempt), "train/lr": 3e-4 * math.pi / step}
    if step % 5 == 0:
        values["val/validation/loss"] = math.e / step
    return MetricsLogged(step, step * 100, 1767225600.0 + step + attempt / 10, attempt, values)


def read(path: Path) -> EventAccumulator:
    events = EventAccumulator(str(path / "tb"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    tensors = events.Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in tensors]


def assert_same_numbers(path: Path) -> None:
    """Every number of metrics.jsonl is in TensorBoard at its step and time, in float32, and no other."""
    expected: dict[str, list[tuple[int, float, float]]] = {}
    for record in read_lines(path / "metrics.jsonl"):
        for name, value in record.items():
            if "/" in name:
                expected.setdefault(name, []).append((record["step"], record["time"], float(np.float32(value))))
    events = read(path)
    found = {tag: [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == expected


def test_scalars_equal_metrics_jsonl_and_texts_and_hparams_are_there(tmp_path: Path) -> None:
    broker = Broker.of([TensorBoard, JSONL], run_path=tmp_path)
    broker.publish(started(tmp_path, 0))
    for step in range(1, 11):
        broker.publish(metrics(step))
    broker.publish(TextLogged(10, "sample", "def main():\n    pass"))
    broker.publish(RunEnded("finished", 10, {"train/loss": 0.5}))
    broker.close()
    assert broker.missed == {}
    assert_same_numbers(tmp_path)

    events = read(tmp_path)
    assert text_of(events, "config") == [(0, f"````\n{CONFIG}\n````")]
    assert text_of(events, "sample") == [(10, "```\ndef main():\n    pass\n```")]

    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["tb"]  # no second run for hparams
    plugin = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["AdamW.lr"].number_value == 3e-4
    assert start.hparams["AdamW.betas"].string_value == "(0.9, 0.95)"
    assert start.hparams["GPT2.bias"].string_value == "True"
    assert start.hparams["x.none"].string_value == "None"
    assert start.group_name == f"{tmp_path.resolve().parent.name}/run"  # not "tb"
    experiment = HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    assert [info.name for info in experiment.hparam_infos] == list(CHOSEN)
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags == ["val/validation/loss", "train/loss", "train/lr"]
    assert "_hparams_/session_end_info" in plugin


def test_the_losses_come_first_where_tensorboard_lets_one_choose(tmp_path: Path) -> None:
    tensorboard = TensorBoard(run_path=tmp_path)
    tensorboard.receive(started(tmp_path, 0))
    tensorboard.close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    first = layout.category[0].chart[0]
    assert (first.title, list(first.multiline.tag)) == ("loss", ["train/loss", "val/.*/loss"])


@contextlib.contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """No file of this process can grow beyond this size, and the system takes a part of what is too long."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_did_not_take_is_there_when_it_has_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    broker = Broker([AtOnce(run_path=tmp_path), JSONL(run_path=tmp_path)])
    broker.publish(started(tmp_path, 0))
    for step in range(1, 4):
        broker.publish(metrics(step))
    (file,) = (tmp_path / "tb").iterdir()
    whole = file.stat().st_size
    with full_beyond(whole + 30):  # more than metrics.jsonl needs
        for step in range(4, 8):
            broker.publish(metrics(step))
        assert file.stat().st_size == whole  # nothing torn
        warnings = [record.getMessage() for record in caplog.records if record.name == "modlib"]
        assert broker.missed["AtOnce"].failed == 4
    for step in range(8, 11):
        broker.publish(metrics(step))
    broker.publish(RunEnded("finished", 10))
    broker.close()
    assert_same_numbers(tmp_path)
    assert "Traceback" not in capfd.readouterr().err
    assert broker.missed == {}
    assert warnings[0].startswith("subscriber AtOnce failed on MetricsLogged (OSError: only 30 of ")
    assert "; training goes on, AtOnce keeps it for the next try; further failures are only counted" in warnings[0]
    assert [one.partition(" failed")[0] for one in warnings] == ["subscriber AtOnce", "subscriber JSONL"]


def test_a_disk_that_is_full_at_the_start_costs_nothing_once_it_has_room(tmp_path: Path) -> None:
    broker = Broker([AtOnce(run_path=tmp_path)])
    with full_beyond(10):
        broker.publish(started(tmp_path, 0))
        broker.publish(metrics(1))
    broker.publish(metrics(2))
    broker.close()
    assert [event.step for event in read(tmp_path).Scalars("train/loss")] == [1, 2]
    assert len(text_of(read(tmp_path), "config")) == 1


class AtOnce(TensorBoard):
    """Inside of publish, so that a test knows when."""

    synchronous = True


def test_a_killed_run_goes_on_without_the_steps_that_did_not_count(tmp_path: Path) -> None:
    """Three attempts: killed at 7 (its event file torn), resumed at 5; stopped at 8; resumed there."""
    first, lines = TensorBoard(run_path=tmp_path), JSONL(run_path=tmp_path)
    for message in [started(tmp_path, 0), *map(metrics, range(1, 8)), CheckpointSaved(7, tmp_path, 0.1, 1)]:
        first.receive(message)
        lines.receive(message)
    (file,) = (tmp_path / "tb").iterdir()
    file.write_bytes(file.read_bytes()[:-5])

    for attempt, (begin, end) in enumerate([(5, 8), (8, 10)], start=2):
        broker = Broker.of([TensorBoard, JSONL], run_path=tmp_path)
        broker.publish(started(tmp_path, begin, attempt))
        for step in range(begin + 1, end + 1):
            broker.publish(metrics(step, attempt))
        broker.publish(RunEnded("finished" if end == 10 else "stopped", end))
        broker.close()
        assert broker.missed == {}
    first.close()
    assert_same_numbers(tmp_path)
    events = read(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")][5:8] == [
        (step, float(np.float32(10 / 3 / (step + 2)))) for step in (6, 7, 8)
    ]
    assert [step for step, _ in text_of(events, "config")] == [0, 5, 8]


def test_a_run_that_starts_over_from_scratch_replaces_all(tmp_path: Path) -> None:
    for attempt in (1, 2):
        broker = Broker.of([TensorBoard, JSONL], run_path=tmp_path)
        broker.publish(started(tmp_path, 0, attempt))
        for step in (1, 2):
            broker.publish(metrics(step, attempt))
        broker.close()
    assert_same_numbers(tmp_path)


def in_the_files(path: Path, tag: str) -> list[int]:
    """The steps at which the event files have a point of this tag, whatever is marked."""
    files = sorted((path / "tb").glob("*tfevents*"))
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return [event.step for event in events if any(value.tag == tag for value in event.summary.value)]


def test_what_is_purged_stays_in_the_files_until_they_are_written_anew(tmp_path: Path) -> None:
    """A reader that does not look at the mark sees it there; docs/tracking.md says so."""
    run = RunFolder(tmp_path / "run")
    run.create()
    run.config_path.write_text(load(["debug/tiny.gin"]).text)
    for attempt, start, steps in ((1, 0, range(1, 9)), (2, 4, (7,))):
        broker = Broker([JSONL(run.path), TensorBoard(run.path)])
        broker.publish(started(run.path, start, attempt))
        for step in steps:
            broker.publish(metrics(step, attempt))
        broker.publish(RunEnded("stopped", step))
        broker.close()
    assert in_the_files(run.path, "train/loss") == [1, 2, 3, 4, 5, 6, 7, 8, 7]
    assert [event.step for event in read(run.path).Scalars("train/loss")] == [1, 2, 3, 4, 7]
    assert in_the_files(run.path, "val/validation/loss") == [5]
    assert read(run.path).Scalars("val/validation/loss") == []
    rebuild_tensorboard(run)
    assert in_the_files(run.path, "train/loss") == [1, 2, 3, 4, 7]
    assert in_the_files(run.path, "val/validation/loss") == []


def test_an_incomplete_run_writes_no_hparams(tmp_path: Path) -> None:
    tensorboard = TensorBoard(run_path=tmp_path)
    tensorboard.receive(started(tmp_path, 0))
    tensorboard.receive(metrics(1))
    tensorboard.receive(RunEnded("stopped by SIGTERM", 1))
    tensorboard.close()
    with pytest.raises(KeyError):
        read(tmp_path).PluginTagToContent("hparams")


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tb").write_text("a file is in the way")
    broker = Broker.of([TensorBoard, JSONL], run_path=tmp_path)
    broker.publish(started(tmp_path, 0))
    for step in range(1, 11):
        broker.publish(metrics(step))
    broker.publish(RunEnded("finished", 10))
    broker.close()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "modlib"]
    assert warning.startswith("subscriber TensorBoard failed on RunStarted (FileExistsError:")
    assert len(list(read_lines(tmp_path / "metrics.jsonl"))) == 10


def test_tensorboard_is_imported_only_when_a_subscriber_is_made() -> None:
    code = "import sys, modlib.tracking.tensorboard; sys.exit('torch' in sys.modules or 'tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(("text", "fence"), [("a", "```"), ("`a`", "```"), ("```", "````"), ("`````", "``````")])
def test_a_code_block_holds_any_text(text: str, fence: str) -> None:
    assert as_code(text) == f"{fence}\n{text}\n{fence}"
