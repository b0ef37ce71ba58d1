"""The process that talks to W&B: messages come as JSON lines on stdin, what the user should know goes to stdout.

`WandB` starts it. It ends when it is told to, when its parent is gone, and in any case when the time for that is over.
Signals that ask a job to stop are left to the parent: it has more to log while it saves.
"""

from __future__ import annotations

import contextlib
import html
import json
import netrc
import os
import queue
import socket
import sys
import threading
import time
import traceback
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from modlib.runtime.json_files import parse_json
from modlib.runtime.signals import ignore_stop_signals
from modlib.runtime.streams import secure_streams
from modlib.tracking.wandb_child import COULD_NOT_START, kill_with_children
from modlib.tracking.wandb_sent import UNSURE_S, Sent, write_sent
from modlib.tracking.weights_and_biases import PATIENT_S, shown

PROBE_TIMEOUT_S = 5.0
Mode = Literal["online", "offline"]
PARENT_SEEN_EVERY_S = 0.5
MARKED_EVERY_S = 5.0


class Recorder:
    """One W&B run, from the messages about it.

    Args:
        options: What `WandB` sent at the start: its parameters, and the run's id, name, folder and configuration.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._options = options
        self._sent = Sent.of_json(options["sent"])
        self._before = Sent.of_json(options["sent"])
        self.lost_some = False
        self._fresh: deque[tuple[float, int | None]] = deque()  # (when, attempt of a row or None of a text)
        self._exit_code = 255  # nobody said how it ended
        mode, why = choose_mode(options["mode"], os.environ)
        try:
            self._run = self._init(mode)
        except Exception as error:
            if mode != "online":
                raise
            traceback.print_exc()
            with contextlib.suppress(Exception):
                wandb.teardown()
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            self._run = self._init("offline")
        self.folder = Path(self._run.dir).parent
        if self._run.offline:
            say("info", f"offline ({why}); to upload the run: wandb sync {shown(self.folder)}")
        else:
            say("info", str(self._run.url))
        say("began", "offline" if self._run.offline else "online")
        self._describe()

    def metrics(self, content: Mapping[str, Any]) -> None:
        """One row of the history."""
        self._run.log(dict(content))
        self._fresh.append((time.monotonic(), content.get("attempt", 0)))

    def text(self, content: Mapping[str, Any]) -> None:
        """A text of one step. As HTML, W&B shows those of all steps; a table would be replaced by the next."""
        page = self._wandb.Html(f"<pre>{html.escape(content['text'])}</pre>", inject=False)
        self._run.log({"step": content["step"], content["tag"]: page})
        self._fresh.append((time.monotonic(), None))

    def mark(self, age_s: float = UNSURE_S) -> None:
        """Mark as sent what W&B got so long ago that it cannot be in a buffer any more."""
        settled = False
        while self._fresh and time.monotonic() - self._fresh[0][0] >= age_s:
            _, attempt = self._fresh.popleft()
            settled = True
            if attempt is None:
                self._sent.texts += 1
            else:
                self._sent.lines[attempt] = self._sent.lines.get(attempt, 0) + 1
        if settled:
            write_sent(Path(self._options["folder"]), self._sent)

    def ended(self, content: Mapping[str, Any]) -> None:
        """How the attempt ended."""
        finished, stopped = content["reason"] == "finished", content["reason"].startswith("stopped")
        self._exit_code = 0 if finished else 1
        if stopped:
            self._run.mark_preempting()  # W&B calls it preempted then, not failed
        if self._options["alerts"]:
            level = "INFO" if finished or stopped else "ERROR"
            title = f"{self._options['name']} {'finished' if finished else 'stopped' if stopped else 'failed'}"
            self._run.alert(title=title, text=f"{content['reason']}, at step {content['step']}", level=level)

    def close(self) -> None:
        """Upload what is left, or write it to disk."""
        uploaded = True
        try:
            self._run.finish(exit_code=self._exit_code)
        except TimeoutError:
            uploaded = False
            say("warning", f"not everything could be uploaded in time; the rest: wandb sync {shown(self.folder)}")
        self._wandb.teardown()  # finish alone leaves the end of the run file in a buffer
        if uploaded and not self.lost_some:
            self.mark(age_s=0.0)
        elif not uploaded:  # of what this process was given nothing is sure: the network may have been away for long
            write_sent(Path(self._options["folder"]), self._before)

    def _init(self, mode: Mode) -> Any:
        options = self._options
        return self._wandb.init(
            project=options["project"],
            entity=options["entity"],
            group=options["group"],
            job_type=options["job_type"],
            tags=options["tags"] or None,
            notes=options["notes"],
            id=options["id"],
            name=options["name"],
            dir=options["folder"],
            mode=mode,
            resume="allow",
            config=options["config"],
            allow_val_change=True,
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        wanted = {
            "console": "off",
            "silent": True,
            "save_code": False,
            "disable_code": True,
            "disable_git": True,
            "init_timeout": self._options["init_timeout_s"],
            "finish_timeout": self._options["finish_timeout_s"],
            "finish_timeout_raises": True,
            "x_stats_pid": os.getppid(),
            "x_stats_sampling_interval": self._options["system_metrics_every_s"],
        }
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{name: value for name, value in wanted.items() if name in known})

    def _describe(self) -> None:
        self._run.define_metric("step")
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="step")
        if self._options["config_text"]:
            path = Path(self._run.dir) / "config.gin"
            path.write_text(self._options["config_text"])
            self._run.save(str(path), base_path=self._run.dir, policy="now")


def choose_mode(mode: str, environment: Mapping[str, str]) -> tuple[Mode, str]:
    """Whether to go online, and why not.

    Args:
        mode: "auto", "online" or "offline".
        environment: Variables that W&B honours: WANDB_MODE, WANDB_API_KEY, WANDB_BASE_URL, NETRC and proxies.
    """
    if mode == "offline":
        return "offline", "mode is 'offline'"
    asked = environment.get("WANDB_MODE", "")
    if mode == "auto" and asked in ("offline", "dryrun"):
        return "offline", f"WANDB_MODE is {asked}"
    url = environment.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    if not has_key(url, environment):
        return "offline", "no key; log in with wandb login, or set WANDB_API_KEY"
    if mode == "auto" and asked != "online" and (problem := unreachable(url)):
        return "offline", problem
    return "online", ""


def has_key(url: str, environment: Mapping[str, str]) -> bool:
    """Whether wandb will find a key without asking for one."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(url).hostname or ""
    named = environment.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(str(path)).authenticators(host):
                return True
    return False


