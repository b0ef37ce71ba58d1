"""Weights & Biases: the run there has the run folder's name and goes on across attempts; offline where it must."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from modlib.components import component
from modlib.runtime.durable import atomic_write_text
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.jsonl import METRICS_FILE, read_lines
from modlib.tracking.messages import MetricsLogged, RunEnded, RunStarted, TextLogged

logger = logging.getLogger("modlib")

WANDB_FOLDER = "wandb"
ALL_WRITTEN = "all_written"  # in the folder: the last attempt's process came to its end
UNSURE_S = 60.0  # a process that was killed may have kept rows of this age in its buffers
RUN_ID = re.compile(r"[^/\\#?%:\s]{1,128}")
PROCESS = (sys.executable, "-m", "modlib.tracking.wandb_process")


@component("results_subscriber", "wandb", runtime_args=("run_path",))
class WandB:
    """Sends a run to Weights & Biases, or records it for `wandb sync` where there is no key or no network.

    Every line of metrics.jsonl becomes one row of the W&B history, with the same names and numbers: step, tokens, time
    and attempt are columns of it. Charts are drawn against `step`; choose `tokens` as the x axis to see that. The
    configuration is the whole resolved one, `AdamW.lr` as {"AdamW": {"lr": ...}}; config.gin is among the files. Texts
    are logged per step. Nothing is printed but one line that says where the run is.

    The W&B id is the run's name, `<sweep>.<point>` for a point of a sweep, so that all attempts are one W&B run
    (`resume="allow"`); it is kept in wandb/run_id of the run folder. Two runs of one name in one project would be one
    run there: give one of them another `project` or `run_id`.

    W&B deletes no row: what a killed attempt logged beyond the step at which the next one started stays there with its
    attempt, and the row with the highest attempt counts. What W&B may not have got from a killed attempt, the last
    minute before that step, is sent again. An offline run leaves one folder per attempt; `wandb sync` makes one W&B
    run of them.

    All of it happens in a process of its own, so that a broken network, a login that hangs or a crash of wandb costs
    nothing but its rows. metrics.jsonl has them all in any case.

    Args:
        run_path: The run folder; known at run time.
        project: W&B project; None: WANDB_PROJECT, else "modlib".
        entity: W&B user or team; None: WANDB_ENTITY, else the key's own.
        group: Group of runs; None: the name of the sweep that the run is a point of, if it is one.
        job_type: What kind of run it is, e.g. "pretraining".
        tags: Tags.
        notes: A text shown with the run.
        run_id: W&B id; None: the run's name.
        mode: "auto" follows WANDB_MODE, and else is online where there is a key (WANDB_API_KEY or .netrc) and the
            server answers. "online" asks the server longer; it, too, goes on offline where there is none.
        alerts: Whether W&B notifies you when the run ends, in whatever way.
        system_metrics_every_s: Seconds between two measurements of GPU, CPU and memory.
        init_timeout_s: Seconds until a server that does not answer is given up.
        finish_timeout_s: Seconds by which uploading may delay the end of the job; the rest stays for `wandb sync`.

    Raises:
        ConfigError: wandb is not installed, or a value is outside its range.
    """

    requires = "wandb"
    once_per_run = True
    receives = (RunStarted, MetricsLogged, TextLogged, RunEnded)

    def __init__(
        self,
        run_path: Path,
        *,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        run_id: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        alerts: bool = False,
        system_metrics_every_s: float = 30.0,
        init_timeout_s: float = 30.0,
        finish_timeout_s: float = 12.0,
    ) -> None:
        _check(run_id, system_metrics_every_s, init_timeout_s, finish_timeout_s)
        self._folder = Path(run_path) / WANDB_FOLDER
        self._run_id = run_id
        self._finish_timeout_s = finish_timeout_s
        self._options: dict[str, Any] = {
            "project": project or os.environ.get("WANDB_PROJECT") or "modlib",
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "notes": notes,
            "mode": mode,
            "alerts": alerts,
            "system_metrics_every_s": system_metrics_every_s,
            "init_timeout_s": init_timeout_s,
            "finish_timeout_s": max(0.5, finish_timeout_s - 2.0),  # before the end of the time given to the process
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self.close_s = finish_timeout_s + 1.0

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._start(message)
        if self._process is None:
            return  # disabled by WANDB_MODE
        if isinstance(message, MetricsLogged):
            head = {"step": message.step, "tokens": message.tokens, "time": message.time, "attempt": message.attempt}
            self._send("metrics", {**message.values, **head})
        elif isinstance(message, TextLogged):
            self._send("text", {"step": message.step, "tag": message.tag, "text": message.text})
        elif isinstance(message, RunEnded):
            self._send("ended", {"reason": message.reason, "step": message.step})

    def close(self) -> None:
        """Wait until everything is uploaded or on disk, for at most `finish_timeout_s`; then end the process."""
        if self._process is None:
            return
        try:
            with contextlib.suppress(OSError, ValueError):
                self._send("close", {})
            self._process.wait(self._finish_timeout_s)
        except subprocess.TimeoutExpired:
            logger.warning(
                "W&B did not end within %g s; what is not uploaded is in %s: wandb sync",
                self._finish_timeout_s,
                _shown(self._folder),
            )
        finally:
            self._end()

    def _start(self, message: RunStarted) -> None:
        if os.environ.get("WANDB_MODE") == "disabled":
            logger.info("W&B: nothing is recorded, since WANDB_MODE is disabled")
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        all_written = self._folder / ALL_WRITTEN
        lost = [] if all_written.exists() else latest_lines(message.run_path / METRICS_FILE, message.start_step)
        all_written.unlink(missing_ok=True)
        sweep = RunFolder(message.run_path).read().get("sweep")
        # other sweeps have points of the same names
        wanted = self._run_id or (f"{sweep}.{message.run_name}" if sweep else message.run_name)
        run = {
            "all_written": str(all_written),
            "id": _kept_id(self._folder / "run_id", wanted),
            "name": message.run_name,
            "folder": str(message.run_path),
            "config": nested(message.resolved) | {"run": _about(message)},
            "config_text": message.config_text,
        }
        if sweep and self._options["group"] is None:
            run["group"] = sweep
        environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "WANDB_DIR")}
        with open(self._folder / "process.log", "ab") as log:
            self._process = subprocess.Popen(
                PROCESS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )
        atexit.register(self._end)  # where the broker gave up on this subscriber, its process must not survive
        self._listener = threading.Thread(
            target=_listen, args=(self._process.stdout,), name="modlib WandB listener", daemon=True
        )
        self._listener.start()
        self._send("start", self._options | run)
        for line in lost:
            self._send("metrics", line)

    def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([kind, content]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise OSError(f"the process of W&B has ended; {_shown(self._folder / 'process.log')} says why") from error

    def _end(self) -> None:
        """Leave nothing behind: neither the process nor what it started."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self._end)
        if process.poll() is None:
            kill_with_children(process.pid)
            process.wait()
        if self._listener is not None:
            self._listener.join(1.0)
        with contextlib.suppress(OSError):  # what was not written yet has no reader any more
            process.stdin.close()  # type: ignore[union-attr]


