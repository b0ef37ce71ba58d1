"""One attempt at one run, as one process sees it."""

from __future__ import annotations

from dataclasses import dataclass

from modlib.config import Config
from modlib.distributed.process_group import World
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.signals import StopRequest
from modlib.runtime.watchdog import Watchdog


@dataclass(frozen=True)
class Job:
    """What the running process knows that no gin file can.

    Args:
        config: The checked configuration.
        run: The run folder.
        attempt: This attempt's number and folder.
        world: This rank's place.
        stop: Set by a signal or the time limit.
        watchdog: Told what begins, so that it can end what does not come to its end.
        stop_after: The step that this attempt ends with, saved like any other stop; None: the run's last.
    """

    config: Config
    run: RunFolder
    attempt: Attempt
    world: World
    stop: StopRequest
    watchdog: Watchdog
    stop_after: int | None = None