def unreachable(url: str) -> str | None:
    """Why the server cannot be reached; None where it, or the proxy in front of it, accepts a connection."""
    target = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        socket.create_connection((target.hostname or "", port), PROBE_TIMEOUT_S).close()
    except OSError as error:
        return f"{target.hostname}:{port} does not answer: {error.strerror or error}"
    return None


def say(level: str, text: str) -> None:
    """Tell the user, by way of the parent."""
    with contextlib.suppress(OSError):
        os.write(_said, json.dumps([level, text]).encode() + b"\n")


def main() -> None:
    """Record what comes on stdin; what fails is reported once, and the next message gets its chance."""
    ignore_stop_signals()
    messages: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(messages,), daemon=True).start()
    kind, content = messages.get()
    if kind != "start":
        return
    threading.Thread(target=_watch_parent, args=(os.getppid(), messages, content), daemon=True).start()
    try:
        recorder = Recorder(content)
    except Exception as error:
        traceback.print_exc()
        say("warning", f"nothing is recorded: {type(error).__name__}: {error}")
        sys.stderr.flush()
        os._exit(COULD_NOT_START if isinstance(error, ImportError) else 1)
    failed, marked = False, time.monotonic()
    while kind != "close":
        with contextlib.suppress(queue.Empty):
            kind, content = "", {}
            kind, content = messages.get(timeout=MARKED_EVERY_S)
        if not failed and time.monotonic() - marked >= MARKED_EVERY_S:
            marked = time.monotonic()
            recorder.mark()
        if not kind:
            continue
        try:
            getattr(recorder, kind)(**({} if kind == "close" else {"content": content}))
        except Exception as error:
            traceback.print_exc()
            if not failed:
                say("warning", f"{kind} could not be recorded ({type(error).__name__}: {error}); training goes on")
            failed = recorder.lost_some = True


def _read(messages: queue.SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
    for line in sys.stdin.buffer:
        kind, content = parse_json(line, list[Any])
        messages.put((kind, content))
    messages.put(("close", {}))


def _watch_parent(
    parent: int, messages: queue.SimpleQueue[tuple[str, dict[str, Any]]], options: Mapping[str, Any]
) -> None:
    """Finish when the parent is gone: a pipe alone does not tell, since its data workers hold the other end, too."""
    while os.getppid() == parent:
        time.sleep(PARENT_SEEN_EVERY_S)
    messages.put(("close", {}))
    time.sleep(max(options["finish_timeout_s"] + 1.0, PATIENT_S))  # nobody waits for this process any more
    kill_with_children(os.getpid())


_said = 1

if __name__ == "__main__":
    _said = os.dup(1)  # whatever wandb prints goes to the log
    os.dup2(2, 1)
    secure_streams()  # which masks secrets
    main()
    sys.stderr.flush()
    os._exit(0)  # all is written: wandb's telemetry would wait for an answer of the server for half a minute
