"""The life of a run, on one page."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from modlib.data.datasets.dataset import tokenizer_of
from modlib.distributed.vote import Vote
from modlib.runtime.allocator import keep_freed_memory
from modlib.runtime.errors import CheckpointError, StoppedEarly
from modlib.runtime.json_files import parse_json
from modlib.runtime.seeds import derive, seed_everything
from modlib.runtime.watchdog import UNHURRIED
from modlib.tracking.results import Results
from modlib.training.contents import Contents, data_of
from modlib.training.data_loading import build_loader, require_steps
from modlib.training.evaluation import build_evaluators
from modlib.training.experiment import Experiment
from modlib.training.job import Job
from modlib.training.log import RunLog
from modlib.training.parts import Parts, build_parts
from modlib.training.plan import make_plan
from modlib.training.record import surroundings
from modlib.training.run_progress import RunProgress, rank_state, resume
from modlib.training.step import require_finite, update

logger = logging.getLogger("modlib")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Args:
        reason: "finished" after the last step, else "stopped" with everything saved.
        step: Optimizer steps done.
        results: The numbers to show.
        sample: The text sample, where one was asked for.
        lost_metrics: Lines of metrics.jsonl that could not be written.
        incomplete: What else could not be written or recorded, a line each.
    """

    reason: Literal["finished", "stopped"]
    step: int
    results: Results
    sample: str | None = None
    lost_metrics: int = 0
    incomplete: Sequence[str] = ()

    def to_json(self) -> str:
        """As JSON, for `Outcome.of`."""
        return json.dumps(vars(self) | {"results": self.results.to_json()})

    @classmethod
    def of(cls, text: bytes) -> Outcome:
        """What `to_json` gave.

        Raises:
            JSONError: It is something else.
        """
        content = parse_json(text, dict[str, Any], place="outcome of the first rank")
        return cls(**(content | {"results": Results.of(content["results"])}))


def train(experiment: Experiment, job: Job) -> Outcome:
    """Train from the newest verified checkpoint, else from scratch, to the last step or the first stop request."""
    keep_freed_memory()
    seed_everything(derive(experiment.seed, "rank", job.world.rank))
    dataset = experiment.dataset()
    evaluators = build_evaluators(experiment.evaluators)
    data = data_of(dataset, evaluators)
    contents = Contents(data, job.world)  # are hashed beside what follows
    plan = make_plan(experiment, job.config, job.world.size, dataset, evaluators)
    collate = experiment.collate()
    checkpointing = experiment.checkpointing()
    parts = build_parts(experiment, job.world, plan.flops_per_token * plan.num_tokens / job.world.size)
    parts = replace(parts, alive=job.watchdog.alive)
    progress = resume(parts, experiment, data, job)
    loader = build_loader(experiment, dataset, collate, progress.layout, job.world.rank)
    require_steps(loader, experiment.num_steps)
    contents.require_sound(job.world, job.watchdog, job.stop)
    if job.world.rank == 0:
        job.run.note(**surroundings(data))
    vote = Vote(job.world.control_group)
    _require_no_request(vote, job, progress.step)
    stopped, first = False, progress.step + 1

    with RunLog(experiment, job, plan, progress) as log, loader:
        batches = loader.iterate(progress.step)
        while progress.step < experiment.num_steps and not stopped:
            step = progress.step + 1
            vote.cast(job.stop.requested or step == job.stop_after)
            job.stop.step_begins(step if job.world.size == 1 else step + 1)
            lr = parts.learning_rate
            patience = UNHURRIED if step == first else 1  # which starts loader workers, and may compile
            job.watchdog.doing(f"loading the data of step {step}", patience)
            batch = next(batches)
            job.watchdog.doing(f"computing step {step}", patience)
            result = update(parts, batch, step)
            progress.advance(step)
            job.stop.step_ends(step)
            log.step_done(step)

            last = step == experiment.num_steps
            if step % experiment.log_every == 0 or last:
                require_finite(parts, step)
                log.training(step, result, lr, loader.wait_s)
            stopped = vote.passed() or (job.world.size == 1 and job.stop.requested)
            job.stop.waits_for(min(step + 1, experiment.num_steps))
            if stopped:  # first what must not be lost, then what there is time for
                with log.pause():
                    _save(checkpointing, parts, progress, job, log, needed=True)
            for evaluator in evaluators:
                if evaluator.due(step, experiment.num_steps):
                    job.watchdog.doing(f"evaluating after step {step}", UNHURRIED)
                    with log.pause():
                        log.metrics(step, evaluator.evaluate(parts, collate, experiment.micro_batch_size))
            if not stopped and (checkpointing.due(step) or last):
                with log.pause():
                    _save(checkpointing, parts, progress, job, log, needed=last)

        job.stop.over()
        job.watchdog.doing("ending", UNHURRIED)
        finished = progress.step == experiment.num_steps
        sample = _sample(experiment, parts, dataset, job) if finished else None
        if sample is not None:
            log.text(progress.step, "sample", sample)
        asked = job.stop.signal or ("request" if progress.step == job.stop_after else "another rank")
        log.ended("finished" if finished else f"stopped by {asked}")
    reason: Literal["finished", "stopped"] = "finished" if finished else "stopped"
    return Outcome(reason, progress.step, log.results, sample, log.lost_metrics, log.incomplete)


