"""The machine's peak and sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from modlib.runtime import hardware
from modlib.runtime.hardware import (
    cache_folder,
    cpu_name,
    datasheet_peak,
    disk_free_bytes,
    measure_matmul,
    measured_peak,
    num_cores,
    peak_flops,
    peak_memory_bytes,
)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("AMD Instinct MI250X", 191.5),
    ],
)
def test_datasheet_peaks(name: str, tflops: float) -> None:
    peak = datasheet_peak(name)
    assert peak is not None
    assert peak.flops == tflops * 1e12
    assert "datasheet" in peak.source


@pytest.mark.parametrize("name", ["Tesla T4", "NVIDIA A1000", "NVIDIA GeForce RTX 4090", ""])
def test_an_unknown_gpu_has_no_datasheet_peak(name: str) -> None:
    assert datasheet_peak(name) is None


def test_measuring_leaves_random_state_and_threads_alone() -> None:
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    flops, waited = measure_matmul("cpu", torch.float32, 1, seconds=0.02)
    assert flops is None or flops > 1e6
    assert 0 <= waited <= 1
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_best_of_the_first_measurements_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path))
    speeds = iter([5e9, 9e9, 7e9])
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: (next(speeds), 0.0))  # a fourth call would fail
    peaks = [measured_peak("cpu", torch.float32, 2).flops for _ in range(5)]
    assert peaks == [5e9, 9e9, 9e9, 9e9, 9e9]
    (cached,) = tmp_path.glob("matmul_peak/*.json")
    assert json.loads(cached.read_text())["measurements"] == 3


def test_threads_and_dtype_are_measured_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        hardware, "measure_matmul", lambda device, dtype, threads: (threads * dtype.itemsize * 1e9, 0.0)
    )
    assert measured_peak("cpu", torch.float32, 1).flops == 4e9
    assert measured_peak("cpu", torch.float32, 2).flops == 8e9
    peak = peak_flops("cpu", torch.bfloat16, 2)
    assert peak.flops == 4e9
    assert peak.source == "measured matmul peak (bfloat16, 2 threads)"


def test_a_busy_machine_has_no_peak_unless_it_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path))
    found = iter([(None, 0.87), (7e9, 0.1), (None, 0.9), (8e9, 0.0)])
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: next(found))
    busy, *later = [measured_peak("cpu", torch.float32, 2) for _ in range(4)]
    assert busy.flops is None
    assert busy.source == (
        "the peak could not be measured, since the machine is busy: 2 threads waited 87% of the time for a processor"
    )
    assert [peak.flops for peak in later] == [7e9, 7e9, 8e9]


def test_a_measurement_that_training_exceeds_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path))
    speeds = iter([1e6, 9e9])
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: (next(speeds), 0.0))
    measured_peak("cpu", torch.float32, 1).forget()
    assert measured_peak("cpu", torch.float32, 1).flops == 9e9


def test_a_matmul_that_other_work_disturbs_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the threads' waiting finds a second more; then only the first few."""
    looks = 0

    def waited_s() -> float:
        nonlocal looks
        looks += 1
        return float(min(looks, quiet_from))

    monkeypatch.setattr(hardware, "_waited_s", waited_s)
    quiet_from = 10**9
    assert measure_matmul("cpu", torch.float32, 1, seconds=0.01) == (None, 1.0)
    looks, quiet_from = 0, 4
    flops, waited = measure_matmul("cpu", torch.float32, 1, seconds=0.01)
    assert flops is not None
    assert flops > 1e6
    assert waited > 0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not say how long threads wait")
def test_waiting_for_a_processor_is_seen() -> None:
    """This thread shares one processor with another process for 0.3 s."""
    before = os.sched_getaffinity(0)
    core = min(before)
    spin = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            os.sched_setaffinity(0, {core})
            waited, end = hardware._waited_s(), time.perf_counter() + 0.3
            while time.perf_counter() < end:
                pass
            assert hardware._waited_s() - waited > 0.05
        finally:
            os.sched_setaffinity(0, before)
            other.kill()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"flops": "x", "measurements": 3}'])
def test_a_damaged_cache_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: (5e9, 0.0))
    measured_peak("cpu", torch.float32, 1)
    (cached,) = tmp_path.glob("matmul_peak/*.json")
    cached.write_text(content)
    assert measured_peak("cpu", torch.float32, 1).flops == 5e9


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(hardware, "measure_matmul", lambda *_: (5e9, 0.0))
    assert measured_peak("cpu", torch.float32, 1).flops == 5e9


def test_sizes_of_this_machine(tmp_path: Path) -> None:
    assert cpu_name()
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
    assert disk_free_bytes(tmp_path / "not" / "yet" / "there") == pytest.approx(disk_free_bytes(tmp_path), rel=0.1)


def test_peak_memory_of_a_process_never_shrinks() -> None:
    before = peak_memory_bytes()
    block = bytearray(64 * 2**20)
    block[:: 2**12] = b"x" * len(block[:: 2**12])
    assert peak_memory_bytes() >= before >= 2**20
    del block


def test_the_cache_folder_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODLIB_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/modlib")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    held = bytearray(512 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    code = "from modlib.runtime.hardware import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256 << 20
    del held
