"""Speed: tokens per second, model FLOPs utilisation, share of waiting for data, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modlib.runtime.hardware import peak_memory_bytes


class Throughput:
    """Counts tokens and seconds between two log steps; evaluations and checkpoints are left out of the time.

    MFU is `flops_per_token * tokens_per_s / (peak_flops * world_size)`.

    Args:
        world_size: Ranks that train together.
        flops_per_token: Forward and backward; None leaves MFU out.
        peak_flops: Peak FLOP/s of one rank's device; None leaves MFU out. So does training faster than this peak, from
            then on: the peak, or flops_per_token, is wrong.
        device: "cpu" or a CUDA device; decides what memory is measured (see hardware.peak_memory_bytes).
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        world_size: int = 1,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        device: str = "cpu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._world_size = world_size
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._device = device
        self._clock = clock
        self.beyond_peak: float | None = None
        """The first MFU above 1 that was seen."""
        self._reset()

    def step_done(self, tokens: int) -> None:
        """Count one optimizer step of `tokens` tokens over all ranks."""
        self._tokens += tokens

    def waited(self, seconds: float) -> None:
        """Count seconds in which this rank had nothing to do but wait for data."""
        self._waited_s += seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside, such as an evaluation or a checkpoint, out of the time."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - start

    def measure(self) -> dict[str, float]:
        """The metrics since the last call (or the start), under their names; then counting starts anew.

        A rate that cannot be told, because no time passed or nothing was counted, is left out.
        """
        seconds = self._clock() - self._start - self._paused_s
        metrics: dict[str, float] = {}
        if seconds > 0 and self._tokens > 0:
            tokens_per_s = self._tokens / seconds
            metrics["throughput/tokens_per_s"] = tokens_per_s
            if self._flops_per_token and self._peak_flops and self.beyond_peak is None:
                mfu = self.mfu(tokens_per_s)
                if mfu > 1.0:
                    self.beyond_peak = mfu
                else:
                    metrics["throughput/mfu"] = mfu
            metrics["throughput/data_wait"] = min(1.0, self._waited_s / seconds)
        metrics["memory/peak_gib"] = peak_memory_bytes(self._device) / 1024**3
        self._reset()
        return metrics

    def mfu(self, tokens_per_s: float) -> float:
        """Model FLOPs utilisation at this speed, of the peak of all ranks; 0 where no peak is known."""
        if not self._flops_per_token or not self._peak_flops:
            return 0.0
        return self._flops_per_token * tokens_per_s / (self._peak_flops * self._world_size)

    def _reset(self) -> None:
        self._start = self._clock()
        self._tokens = 0
        self._waited_s = 0.0
        self._paused_s = 0.0
