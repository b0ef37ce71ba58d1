"""`modlib data batch`: what a run trained on in one step."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modlib.cli.options import RUNS, RunArgument, RunsDir
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.cli.watch.runs import find_run
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from modlib.training.replay import ReplayedBatch

_SHOWN = 60  # characters of a sequence in the table


def command(
    run: RunArgument,
    step: Annotated[int, typer.Argument(metavar="STEP", help="Optimizer step; the first is 1.")],
    sequence: Annotated[
        int | None, typer.Option("--sequence", help="Print the whole text of one sequence; the first is 0.")
    ] = None,
    world_size: Annotated[
        int | None, typer.Option("--world_size", help="Ranks. Default: as many as the run was last started on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, token ids and all.")] = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show the sequences of a step's global batch, with their samples, ranks and texts.

    A batch follows from the run's configuration and the step alone, so it need not have been trained on yet.
    """
    with reported():
        if world_size is not None and world_size < 1:
            raise ConfigError(f"--world_size ({world_size}) must be at least 1; set it to 1 or more")
        with contextlib.redirect_stdout(sys.stderr):  # a user's module may print while it is imported
            batch, texts = _replayed(run, runs_dir, step, world_size)
        if sequence is not None and not 0 <= sequence < len(batch.samples):
            raise ConfigError(f"--sequence ({sequence}) must be 0 to {len(batch.samples) - 1}, those of the batch")
    if as_json:
        print(json.dumps(_record(batch, texts), ensure_ascii=False))
    elif sequence is not None:
        print(texts[sequence])
    else:
        rows = [
            [
                str(number),
                *(str(int(of[number])) for of in (batch.samples, batch.ranks, batch.micro_batches)),
                _short(text),
            ]
            for number, text in enumerate(texts)
        ]
        title = f"step {batch.step}, epoch {batch.epoch}, fingerprint {batch.fingerprint}"
        print_table(["sequence", "sample", "rank", "micro-batch", "text"], rows, title=title)


def _replayed(word: str, runs_dir: Path, step: int, world_size: int | None) -> tuple[ReplayedBatch, list[str]]:
    """The batch, and each of its sequences as text."""
    run = find_run(word, runs_dir)
    if not run.config_path.is_file():
        raise RunFolderError(f"run ({run.path}) must have a config.gin in it; there is none")

    from modlib.config import load
    from modlib.launching.working_directory import in_working_directory
    from modlib.runtime.logs import start_logging
    from modlib.training.building import build_experiment
    from modlib.training.replay import replay

    start_logging(level=logging.WARNING)
    run = RunFolder(run.path.absolute())
    config = load([run.config_path])
    with in_working_directory(run):
        batch = replay(run, config, build_experiment(config), step, world_size)
        return batch, _texts(batch)


def _ids(batch: ReplayedBatch) -> Any:
    """Token ids (B, T) of the inputs; None where the inputs have none."""
    inputs: Any = batch.inputs
    if isinstance(inputs, dict):
        inputs = next((inputs[name] for name in ("input_ids", "tokens") if name in inputs), None)
    return None if inputs is None or inputs.ndim != 2 or inputs.is_floating_point() else inputs


def _texts(batch: ReplayedBatch) -> list[str]:
    """Each sequence as text; its ids where the data comes without its tokenizer, and its shapes where it has no ids."""
    from modlib.data.datasets.dataset import tokenizer_path_of
    from modlib.data.tokenizers.from_files import load_tokenizer

    ids = _ids(batch)
    if ids is None:
        named = batch.inputs if isinstance(batch.inputs, dict) else {"inputs": batch.inputs}
        return [", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in named.items())] * len(batch.samples)
    path = tokenizer_path_of(batch.dataset)
    if path is None:
        return [" ".join(map(str, row)) for row in ids.tolist()]
    tokenizer = load_tokenizer(path)
    return [tokenizer.decode(row) for row in ids.tolist()]


def _record(batch: ReplayedBatch, texts: list[str]) -> dict[str, Any]:
    ids = _ids(batch)
    targets = batch.targets.tolist() if not batch.targets.is_floating_point() else None
    return {
        "step": batch.step,
        "epoch": batch.epoch,
        "fingerprint": batch.fingerprint,
        "data_fingerprint": batch.dataset.fingerprint,
        "world_size": batch.layout.world_size,
        "sequences": [
            {
                "sample": int(batch.samples[number]),
                "rank": int(batch.ranks[number]),
                "micro_batch": int(batch.micro_batches[number]),
                "inputs": None if ids is None else ids[number].tolist(),
                "targets": None if targets is None else targets[number],
                "text": text,
            }
            for number, text in enumerate(texts)
        ],
    }


def _short(text: str) -> str:
    shown = repr(text[:_SHOWN])
    return shown if len(text) <= _SHOWN else f"{shown}..."
