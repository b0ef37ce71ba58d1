"""Whether a checkpoint fits a run exactly: names, shapes, types, optimizer and scheduler, before anything is read."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

from modlib.checkpointing.manifest import DTYPE_BYTES, Manifest
from modlib.checkpointing.plain import decode
from modlib.checkpointing.state import IMPLEMENTATION_CHOICES, TrainingState, dtype_name
from modlib.runtime.errors import CheckpointError

SHOWN = 10


def require_fit(manifest: Manifest, target: TrainingState, name: str) -> None:
    """Refuse a checkpoint that is not exactly of the target's model, optimizer and scheduler.

    Args:
        manifest: Of the checkpoint.
        target: What the run has; its optimizer or scheduler may be None to leave the checkpoint's unread.
        name: The checkpoint's name, for the error.

    Raises:
        CheckpointError: It does not fit; all differences are listed, the first 10 of each kind.
    """
    try:
        problems = [*_model_differences(manifest, target)]
        if target.optimizer is not None:
            problems += _optimizer_differences(manifest, target.optimizer)
        if target.scheduler is not None:
            problems += _scheduler_differences(manifest, target.scheduler)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"checkpoint {name} has a malformed optimizer or scheduler state ({type(error).__name__}: {error})"
        ) from error
    if problems:
        raise CheckpointError(
            f"checkpoint {name} must fit this run exactly; load it with the configuration it was saved with, or start "
            "a new run\n  " + "\n  ".join(problems)
        )


def require_optimizer_fit(manifest: Manifest, target: TrainingState, entries: Collection[str], name: str) -> None:
    """Refuse a checkpoint whose optimizer was of another class, or lacks state that the target's optimizer keeps.

    Args:
        manifest: Of the checkpoint.
        target: The model and the optimizer that continue.
        entries: What the target's optimizer keeps for a parameter.
        name: The checkpoint's, for the error.

    Raises:
        CheckpointError: Says which.
    """
    live, saved = target.optimizer, manifest.optimizer
    assert live is not None
    if saved is None:
        raise CheckpointError(f"checkpoint {name} must hold an optimizer's state; it holds none")
    if saved["class"] != live["class"]:
        raise CheckpointError(
            f"optimizer ({live['class']}) must be the one of checkpoint {name} ({saved['class']}); choose that one, or "
            "start with a fresh optimizer"
        )
    kept = {entry for state in saved["state"].values() for entry in (*state["tensors"], *state["values"])}
    if kept != set(entries):
        raise CheckpointError(
            f"state that {live['class']} keeps with these settings ({', '.join(sorted(entries)) or 'none'}) must be "
            f"what checkpoint {name} holds ({', '.join(sorted(kept)) or 'none'}); use the settings it was saved with, "
            "or start with a fresh optimizer"
        )
    grouped = {parameter for group in live["groups"] for parameter in group["params"]} if kept else set()
    shapes = {key.removeprefix("model."): tuple(tensor.shape) for key, tensor in target.tensors.items()}
    other = (
        f"{parameter} (checkpoint {manifest.tensors[f'model.{parameter}'].shape}, model {shapes[parameter]})"
        for parameter in sorted(grouped & set(saved["state"]))
        if manifest.tensors[f"model.{parameter}"].shape != shapes[parameter]
    )
    problems = [
        *listed("parameters without state in the checkpoint", sorted(grouped - set(saved["state"]))),
        *listed("parameters with state in the checkpoint alone", sorted(set(saved["state"]) - grouped)),
        *listed("of another shape", other),
    ]
    if problems:
        raise CheckpointError(
            f"the optimizer's state in checkpoint {name} must be of this model's trained parameters; start with a "
            "fresh optimizer\n  " + "\n  ".join(problems)
        )


def listed(kind: str, items: Iterable[str]) -> list[str]:
    """One line that counts the items and names the first of them; none when there are no items."""
    items = list(items)
    if not items:
        return []
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return [f"{len(items)} {kind}: {', '.join(items[:SHOWN])}{more}"]


def _model_differences(manifest: Manifest, target: TrainingState) -> list[str]:
    saved = {key: tensor for key, tensor in manifest.tensors.items() if key.startswith("model.")}
    live = {key: tensor for key, tensor in target.tensors.items() if key.startswith("model.")}
    both = [key for key in live if key in saved]
    shapes = {key: (saved[key].shape, tuple(live[key].shape)) for key in both}
    dtypes = {key: (saved[key].dtype, dtype_name(live[key].dtype)) for key in both}
    # A tied name that the other side stores by itself is shown as tied, not as missing.
    ties = [key for key in {*manifest.aliases, *target.aliases} if manifest.aliases.get(key) != target.aliases.get(key)]
    known = {*manifest.aliases, *target.aliases}
    return [
        *listed("missing from the checkpoint", (_bare(key) for key in live if key not in saved and key not in known)),
        *listed("only in the checkpoint", (_bare(key) for key in saved if key not in live and key not in known)),
        *listed(
            "of another shape",
            (
                f"{_bare(key)} (checkpoint {there}, model {here})"
                for key, (there, here) in shapes.items()
                if there != here
            ),
        ),
        *listed(
            "of another dtype",
            (
                f"{_bare(key)} (checkpoint {there}, model {here})"
                for key, (there, here) in dtypes.items()
                if there != here
            ),
        ),
        *listed("tied in one of the two only", (_bare(key) for key in sorted(ties))),
    ]


def _bare(key: str) -> str:
    return key.removeprefix("model.")


def _optimizer_differences(manifest: Manifest, live: dict[str, Any]) -> list[str]:
    saved = manifest.optimizer
    if saved is None:
        return ["optimizer state is not in the checkpoint; pass optimizer=None to load the model alone"]
    if saved["class"] != live["class"]:
        return [f"optimizer ({live['class']}) must be the checkpoint's ({saved['class']})"]
    if len(saved["groups"]) != len(live["groups"]):
        return [f"number of optimizer groups ({len(live['groups'])}) must be the checkpoint's ({len(saved['groups'])})"]
    problems: list[str] = []
    for index, (there, here) in enumerate(zip(saved["groups"], live["groups"], strict=True)):
        problems += _group_differences(index, there, here)
    grouped = {name for group in live["groups"] for name in group["params"]}
    problems += listed(
        "optimizer states of parameters in no group", (name for name in saved["state"] if name not in grouped)
    )
    for name, entries in saved["state"].items():
        for entry in entries["tensors"]:
            stored = manifest.tensors[f"optimizer.{name}.{entry}"]
            if not isinstance(entry, str) or stored.dtype not in DTYPE_BYTES:
                raise ValueError(f"optimizer.{name}.{entry}")
        if not all(isinstance(entry, str) for entry in dict(entries["values"])):
            raise ValueError(f"optimizer.{name}")
        unlike = ((entry, _unlike(None, decode(value))) for entry, value in entries["values"].items())
        problems += [f"optimizer.{name}.{entry} of the checkpoint {problem}" for entry, problem in unlike if problem]
    return problems


def _group_differences(index: int, there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    group = f"optimizer group {index}"
    saved_values, live_values = decode(there["values"]), decode(here["values"])
    parameters, saved_parameters = set(here["params"]), set(there["params"])
    problems = [
        *listed(f"parameters of {group} in another group of the checkpoint", sorted(parameters - saved_parameters)),
        *listed(f"parameters of the checkpoint's {group} in another group", sorted(saved_parameters - parameters)),
        *listed(f"settings of {group} missing from the checkpoint", sorted(live_values.keys() - saved_values.keys())),
        *listed(
            f"settings of {group} only in the checkpoint (a scheduler is built before loading)",
            sorted(saved_values.keys() - live_values.keys()),
        ),
    ]
    for name in sorted(saved_values.keys() & live_values.keys() - IMPLEMENTATION_CHOICES):
        ours, theirs = live_values[name], saved_values[name]
        # Numbers (lr, weight_decay) move during training and are restored; switches and names are what it is.
        switch = isinstance(ours, bool | str) or isinstance(theirs, bool | str)
        if switch and ours != theirs:
            problems.append(f"{group}: {name} ({ours}) must be the checkpoint's ({theirs})")
        elif unlike := _unlike(ours, theirs):
            problems.append(f"{group}: {name} of the checkpoint {unlike}")
    return problems


def _scheduler_differences(manifest: Manifest, live: dict[str, Any]) -> list[str]:
    saved = manifest.scheduler
    if saved is None:
        return ["scheduler state is not in the checkpoint; pass scheduler=None to leave it out"]
    if saved["class"] != live["class"]:
        return [f"scheduler ({live['class']}) must be the checkpoint's ({saved['class']})"]
    there, here = decode(saved["state"]), decode(live["state"])
    unlike = ((name, _unlike(here[name], there[name])) for name in here if name in there)
    return [
        *listed("scheduler entries missing from the checkpoint", sorted(here.keys() - there.keys())),
        *listed("scheduler entries only in the checkpoint", sorted(there.keys() - here.keys())),
        *(f"scheduler entry {name} of the checkpoint {problem}" for name, problem in unlike if problem),
    ]


def _unlike(ours: Any, theirs: Any) -> str:
    """What a saved setting must be by the one that the run has: of its type, and finite where that is; "" if it is.

    A list may have grown, and None may have become something else, while the checkpoint's run trained.
    """
    if theirs is None:
        return ""
    if _is_number(theirs) and (ours is None or _is_number(ours)):
        wrong = not math.isfinite(theirs) and (ours is None or math.isfinite(ours))
        return f"({theirs}) must be a finite number" if wrong else ""
    sizes_differ = isinstance(theirs, tuple) and isinstance(ours, tuple) and len(ours) != len(theirs)
    if sizes_differ or (ours is not None and type(ours) is not type(theirs)):
        return f"({theirs!r}) must be like the run's ({ours!r})"
    if isinstance(theirs, dict):
        found = (_unlike(None if ours is None else ours.get(key), value) for key, value in theirs.items())
    elif isinstance(theirs, list | tuple):
        examples = ours if ours is not None and len(ours) == len(theirs) else [None] * len(theirs)
        found = (_unlike(example, value) for example, value in zip(examples, theirs, strict=True))
    else:
        return ""
    return next(filter(None, found), "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
