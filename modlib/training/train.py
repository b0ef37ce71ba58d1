"""The life of a run, on one page."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

from modlib.data.dataset import tokenizer_path_of
from modlib.distributed.vote import Vote
from modlib.runtime.allocator import keep_freed_memory
from modlib.runtime.errors import CheckpointError
from modlib.runtime.seeds import derive, seed_everything
from modlib.runtime.watchdog import UNHURRIED
from modlib.training.evaluation import build_evaluators
from modlib.training.experiment import Experiment
from modlib.training.job import Job
from modlib.training.loading import build_loader, require_steps
from modlib.training.log import RunLog
from modlib.training.parts import Parts, build_parts
from modlib.training.plan import make_plan
from modlib.training.progress import Progress, rank_state, resume
from modlib.training.record import surroundings
from modlib.training.step import require_finite, update

logger = logging.getLogger("modlib")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Args:
        reason: "finished" after the last step, else "stopped" with everything saved.
        step: Optimizer steps done.
        values: The last value of every metric.
        sample: The text sample, where one was asked for.
    """

    reason: Literal["finished", "stopped"]
    step: int
    values: dict[str, float]
    sample: str | None = None


def train(experiment: Experiment, job: Job) -> Outcome:
    """Train from the newest verified checkpoint, else from scratch, to the last step or the first stop request."""
    keep_freed_memory()
    seed_everything(derive(experiment.seed, "rank", job.world.rank))
    dataset = experiment.dataset()
    evaluators = build_evaluators(experiment.evaluators)
    if job.world.rank == 0:
        job.run.update(**surroundings(dataset, evaluators))
    plan = make_plan(experiment, job.config, job.world.size, dataset, evaluators)
    collate = experiment.collate()
    checkpointing = experiment.checkpointing()
    parts = build_parts(experiment, job.world, plan.flops_per_token * plan.num_tokens / job.world.size)
    parts = replace(parts, alive=job.watchdog.alive)
    progress = resume(parts, experiment, dataset, job)
    loader = build_loader(experiment, dataset, collate, progress.layout, job.world.rank)
    require_steps(loader, experiment.num_steps)
    vote = Vote(job.world.control_group)
    stopped, first = False, progress.step + 1

    with RunLog(experiment, job, plan, progress) as log, loader:
        batches = loader.iterate(progress.step)
        while progress.step < experiment.num_steps and not stopped:
            step = progress.step + 1
            vote.cast(job.stop.signal is not None)
            lr = parts.learning_rate
            patience = UNHURRIED if step == first else 1  # which starts loader workers, and may compile
            job.watchdog.doing(f"loading the data of step {step}", patience)
            batch = next(batches)
            job.watchdog.doing(f"computing step {step}", patience)
            result = update(parts, batch, step)
            progress.advance(step)
            log.step_done(step)

            last = step == experiment.num_steps
            if step % experiment.log_every == 0 or last:
                require_finite(parts, step)
                log.training(step, result, lr, loader.wait_s)
            stopped = vote.passed()
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

        job.watchdog.doing("ending", UNHURRIED)
        finished = progress.step == experiment.num_steps
        sample = _sample(experiment, parts, dataset) if finished else None
        if sample is not None:
            log.text(progress.step, "sample", sample)
        log.ended("finished" if finished else f"stopped by {job.stop.signal or 'another rank'}")
        return Outcome("finished" if finished else "stopped", progress.step, log.last_values, sample)


def _save(checkpointing: Any, parts: Parts, progress: Progress, job: Job, log: RunLog, *, needed: bool) -> None:
    """Save a checkpoint; one that fails costs a warning, unless it is the one this attempt ends with."""
    require_finite(parts, progress.step)
    job.watchdog.doing(f"saving step {progress.step}", UNHURRIED)
    try:
        saved = checkpointing.save(
            job.run.checkpoints_path,
            step=progress.step,
            model=parts.model,
            optimizer=parts.optimizer,
            scheduler=parts.scheduler,
            extra=progress.to_json() | {"config_hash": job.config.hash, "attempt": job.attempt.number},
            rank_state=rank_state(),
            group=job.world.control_group,
        )
    except CheckpointError as error:
        if needed:
            raise
        logger.warning("training goes on without a checkpoint of step %d: %s", progress.step, error)
        return
    log.saved(saved)
    if job.world.rank == 0:
        job.run.update(step=progress.step)


def _sample(experiment: Experiment, parts: Parts, dataset: Any) -> str | None:
    """The run's text sample; None where it asks for none, or the data comes without its tokenizer."""
    if experiment.sample is None:
        return None
    path = tokenizer_path_of(dataset)
    if path is None:
        return None
    from modlib.data.tokenizer_files import load_tokenizer

    return str(experiment.sample()(parts.model, load_tokenizer(path)))
