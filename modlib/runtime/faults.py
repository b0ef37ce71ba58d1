"""Named points where a test can make something go wrong; nothing happens at them otherwise.

A point is a no-op until a test installs an action through this module. No environment variable and no configuration
can install one, so a production run cannot be made to fail by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Action = Callable[[str, str], None]

POINTS = (
    "ckpt.shard.write",
    "ckpt.before_manifest",
    "ckpt.before_commit",
    "ckpt.after_commit",
    "ckpt.delete",
    "fs.operation",
    "preflight.exchange",
)
"""Every point there is. `fs.operation` comes just before each operation that changes the disk through `durable`."""

_ACTIONS: dict[str, Action] = {}


def point(name: str, detail: str = "") -> None:
    """Run the action a test installed for this point, with the point's name and a detail such as a path."""
    if _ACTIONS:
        action = _ACTIONS.get(name)
        if action is not None:
            action(name, detail)


@contextmanager
def installed(name: str, action: Action) -> Iterator[None]:
    """Install an action at a point for the duration of a `with` block.

    Args:
        name: One of POINTS.
        action: Called with (name, detail); it may raise, sleep, or kill its own process.
    """
    if name not in POINTS:
        raise ValueError(f"fault point ({name}) must be one of {', '.join(POINTS)}; correct the name")
    if name in _ACTIONS:
        raise ValueError(f"fault point ({name}) already has an action; leave its `with` block first")
    _ACTIONS[name] = action
    try:
        yield
    finally:
        del _ACTIONS[name]
