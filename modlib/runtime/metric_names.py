"""Which names may be part of a metric's name."""

from __future__ import annotations


def name_problem(parameter: str, name: str) -> str | None:
    """What is wrong with a name that becomes one part of metric names such as `val/<name>/loss`; None if nothing is.

    Trackers make folders, tags and lines of a log from metric names.

    Args:
        parameter: What the name is called in the error.
        name: What was given.
    """
    if name and name.isprintable() and not name.startswith(".") and not set(name) & {"/", "\\"}:
        return None
    return (
        f"{parameter} ({name!r}) must be printable, without '/' and '\\', and not begin with '.', since it is part of "
        "metric names; use letters, digits, '_' and '-'"
    )
