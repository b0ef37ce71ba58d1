"""The machine: its names and sizes, and the fastest matrix multiplication it can do, the 100 % of MFU."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
MEASUREMENTS_KEPT = 3  # a busy machine measures too little: the best of so many runs is kept


@dataclass(frozen=True)
class Peak:
    """FLOP/s that count as 100 %, of one device, and where the number comes from."""

    flops: float
    source: str


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

    The first few calls on a machine measure again and keep the best, so that one busy moment does not stay.
    """
    import torch

    device = torch.device(device)
    threads = num_threads or torch.get_num_threads()
    on_cpu = device.type == "cpu"
    dtype_name = str(dtype).removeprefix("torch.")
    where = f"{threads} thread{'s' if threads > 1 else ''}" if on_cpu else torch.cuda.get_device_name(device)
    precision = torch.get_float32_matmul_precision() if dtype == torch.float32 else ""
    key = "|".join([socket.gethostname(), cpu_name(), where, dtype_name, precision, torch.__version__])
    path = cache_folder() / "matmul_peak" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    best, count = _read_cached(path)
    if count < MEASUREMENTS_KEPT:
        best = max(best, measure_matmul(device, dtype, threads))
        if remember:
            _write_cached(path, {"flops": best, "measurements": count + 1, "of": key})
    return Peak(best, f"measured matmul peak ({dtype_name}, {where})")


def measure_matmul(
    device: torch.device | str, dtype: torch.dtype, num_threads: int | None = None, seconds: float = MEASURE_S
) -> float:
    """Best FLOP/s of square matrix multiplications of several sizes, in about `seconds` seconds and warming up.

    The numbers multiplied come from a generator of their own: the run's random numbers stay as they are.
    """
    import torch

    device = torch.device(device)
    sizes = (256, 512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192)
    random = torch.Generator().manual_seed(0)
    threads_before = torch.get_num_threads()
    best = 0.0
    try:
        if device.type == "cpu" and num_threads:
            torch.set_num_threads(num_threads)
        for size in sizes:
            a = torch.randn(size, size, generator=random).to(device, dtype)
            flops, took = 2.0 * size**3, _timed_matmul(a, a)  # the first time is warm-up
            size_end = time.perf_counter() + seconds / len(sizes)
            while True:
                took = _timed_matmul(a, a)
                best = max(best, flops / took)
                if time.perf_counter() >= size_end:
                    break
            if took > seconds / len(sizes):  # a slow machine: the next size takes eight times as long
                break
    finally:
        torch.set_num_threads(threads_before)
    return best


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


def total_memory_bytes() -> int:
    """Memory of this machine, or the limit of this process's control group where that is smaller."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


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


def _timed_matmul(a: torch.Tensor, b: torch.Tensor) -> float:
    import torch

    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    start = time.perf_counter()
    torch.matmul(a, b)
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return max(time.perf_counter() - start, 1e-9)


def _boundary(word: str, name: str) -> bool:
    """Whether the name ends where the word goes on with something else: "L40S" is not an "L4"."""
    rest = word[len(name) :]
    return not rest or not rest[0].isalnum() or (name.startswith("MI") and rest == "X")


def _read_cached(path: Path) -> tuple[float, int]:
    try:
        cached = json.loads(path.read_text())
        return float(cached["flops"]), int(cached["measurements"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, 0


def _write_cached(path: Path, entry: dict[str, object]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(entry))
        os.replace(aside, path)
    except OSError:  # no cache: it is measured again next time
        aside.unlink(missing_ok=True) if aside.parent.is_dir() else None
