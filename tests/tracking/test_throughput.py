"""Tokens per second, MFU and waiting, on a clock that the test moves."""

from __future__ import annotations

import contextlib

import pytest

from modlib.runtime.hardware import peak_memory_bytes
from modlib.tracking.throughput import Throughput


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rates_between_two_log_steps(clock: Clock) -> None:
    throughput = Throughput(world_size=2, flops_per_token=6e6, peak_flops=3e9, clock=clock)
    for _ in range(10):
        clock.now += 1.0
        throughput.waited(0.1)
        throughput.step_done(500)
    metrics = throughput.measure()
    assert metrics["throughput/tokens_per_s"] == pytest.approx(500)
    assert metrics["throughput/mfu"] == pytest.approx(6e6 * 500 / (3e9 * 2))
    assert metrics["throughput/data_wait"] == pytest.approx(0.1)
    assert metrics["memory/peak_gib"] == pytest.approx(peak_memory_bytes() / 1024**3, rel=0.2)

    clock.now += 1.0
    throughput.step_done(2000)
    metrics = throughput.measure()
    assert metrics["throughput/tokens_per_s"] == pytest.approx(2000)
    assert metrics["throughput/data_wait"] == 0.0


def test_evaluations_and_checkpoints_do_not_count(clock: Clock) -> None:
    throughput = Throughput(clock=clock)
    clock.now += 1.0
    throughput.step_done(100)
    with throughput.pause():
        clock.now += 1000.0
    assert throughput.measure()["throughput/tokens_per_s"] == pytest.approx(100)
    with contextlib.suppress(RuntimeError), throughput.pause():
        clock.now += 7.0
        raise RuntimeError
    clock.now += 1.0
    throughput.step_done(300)
    assert throughput.measure()["throughput/tokens_per_s"] == pytest.approx(300)


def test_no_time_and_no_tokens_divide_nothing(clock: Clock) -> None:
    throughput = Throughput(flops_per_token=1.0, peak_flops=1.0, clock=clock)
    throughput.step_done(100)
    assert set(throughput.measure()) == {"memory/peak_gib"}  # no time passed
    clock.now += 1.0
    assert set(throughput.measure()) == {"memory/peak_gib"}  # nothing was counted


def test_above_the_peak_there_is_no_mfu_from_then_on(clock: Clock) -> None:
    throughput = Throughput(flops_per_token=1e6, peak_flops=1e9, clock=clock)
    shares = []
    for tokens in (1000, 1001, 3970, 500):
        clock.now += 1.0
        throughput.step_done(tokens)
        shares.append(throughput.measure().get("throughput/mfu"))
    assert shares == [pytest.approx(1.0), None, None, None]
    assert throughput.beyond_peak == pytest.approx(1.001)


@pytest.mark.parametrize(("flops", "peak"), [(None, 1e9), (1e6, None), (1e6, 0.0)])
def test_mfu_is_left_out_where_it_is_not_known(clock: Clock, flops: float | None, peak: float | None) -> None:
    throughput = Throughput(flops_per_token=flops, peak_flops=peak, clock=clock)
    throughput.step_done(100)
    clock.now += 1.0
    assert set(throughput.measure()) == {"throughput/tokens_per_s", "throughput/data_wait", "memory/peak_gib"}
    assert throughput.mfu(100.0) == 0.0


def test_waiting_is_at_most_everything(clock: Clock) -> None:
    throughput = Throughput(clock=clock)
    throughput.waited(50.0)
    clock.now += 1.0
    throughput.step_done(1)
    assert throughput.measure()["throughput/data_wait"] == 1.0