def _check(run_id: str | None, system_metrics_every_s: float, init_timeout_s: float, finish_timeout_s: float) -> None:
    problems = []
    if importlib.util.find_spec("wandb") is None:
        problems.append("WandB needs the package wandb; pip install 'modlib[wandb]'")
    if run_id is not None and not RUN_ID.fullmatch(run_id):
        problems.append(
            f"run_id ({run_id!r}) must be 1 to 128 characters without spaces and /\\#?%:; choose another, or leave it "
            "out to take the run's name"
        )
    for name, value, least in (
        ("system_metrics_every_s", system_metrics_every_s, 0.1),
        ("init_timeout_s", init_timeout_s, 1.0),
        ("finish_timeout_s", finish_timeout_s, 1.0),
    ):
        if not value >= least:
            problems.append(f"{name} ({value:g}) must be at least {least:g}; set it to {least:g} or more")
    if problems:
        raise ConfigError(problems)


def nested(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """`{"AdamW.lr": 0.1, "val/Evaluator.every": 5}` as `{"AdamW": {"lr": 0.1}, "val/Evaluator": {"every": 5}}`."""
    made: dict[str, Any] = {}
    for name, value in resolved.items():
        component_name, dot, parameter = name.rpartition(".")
        if dot:
            made.setdefault(component_name, {})[parameter] = _as_json(value)
        else:
            made[name] = _as_json(value)
    return made


def latest_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to a step that an attempt logged in its last minute."""
    if not step or not path.exists():
        return []
    lines: deque[dict[str, Any]] = deque()
    for line in read_lines(path):
        if line["step"] <= step:
            lines.append(line)
            while lines[0]["time"] < line["time"] - UNSURE_S:
                lines.popleft()
    return list(lines)


def kill_with_children(pid: int) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.Error):
                each.kill()


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _about(message: RunStarted) -> dict[str, Any]:
    return {
        "path": str(message.run_path),
        "attempt": message.attempt,
        "start_step": message.start_step,
        "num_steps": message.num_steps,
        "tokens_per_step": message.tokens_per_step,
        **_as_json(message.info),
    }


def _kept_id(path: Path, wanted: str) -> str:
    """The id of the earlier attempts, else the wanted one, kept for those to come."""
    with contextlib.suppress(OSError):
        if RUN_ID.fullmatch(kept := path.read_text().strip()):
            return kept
    atomic_write_text(path, wanted + "\n")
    return wanted


def _listen(said: IO[bytes]) -> None:
    """Log what the process has to say, until it ends."""
    for line in said:
        with contextlib.suppress(ValueError):
            level, text = json.loads(line)
            logger.log(logging.WARNING if level == "warning" else logging.INFO, "W&B: %s", text)


def _shown(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
