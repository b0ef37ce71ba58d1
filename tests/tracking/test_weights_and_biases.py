"""W&B: the same rows as metrics.jsonl, one run over all attempts, offline where it must, and never in the way."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modlib.config import load
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.broker import Broker
from modlib.tracking.csv_file import read_rows
from modlib.tracking.jsonl import JSONL, read_lines
from modlib.tracking.messages import MetricsLogged, RunEnded, RunStarted, TextLogged
from modlib.tracking.wandb_child import kill_with_children
from modlib.tracking.wandb_process import choose_mode, has_key, unreachable
from modlib.tracking.wandb_sent import Sent, read_sent, unsent
from modlib.tracking.weights_and_biases import WandB, nested
from tests.launching_command import launch, started, wait_for_step
from tests.tracking.wandb_file import config, history, records, run_files, run_record

RESOLVED = {"AdamW.lr": 3e-4, "AdamW.betas": (0.9, 0.95), "val/Evaluator.every": 5, "train.model": "@GPT2"}
SECRET = "sentinel-of-a-secret-variable"
PATIENT = {"finish_timeout_s": 60.0}  # several tests share the cores


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def begun(path: Path, step: int = 0, attempt: int = 1) -> RunStarted:
    return RunStarted("my-run", path, attempt, step, 10, 100, "AdamW.lr = 3e-4\n", RESOLVED, {"device": "cpu"})


def metrics(step: int, attempt: int = 1) -> MetricsLogged:
    values = {"train/loss": 10 / 3 / (step + attempt), "train/lr": 3e-4 * math.pi / step}
    if step % 5 == 0:
        values["val/validation/loss"] = math.e / step
    return MetricsLogged(step, step * 100, 1767225600.0 + step + attempt / 10, attempt, values)


def logged(path: Path) -> list[dict[str, Any]]:
    """The rows of all attempts that hold metrics, without what wandb adds."""
    rows = [row for file in run_files(path) for row in history(file) if "tokens" in row]
    return [
        {name: value for name, value in row.items() if name not in ("_step", "_runtime", "_timestamp")} for row in rows
    ]


def newest(rows: list[dict[str, Any]]) -> dict[tuple[int, str], Any]:
    """(step, metric) -> (value, tokens, time, attempt), where a later attempt's value counts."""
    found: dict[tuple[int, str], Any] = {}
    for row in sorted(rows, key=lambda row: row["attempt"]):
        for name, value in row.items():
            if "/" in name:
                found[row["step"], name] = (float(value), row["tokens"], row["time"], row["attempt"])
    return found


