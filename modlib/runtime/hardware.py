"""The machine: its names and sizes, and the fastest matrix multiplication it can do, the 100 % of MFU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from modlib.runtime.json_files import JSONError, read_json

if TYPE_CHECKING:
    import torch

# Dense bf16 FLOP/s without sparsity. Where the datasheet states the sparse number, half of it. The first name that
# the device's name contains counts, so the longer names of a family come first.
DATASHEET_FLOPS: tuple[tuple[str, float, str], ...] = (
    ("GB200", 2500e12, "NVIDIA GB200 NVL72 datasheet, 5 PFLOPS sparse per GPU"),
    ("B200", 2250e12, "NVIDIA HGX B200 datasheet, 4.5 PFLOPS sparse"),
    ("GH200", 989.4e12, "NVIDIA GH200 datasheet, 1979 TFLOPS sparse"),
    ("H200 NVL", 835.5e12, "NVIDIA H200 datasheet, NVL, 1671 TFLOPS sparse"),
    ("H200", 989.4e12, "NVIDIA H200 datasheet, SXM, 1979 TFLOPS sparse"),
    ("H100 NVL", 835.5e12, "NVIDIA H100 datasheet, NVL, 1671 TFLOPS sparse"),
    ("H100 PCIe", 756e12, "NVIDIA H100 PCIe datasheet, 1513 TFLOPS sparse"),
    ("H100", 989.4e12, "NVIDIA H100 datasheet, SXM, 1979 TFLOPS sparse"),
    ("A100", 312e12, "NVIDIA A100 datasheet"),
    ("A40", 149.7e12, "NVIDIA A40 datasheet"),
    ("A10", 125e12, "NVIDIA A10 datasheet"),
    ("A6000", 154.8e12, "NVIDIA RTX A6000 datasheet, 309.7 TFLOPS sparse"),
    ("L40S", 362e12, "NVIDIA L40S datasheet, 733 TFLOPS sparse"),
    ("L40", 181e12, "NVIDIA L40 datasheet"),
    ("L4", 121e12, "NVIDIA L4 datasheet, 242 TFLOPS sparse"),
    ("MI300X", 1307.4e12, "AMD Instinct MI300X datasheet"),
    ("MI325X", 1307.4e12, "AMD Instinct MI325X datasheet"),
    ("MI250", 191.5e12, "AMD Instinct MI250X datasheet, one of its two dies"),
)
MEASURE_S = 0.3
MEASUREMENTS_KEPT = 3  # the best of these is kept
MEASURE_ROUNDS = 3  # where other work disturbs all of the first
UNDISTURBED_WAIT = 0.05  # of a matmul's time, for which a thread may have waited for a processor


@dataclass(frozen=True)
class Peak:
    """FLOP/s that count as 100 %, of one device.

    Args:
        flops: None where a measurement could not be trusted.
        source: Where the number comes from; without a number why there is none.
        kept_at: The file that remembers a measurement; None for a datasheet's number.
    """

    flops: float | None
    source: str
    kept_at: Path | None = None

    def forget(self) -> None:
        """Measure anew the next time: training was faster than this measurement."""
        if self.kept_at is not None:
            with contextlib.suppress(OSError):
                self.kept_at.unlink(missing_ok=True)


def peak_flops(
    device: torch.device | str, dtype: torch.dtype, num_threads: int | None = None, *, remember: bool = True
) -> Peak:
    """The peak of one device: its datasheet where it is known, else the fastest matmul measured here.

    Args:
        device: The device of one rank.
        dtype: The dtype of the matrix multiplications in training.
        num_threads: CPU threads of one rank; default torch.get_num_threads().
        remember: Whether a measurement is written to the cache folder.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        known = datasheet_peak(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measured_peak(device, dtype, num_threads, remember=remember)


def datasheet_peak(device_name: str) -> Peak | None:
    """The dense bf16 peak of a GPU by the name that its driver gives, or None."""
    words = device_name.replace("-", " ").split()
    for name, flops, source in DATASHEET_FLOPS:
        parts = name.split()
        if any(word.startswith(parts[0]) and _boundary(word, parts[0]) for word in words) and all(
            part in words for part in parts[1:]
        ):
            return Peak(flops, f"dense bf16 peak ({source})")
    return None


def measured_peak(
    device: torch.device | str, dtype: torch.dtype, num_threads: int | None = None, *, remember: bool = True
) -> Peak:
    """The fastest torch.matmul seen on this machine; measured in about 0.3 s and remembered in the cache folder.

    The first few calls on a machine measure again and keep the best. Where other work takes the processors away all
    the time, there is no number.
    """
    import torch

    device = torch.device(device)
    threads = num_threads or torch.get_num_threads()
    on_cpu = device.type == "cpu"
    dtype_name = str(dtype).removeprefix("torch.")
    where = f"{threads} thread{'s' if threads > 1 else ''}" if on_cpu else torch.cuda.get_device_name(device)
    precision = torch.get_float32_matmul_precision() if dtype == torch.float32 else ""
    key = "|".join([socket.gethostname(), cpu_name(), where, dtype_name, precision, torch.__version__, "undisturbed"])
    path = cache_folder() / "matmul_peak" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    best, count = _read_cached(path)
    if count < MEASUREMENTS_KEPT:
        measured, waited = measure_matmul(device, dtype, threads)
        if measured is not None:
            best = max(best, measured)
            if remember:
                _write_cached(path, {"flops": best, "measurements": count + 1, "of": key})
        elif not best:
            return Peak(
                None,
                f"the peak could not be measured, since the machine is busy: {where} waited {waited:.0%} of the time "
                "for a processor",
            )
    return Peak(best, f"measured matmul peak ({dtype_name}, {where})", path)


def measure_matmul(
    device: torch.device | str, dtype: torch.dtype, num_threads: int | None = None, seconds: float = MEASURE_S
) -> tuple[float | None, float]:
    """Best FLOP/s of square matrix multiplications of several sizes, in about `seconds` seconds and warming up.

    One counts only if other work did not take the processors away meanwhile. The numbers multiplied come from a
    generator of their own: the run's random numbers stay as they are.

    Returns:
        The best, None if all were disturbed; and the share of the time that threads waited for a processor, 0 to 1.
    """
    import torch

    device = torch.device(device)
    sizes = (256, 512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192)
    random = torch.Generator().manual_seed(0)
    threads_before = torch.get_num_threads()
    best, took_s, waited_s = 0.0, 0.0, 0.0
    try:
        if device.type == "cpu" and num_threads:
            torch.set_num_threads(num_threads)
        for _ in range(MEASURE_ROUNDS):
            for size in sizes:
                a = torch.randn(size, size, generator=random).to(device, dtype)
                _timed_matmul(a, a)  # warm-up
                size_end = time.perf_counter() + seconds / len(sizes)
                while True:
                    took, waited = _timed_matmul(a, a)
                    took_s, waited_s = took_s + took, waited_s + waited
                    if waited <= UNDISTURBED_WAIT * took:
                        best = max(best, 2.0 * size**3 / took)
                    if time.perf_counter() >= size_end:
                        break
                if took > seconds / len(sizes):  # a slow machine: the next size takes eight times as long
                    break
            if best:
                break
    finally:
        torch.set_num_threads(threads_before)
    threads = (num_threads or threads_before) if device.type == "cpu" else 1
    return best or None, min(1.0, waited_s / (took_s * threads))


def cpu_name() -> str:
    """The processor's model name, or the architecture where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def disk_free_bytes(path: Path) -> int:
    """Free bytes where `path` is or would be created."""
    path = Path(path).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def peak_memory_bytes(device: torch.device | str = "cpu") -> int:
    """Highest memory use so far: of the CUDA allocator on a GPU, of the whole process (resident) on a CPU."""
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        import resource  # on Linux it would begin with the peak of the process that started this one

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if platform.system() == "Darwin" else most * 1024  # macOS counts bytes, others KiB


def cache_folder() -> Path:
    """Where modlib remembers what is slow to find out: $MODLIB_CACHE, else ~/.cache/modlib."""
    named = os.environ.get("MODLIB_CACHE")
    return Path(named) if named else Path("~/.cache/modlib").expanduser()


def _timed_matmul(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Seconds that it took, and seconds that this process's threads waited for a processor meanwhile."""
    import torch

    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    waited, start = _waited_s(), time.perf_counter()
    torch.matmul(a, b)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    took = time.perf_counter() - start
    return max(took, 1e-9), _waited_s() - waited


def _waited_s() -> float:
    """Seconds that this process's threads were ready to run and had no processor; 0 where the system does not say."""
    waited_ns = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            waited_ns += int(path.read_text().split()[1])
    return waited_ns * 1e-9


def _boundary(word: str, name: str) -> bool:
    """Whether the name ends where the word goes on with something else: "L40S" is not an "L4"."""
    rest = word[len(name) :]
    return not rest or not rest[0].isalnum() or (name.startswith("MI") and rest == "X")


class PeakRecord(TypedDict):
    """A remembered measurement of a device."""

    flops: float
    measurements: int


def _read_cached(path: Path) -> tuple[float, int]:
    try:
        cached = read_json(path, PeakRecord, finite=True)
        return float(cached["flops"]), cached["measurements"]
    except JSONError:
        return 0.0, 0


def _write_cached(path: Path, entry: dict[str, object]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(entry))
        os.replace(aside, path)
    except OSError:  # no cache: it is measured again next time
        aside.unlink(missing_ok=True) if aside.parent.is_dir() else None
