"""What a run says about itself: metrics, texts and checkpoints, published on rank 0."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from modlib.checkpointing.writing import SavedCheckpoint
from modlib.config.diff import recorded
from modlib.runtime.hardware import Peak
from modlib.tracking.broker import Broker
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, Notice, RunEnded, RunStarted, StepDone, TextLogged
from modlib.tracking.results import Results
from modlib.tracking.run_plan import Plan
from modlib.tracking.throughput import Throughput
from modlib.training.experiment import Experiment
from modlib.training.job import Job
from modlib.training.plan import device_peak
from modlib.training.run_progress import RunProgress
from modlib.training.step import StepResult

logger = logging.getLogger("modlib")


class RunLog:
    """The run's voice. Every rank has one; only rank 0's has subscribers.

    Args:
        experiment: The settings.
        job: This attempt.
        plan: What the run was announced as.
        progress: Where it stands; read at every message.
    """

    def __init__(self, experiment: Experiment, job: Job, plan: Plan, progress: RunProgress) -> None:
        self.job = job
        self.progress = progress
        continued = progress.step > 0 and job.world.rank == 0
        self.results = Results.until(job.run.path, progress.step) if continued else Results()
        self.broker = Broker.of(experiment.subscribers if job.world.rank == 0 else (), run_path=job.run.path)
        # only rank 0 reports it, and ranks that measure at once would measure each other
        self.peak = peak = device_peak(experiment, remember=True) if job.world.rank == 0 else None
        self.throughput = Throughput(
            world_size=job.world.size,
            flops_per_token=plan.flops_per_token,
            peak_flops=peak.flops if peak else None,
            device=str(job.world.device),
        )
        self._waited_s = 0.0
        self.broker.publish(
            RunStarted(
                run_name=job.run.name,
                run_path=job.run.path,
                attempt=job.attempt.number,
                start_step=progress.step,
                num_steps=experiment.num_steps,
                tokens_per_step=plan.tokens_per_step,
                config_text=job.config.text,
                resolved=job.config.resolved,
                info={
                    "world_size": job.world.size,
                    "device": str(job.world.device),
                    "peak": peak.source if peak else "",
                },
                chosen=_chosen(job),
            )
        )
        if peak is not None and peak.flops is None:
            self.broker.publish(Notice(f"MFU is left out: {peak.source}"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.broker.publish(RunEnded(f"failed: {error}", self.progress.step, self.results.values))
        self.broker.close()

    def step_done(self, step: int) -> None:
        """Count the step's tokens and move the progress line; no collective, no host sync."""
        self.throughput.step_done(self.progress.layout.global_batch_size * self.progress.seq_len)
        self.broker.publish(StepDone(step))

    def training(self, step: int, result: StepResult, lr: float, waited_s: float) -> None:
        """Log one training line; a host sync.

        Args:
            step: Optimizer steps done.
            result: Of that step; its loss is the loss of exactly that step's global batch.
            lr: Learning rate of that step.
            waited_s: Seconds this rank has waited for data so far.
        """
        loss = result.mean_loss()
        self.throughput.waited(waited_s - self._waited_s)
        self._waited_s = waited_s
        values = {"train/loss": loss, "train/lr": lr, "train/grad_norm": float(result.grad_norm)}
        values |= {f"train/{name}": mean for name, mean in result.mean_metrics().items()}
        known = self.throughput.beyond_peak
        self.metrics(step, values | self.throughput.measure())
        if known is None and self.throughput.beyond_peak is not None and self.peak is not None:
            self._doubt(self.peak, self.throughput.beyond_peak)

    def _doubt(self, peak: Peak, mfu: float) -> None:
        """Say why MFU is left out from here on, and measure the peak again at the next start."""
        peak.forget()
        text = (
            f"MFU is left out from here on: training at {mfu:.0%} of the {peak.source} cannot be, so that peak or the "
            "model's FLOPs per token are wrong; a measured peak is measured again at the next start"
        )
        self.broker.publish(Notice(text, "warning"))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Publish metrics of a step."""
        self.results.add(step, values)
        self.broker.publish(
            MetricsLogged(step, self.progress.tokens, time.time(), self.job.attempt.number, dict(values))
        )

    def text(self, step: int, tag: str, text: str) -> None:
        """Publish a text, such as a sample of the model."""
        self.broker.publish(TextLogged(step, tag, text))

    def saved(self, checkpoint: SavedCheckpoint) -> None:
        """Publish that a checkpoint is committed."""
        self.broker.publish(CheckpointSaved(self.progress.step, checkpoint.path, checkpoint.seconds, checkpoint.bytes))

    def ended(self, reason: str) -> None:
        """Publish how the attempt ended."""
        self.broker.publish(RunEnded(reason, self.progress.step, self.results.values))

    @property
    def incomplete(self) -> list[str]:
        """What subscribers did not get, a line each; once this is closed, for good."""
        return [f"{name}: {missed}" for name, missed in self.broker.missed.items()]

    @property
    def lost_metrics(self) -> int:
        """Lines of metrics.jsonl that are not on disk; once this is closed, for good."""
        return self.broker.lost_metrics

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside counts as evaluation or checkpoint, not as training."""
        with self.throughput.pause():
            yield


def _chosen(job: Job) -> dict[str, Any]:
    """What was set for the run, as its folder records it: a rank has only the resolved config.gin."""
    record = recorded(job.run.path) if job.run.config_path.is_file() else None
    return record["chosen"] if record and isinstance(record.get("chosen"), dict) else job.config.chosen