def _require_no_request(vote: Vote, job: Job, step: int) -> None:
    """Let all ranks agree that training begins: from here on a stop request waits for a step's end.

    Raises:
        StoppedEarly: One of them was asked to stop.
    """
    job.stop.begins(step)
    job.stop.note_only()
    vote.cast(job.stop.requested)
    if vote.passed():
        raise StoppedEarly(job.stop.signal or "a signal on another rank")


def _save(checkpointing: Any, parts: Parts, progress: RunProgress, job: Job, log: RunLog, *, needed: bool) -> None:
    """Save a checkpoint; one that fails costs a warning, unless it is the one this attempt ends with."""
    require_finite(parts, progress.step)
    job.run.require_in_place()
    job.watchdog.doing(f"saving step {progress.step}", UNHURRIED)
    try:
        saved = checkpointing.save(
            job.run.checkpoints_path,
            step=progress.step,
            model=parts.model,
            optimizer=parts.optimizer,
            scheduler=parts.scheduler,
            extra=progress.to_json() | {"config_hash": job.config.identity, "attempt": job.attempt.number},
            rank_state=rank_state(),
            group=job.world.control_group,
        )
    except CheckpointError as error:
        if needed:
            raise
        logger.warning("training goes on without a checkpoint of step %d: %s", progress.step, error)
        return
    job.stop.is_saved()
    log.saved(saved)
    if job.world.rank == 0:
        job.run.note(step=progress.step)


def _sample(experiment: Experiment, parts: Parts, dataset: Any, job: Job) -> str | None:
    """The run's text sample; None where it asks for none, or where there is no tokenizer to make it with.

    All is trained and saved by now, so nothing that goes wrong here may end the run as failed.
    """
    if experiment.sample is None:
        return None
    tokenizer = None
    try:
        tokenizer = tokenizer_of(dataset)
        if tokenizer is None and bool(getattr(dataset, "tokenizer_fingerprint", "")):
            logger.warning("no text sample: the tokenizer that made %s is not beside it", dataset.name)
    except Exception as error:
        logger.warning("no text sample: %s", error)
    vote = Vote(job.world.control_group)
    vote.cast(tokenizer is None)
    if vote.passed():  # the ranks make it together
        return None
    try:
        return str(experiment.sample()(parts.model, tokenizer))
    except Exception as error:
        logger.warning("no text sample: %s: %s", type(error).__name__, error)
        return None
