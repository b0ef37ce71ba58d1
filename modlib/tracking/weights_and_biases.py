"""Weights & Biases: the run there has the run folder's name and goes on across attempts; offline where it must."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from modlib.components import component
from modlib.runtime.durable import atomic_write_text
from modlib.runtime.errors import ConfigError, require_choices
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import quoted
from modlib.tracking.messages import MetricsLogged, RunEnded, RunStarted, TextLogged
from modlib.tracking.wandb_child import COULD_NOT_START, Child, ChildGone
from modlib.tracking.wandb_sent import WANDB_FOLDER, count, given_before, read_sent, texts_kept, unsent, write_sent

Mode = Literal["auto", "online", "offline"]
logger = logging.getLogger("modlib")

PATIENT_S = 60.0  # at the end of a finished run, for what waits for no network
START_S = 120.0  # wandb is imported in this time on the busiest machine
MOST_RESTARTS = 3
RUN_ID = re.compile(r"[^/\\#?%:\s]{1,128}")


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
    attempt, and the row with the highest attempt counts. An offline run leaves one folder per attempt; `wandb sync`
    makes one W&B run of them.

    All of it happens in a process of its own, so that a broken network, a login that hangs or a crash of wandb costs
    training nothing. A process that dies or reads nothing any more is started again, up to three times. wandb/sent.json
    marks what W&B has; the next attempt sends what is missing, and so does `modlib track RUN --to wandb` at any time,
    from metrics.jsonl, which has every row.

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
        finish_timeout_s: Seconds by which uploading may delay the end of the job. At the end of a finished run an
            offline recording gets a minute, since it only waits for this machine.

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
        mode: Mode = "auto",
        alerts: bool = False,
        system_metrics_every_s: float = 30.0,
        init_timeout_s: float = 30.0,
        finish_timeout_s: float = 12.0,
    ) -> None:
        require_choices(mode=(mode, Mode))
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
        self._run_path = Path(run_path)
        self._child: Child | None = None
        self._restarts = 0
        self._started: dict[str, Any] | None = None  # what a process is told first
        self._start_step = 0
        self._attempt = 0
        self._given = self._texts = 0  # lines of this attempt, and texts of the run, that came here
        self._ended: dict[str, Any] | None = None
        self.close_s = finish_timeout_s + 1.0
        self.patient_close_s = max(finish_timeout_s, PATIENT_S) + 1.0

    @property
    def records(self) -> bool:
        """Whether WANDB_MODE lets anything be recorded."""
        return os.environ.get("WANDB_MODE") != "disabled"

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._start(message)
        if self._started is None:
            return  # disabled by WANDB_MODE
        if isinstance(message, MetricsLogged):
            head = {"step": message.step, "tokens": message.tokens, "time": message.time, "attempt": message.attempt}
            self._given += 1
            self._deliver("metrics", {**message.values, **head})
        elif isinstance(message, TextLogged):
            self._texts += 1
            self._deliver("text", {"step": message.step, "tag": message.tag, "text": message.text})
        elif isinstance(message, RunEnded):
            self._ended = {"reason": message.reason, "step": message.step}
            self._deliver("ended", self._ended)

    def close(self) -> None:
        """Wait until everything is uploaded or on disk, as long as there is time; then end the process."""
        if self._child is None:
            return
        began = time.monotonic()
        patient = self._ended is not None and self._ended["reason"] == "finished"
        status = self._finish(began, patient)
        while status not in (0, None, COULD_NOT_START) and patient and self._restarts < MOST_RESTARTS:
            with contextlib.suppress(ChildGone):
                self._restart("it has ended")
            status = self._finish(began, patient)
        child, self._child = self._child, None
        if child is not None:
            child.end()
        if status != 0:
            self._say_what_is_missing(status, child is not None and bool(child.mode), time.monotonic() - began)

    def _finish(self, began: float, patient: bool) -> int | None:
        """Tell the process to end, and wait for it: its exit status, or None when the time is over."""
        if self._child is None:
            return 1
        try:
            self._child.send("close", {})
        except ChildGone:
            return self._child.wait(1.0)
        while True:
            # W&B's server is waited for less than this machine; which of them it is turns out when wandb is imported
            local = patient and self._child.mode != "online"
            allowed_s = max(self._finish_timeout_s, PATIENT_S) if local else self._finish_timeout_s
            left = began + allowed_s - time.monotonic()
            status = self._child.wait(min(left, 0.5))
            if status is not None or left <= 0:
                return status

    def _say_what_is_missing(self, status: int | None, has_begun: bool, seconds: float) -> None:
        rows = count(self._run_path)
        if status == COULD_NOT_START:
            how = "could not start"
        elif status is not None:
            how = f"ended with status {status} ({self._why()})"
        else:
            how = f"{'had not ended' if has_begun else 'had not even started'} after {seconds:.0f} s"
        surely = f"it has {rows.sent} of {rows.rows} rows for sure" if has_begun or rows.sent else "nothing is recorded"
        remedy = f"send the rest with: modlib track {quoted(shown(self._run_path))} --to wandb"
        logger.warning("W&B %s; %s%s", how, surely, f"; {remedy}" if rows.rows else "")

    def _start(self, message: RunStarted) -> None:
        if not self.records:
            logger.info("W&B: nothing is recorded, since WANDB_MODE is disabled")
            return
        self._folder.mkdir(exist_ok=True)
        sweep = RunFolder(message.run_path).read().get("sweep")
        # other sweeps have points of the same names
        wanted = self._run_id or (f"{sweep}.{message.run_name}" if sweep else message.run_name)
        self._started = self._options | {
            "id": _kept_id(self._folder / "run_id", wanted),
            "name": message.run_name,
            "folder": str(message.run_path),
            "config": nested(message.resolved) | {"run": _about(message)},
            "config_text": message.config_text,
        }
        if sweep and self._options["group"] is None:
            self._started["group"] = sweep
        self._run_path, self._start_step = message.run_path, message.start_step
        self._attempt = message.attempt
        self._given, self._texts = given_before(message.run_path, message.attempt, message.start_step)
        self._launch()

    def _launch(self) -> int:
        """Start the process and send what W&B lacks of the run so far; returns how much of this attempt it has then."""
        assert self._started is not None
        sent = read_sent(self._run_path)
        sent.texts = min(sent.texts, texts_kept(self._run_path))  # some may have been dropped since
        write_sent(self._run_path, sent)  # there are marks from now on: none of an older modlib have to be guessed
        self._child = Child(self._folder / "process.log", self._started | {"sent": sent.to_json()})
        here, texts = sent.lines.get(self._attempt, 0), sent.texts
        for kind, record in unsent(self._run_path, sent):
            if kind == "text":
                texts += 1
                waits = texts > self._texts
            elif record.get("attempt") == self._attempt:
                waits = here == self._given
                here += not waits
            else:
                waits = record["step"] > self._start_step
            if not waits:  # to come here in a message of its own
                self._child.send(kind, record)
        if self._ended is not None:
            self._child.send("ended", self._ended)
        return here

    def _deliver(self, kind: str, content: dict[str, Any]) -> None:
        """Send a message; where the process is gone, start another and send it all that is missing."""
        if self._child is None:
            raise ChildGone(self._gone())
        started_late = time.monotonic() - self._child.began > START_S + 2 * self._options["init_timeout_s"]
        try:
            if started_late and not self._child.mode:
                raise ChildGone("it takes too long to start")
            self._child.send(kind, content)
        except ChildGone as error:
            has = self._restart(str(error))
            if kind == "metrics" and has < self._given:  # a run may do without metrics.jsonl
                self._child.send(kind, content)

    def _restart(self, why: str) -> int:
        """Start another process: what the last one had not written is sent again, from metrics.jsonl.

        Raises:
            ChildGone: It cannot be started, or has been started too often.
        """
        while self._child is not None:
            child, self._child = self._child, None
            hopeless = child.process.poll() == COULD_NOT_START
            child.end()
            if hopeless or self._restarts == MOST_RESTARTS:
                break
            self._restarts += 1
            logger.warning("W&B: its process is started again, since %s; %s", why, self._why())
            with contextlib.suppress(ChildGone):
                return self._launch()
        raise ChildGone(self._gone())

    def _gone(self) -> str:
        return f"the process of W&B has ended; {self._why()}"

    def _why(self) -> str:
        return f"{shown(self._folder / 'process.log')} says why"


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


def shown(path: Path) -> str:
    """The shortest form of a path."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