def in_words(row: dict[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in row.items()}  # in which nan equals nan


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "modlib"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of launch.py, killed and continued; its folder and what the second attempt wrote to the terminal."""
    folder = tmp_path_factory.mktemp("wandb")
    own = folder / "own.gin"
    own.write_text("include 'debug/tiny.gin'\ninclude 'tracking/wandb.gin'\ninclude 'tracking/csv.gin'\n")
    params = ["NUM_STEPS=20", "WandB.finish_timeout_s=60.0", "WandB.tags=['a','b']", "WandB.project='shapes'"]
    arguments = (str(own), params, "--runs_dir", str(folder), "--name", "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("SOME_SECRET_TOKEN", SECRET)
        with started(*arguments) as process:
            wait_for_step(folder / "run", 12, process)
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            psutil.wait_procs(children, timeout=60)  # it ends by itself, and writes what it got
            assert not [child for child in children if child.is_running()]
        again = launch(*arguments)
    assert again.returncode == 0, again.stderr
    return folder / "run", again.stderr


@pytest.mark.slow
def test_every_value_of_every_line_is_in_wandb_tensorboard_and_csv(interrupted: tuple[Path, str]) -> None:
    run, _ = interrupted
    lines = list(read_lines(run / "metrics.jsonl"))
    assert {line["attempt"] for line in lines} == {1, 2}
    expected = newest(lines)
    assert len(expected) > 20 * 5
    assert len(run_files(run)) == 2
    assert newest(logged(run)) == expected

    events = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {(event.step, tag): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert scalars == {key: float(np.float32(value)) for key, (value, *_) in expected.items()}

    columns, rows = read_rows(run / "metrics.csv")
    assert [{name: float(cell) for name, cell in row.items()} for row in rows] == lines
    assert columns == list(dict.fromkeys(name for line in lines for name in line))


def test_all_attempts_are_one_wandb_run(interrupted: tuple[Path, str]) -> None:
    run, _ = interrupted
    assert (run / "wandb" / "run_id").read_text() == "run\n"
    resolved = load([run / "config.gin"]).resolved
    for attempt, file in enumerate(run_files(run), 1):
        record = run_record(file)
        assert (record.run_id, record.display_name, record.project) == ("run", "run", "shapes")
        assert list(record.tags) == ["a", "b"]
        found = config(file)
        assert found["run"]["attempt"] == attempt
        assert found["AdamW"]["lr"] == resolved["AdamW.lr"]
        assert found["validation/Evaluator"]["every"] == resolved["validation/Evaluator.every"]
        assert len(found) == len({name.rpartition(".")[0] for name in resolved} | {"run"})
        assert (file.parent / "files" / "config.gin").read_text() == (run / "config.gin").read_text()
        axes = {
            record.metric.name or record.metric.glob_name: record.metric.step_metric
            for record in records(file)
            if record.WhichOneof("record_type") == "metric"
        }
        assert {"step", "tokens"} <= set(axes)
        assert axes["*"] == "step"


def test_one_line_says_where_it_is_and_nothing_else_is_printed(interrupted: tuple[Path, str]) -> None:
    run, terminal = interrupted
    (line,) = [line for line in terminal.splitlines() if line.startswith("W&B")]
    assert line.startswith("W&B: offline (WANDB_MODE is offline); to upload the run: wandb sync ")
    assert Path(line.rpartition(" ")[2]) == run_files(run)[1].parent
    assert "wandb:" not in terminal


def test_no_secret_code_or_console_output_is_recorded(interrupted: tuple[Path, str]) -> None:
    run, _ = interrupted
    files = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not [path for path in files if path.name.endswith((".py", ".patch", "output.log"))]
    kinds = {record.WhichOneof("record_type") for file in run_files(run) for record in records(file)}
    assert not kinds & {"output", "output_raw"}


def test_texts_are_kept_per_step_and_a_broken_server_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a key, but nothing listens at the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    caplog.set_level(logging.INFO, "modlib")
    start = time.perf_counter()
    broker = Broker([WandB(tmp_path, alerts=True, **PATIENT), JSONL(run_path=tmp_path)])
    broker.publish(begun(tmp_path))
    for step in range(1, 11):
        broker.publish(metrics(step))
        broker.publish(TextLogged(step, "sample", f"<b>step {step}</b>"))
    broker.publish(MetricsLogged(10, 1000, 1.5, 1, {"odd/nan": math.nan, "odd/inf": math.inf}))
    broker.publish(RunEnded("stopped by SIGTERM", 10))
    assert time.perf_counter() - start < 2  # nobody waited for the process, which takes seconds to start
    broker.close()
    assert broker.missed == {}
    (message,) = messages_of(caplog)
    assert message.startswith(
        f"W&B: offline (127.0.0.1:{port} does not answer: Connection refused); to upload the run:"
    )

    assert list(map(in_words, logged(tmp_path))) == list(map(in_words, read_lines(tmp_path / "metrics.jsonl")))
    (file,) = run_files(tmp_path)
    texts = {row["step"]: row["sample/path"] for row in history(file) if "sample/path" in row}
    for step in range(1, 11):
        assert (file.parent / "files" / texts[step]).read_text() == f"<pre>&lt;b&gt;step {step}&lt;/b&gt;</pre>"
    (alert,) = [record.alert for record in records(file) if record.WhichOneof("record_type") == "alert"]
    assert (alert.title, alert.text) == ("my-run stopped", "stopped by SIGTERM, at step 10")
    assert any(record.WhichOneof("record_type") == "preempting" for record in records(file))
    assert read_sent(tmp_path) == Sent({1: 11}, 10)
    assert list(unsent(tmp_path, read_sent(tmp_path))) == []


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modlib")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        broker = Broker([WandB(tmp_path, init_timeout_s=1.0, **PATIENT)])
        broker.publish(begun(tmp_path))
        broker.publish(metrics(1))
        broker.close()
    (message,) = messages_of(caplog)
    assert message.startswith("W&B: offline (")
    assert newest(logged(tmp_path)) == newest(
        [{"step": 1, "tokens": 100, "time": 1767225601.1, "attempt": 1} | metrics(1).values]
    )


@pytest.mark.slow
def test_a_hung_process_is_ended_in_time_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subscriber = WandB(tmp_path, mode="offline", finish_timeout_s=1.0)
    broker = Broker([subscriber])
    broker.publish(begun(tmp_path))
    deadline = time.monotonic() + 60
    while subscriber._child is None or not psutil.Process(subscriber._child.process.pid).children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process = psutil.Process(subscriber._child.process.pid)
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGSTOP)
    start = time.perf_counter()
    broker.close(timeout_s=1.0)
    assert time.perf_counter() - start < 10
    (message,) = [message for message in messages_of(caplog) if message.startswith("W&B had not")]
    assert re.fullmatch(
        r"W&B had not (even started|ended) after \d s; (nothing is recorded|it has 0 of 0 rows .*)", message
    )
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.slow
def test_signals_that_stop_the_job_do_not_end_the_recording(tmp_path: Path) -> None:
    subscriber = WandB(tmp_path, mode="offline", **PATIENT)
    subscriber.receive(begun(tmp_path))
    child = wait_until_recording(subscriber, tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        child.send_signal(number)
    subscriber.receive(metrics(1))
    subscriber.close()
    assert [row["step"] for row in logged(tmp_path)] == [1]


@pytest.mark.slow
def test_a_signal_before_the_process_is_ready_does_not_end_it_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subscriber = WandB(tmp_path, mode="offline", **PATIENT)
    subscriber.receive(begun(tmp_path))
    assert subscriber._child is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # while Python starts in it
        subscriber._child.process.send_signal(number)
    subscriber.receive(metrics(1))
    subscriber.receive(RunEnded("stopped by SIGINT", 1))
    subscriber.close()
    assert messages_of(caplog) == []
    assert [row["step"] for row in logged(tmp_path)] == [1]


def wait_until_recording(subscriber: WandB, path: Path, files: int = 1) -> subprocess.Popen[bytes]:
    """The process, once it has begun this run file."""
    deadline = time.monotonic() + 120
    while subscriber._child is None or len(run_files(path)) < files:
        time.sleep(0.05)
        assert time.monotonic() < deadline
    return subscriber._child.process


def kill(process: subprocess.Popen[bytes]) -> None:
    kill_with_children(process.pid)
    process.wait()


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_no_row_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subscriber, lines = WandB(tmp_path, mode="offline", **PATIENT), JSONL(run_path=tmp_path)
    for message in (begun(tmp_path), *map(metrics, range(1, 6)), TextLogged(5, "sample", "a text")):
        lines.receive(message)
        subscriber.receive(message)
    kill(wait_until_recording(subscriber, tmp_path))
    for step in range(6, 9):
        lines.receive(metrics(step))
        subscriber.receive(metrics(step))
    (message,) = messages_of(caplog)
    assert message.startswith("W&B: its process is started again, since it has ended; ")
    assert message.endswith("process.log says why")
    kill(wait_until_recording(subscriber, tmp_path, 2))  # and at the very end
    for message in (metrics(9), RunEnded("finished", 9)):
        lines.receive(message)
        if isinstance(message, RunEnded):
            subscriber._ended = {"reason": "finished", "step": 9}  # as if it had died right after it got this
        else:
            subscriber._given += 1
    subscriber.close()
    assert len(messages_of(caplog)) == 2
    last = run_files(tmp_path)[-1]
    rows = [row for row in history(last) if "tokens" in row]
    assert newest(rows) == newest(list(read_lines(tmp_path / "metrics.jsonl")))
    assert [row["step"] for row in history(last) if "sample/path" in row] == [5]
    assert read_sent(tmp_path) == Sent({1: 9}, 1)


@pytest.mark.slow
def test_what_an_earlier_attempt_could_not_send_the_next_one_sends(tmp_path: Path) -> None:
    lines = JSONL(run_path=tmp_path)
    for step in range(1, 4):
        lines.receive(metrics(step))  # by an attempt without W&B, or one that it was never started for
    lines.receive(TextLogged(2, "sample", "a text"))
    lines.receive(begun(tmp_path, 2, attempt=2))  # which drops step 3
    subscriber = WandB(tmp_path, mode="offline", **PATIENT)
    for message in (begun(tmp_path, 2, attempt=2), metrics(3, attempt=2), RunEnded("finished", 3)):
        lines.receive(message)
        subscriber.receive(message)
    subscriber.close()
    assert [(row["step"], row["attempt"]) for row in logged(tmp_path)] == [(1, 1), (2, 1), (3, 2)]
    assert read_sent(tmp_path) == Sent({1: 2, 2: 1}, 1)


def test_a_process_that_cannot_start_is_said_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken" / "wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('a broken installation')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    run = tmp_path / "run"
    run.mkdir()
    lines, subscriber = JSONL(run_path=run), WandB(run, mode="offline", **PATIENT)
    for message in (begun(run), metrics(1), RunEnded("finished", 1)):
        lines.receive(message)
        subscriber.receive(message)
    subscriber.close()
    assert messages_of(caplog) == [
        "W&B: nothing is recorded: ImportError: a broken installation",
        f"W&B could not start; nothing is recorded; send the rest with: modlib track {run} --to wandb",
    ]


def test_disabled_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    caplog.set_level(logging.INFO, "modlib")
    broker = Broker([WandB(tmp_path)])
    broker.publish(begun(tmp_path))
    broker.publish(metrics(1))
    broker.close()
    assert messages_of(caplog) == ["W&B: nothing is recorded, since WANDB_MODE is disabled"]
    assert not (tmp_path / "wandb").exists()


def test_the_mode_follows_key_network_and_environment(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine some.host login user password 0123456789\n")
    netrc.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        online = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        assert choose_mode("auto", online) == ("online", "")
        assert choose_mode("auto", online | {"WANDB_MODE": "offline"}) == ("offline", "WANDB_MODE is offline")
        assert choose_mode("offline", online) == ("offline", "mode is 'offline'")
        assert choose_mode("auto", {"WANDB_BASE_URL": url, "NETRC": str(netrc)}) == (
            "offline",
            "no key; log in with wandb login, or set WANDB_API_KEY",
        )
        assert unreachable(url) is None
    assert choose_mode("online", online) == ("online", "")
    assert choose_mode("auto", online)[0] == "offline"
    assert has_key("https://some.host/", {"NETRC": str(netrc)})


def test_the_configuration_is_nested_by_component() -> None:
    assert nested(RESOLVED | {"x.odd": {1: (None, b"b")}}) == {
        "AdamW": {"lr": 3e-4, "betas": [0.9, 0.95]},
        "val/Evaluator": {"every": 5},
        "train": {"model": "@GPT2"},
        "x": {"odd": {"1": [None, "b'b'"]}},
    }


def test_wrong_values_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        WandB(tmp_path, run_id="a/b", finish_timeout_s=0.0, init_timeout_s=0.5)
    assert error.value.problems == [
        "run_id ('a/b') must be 1 to 128 characters without spaces and /\\#?%:; choose another, or leave it out to "
        "take the run's name",
        "init_timeout_s (0.5) must be at least 1; set it to 1 or more",
        "finish_timeout_s (0) must be at least 1; set it to 1 or more",
    ]


def test_without_wandb_the_config_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    with pytest.raises(ConfigError) as error:
        load(["debug/tiny.gin", "tracking/wandb.gin"])
    (problem,) = error.value.problems
    assert problem.startswith("tracking/wandb.gin:")
    assert problem.endswith(": WandB needs the package wandb; pip install 'modlib[wandb]'")
    load(["debug/tiny.gin"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "group", "run_id"),
    [
        ({}, "lr-sweep", "lr-sweep.LR-1e-3"),
        pytest.param({"group": "mine", "run_id": "own"}, "mine", "own", marks=pytest.mark.slow),
    ],
)
def test_the_points_of_a_sweep_are_a_group_with_ids_of_their_own(
    tmp_path: Path, options: dict[str, str], group: str, run_id: str
) -> None:
    run = RunFolder(tmp_path / "LR-1e-3")
    run.create()
    run.update(name=run.name, sweep="lr-sweep")
    subscriber = WandB(run.path, mode="offline", **PATIENT, **options)
    subscriber.receive(RunStarted("LR-1e-3", run.path, 1, 0, 10, 100, "AdamW.lr = 1e-3\n", RESOLVED, {}))
    subscriber.receive(RunEnded("finished", 0))
    subscriber.close()
    (file,) = run_files(run.path)
    record = run_record(file)
    assert (record.run_group, record.run_id, record.display_name) == (group, run_id, "LR-1e-3")
