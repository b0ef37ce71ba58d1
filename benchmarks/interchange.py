"""Models to and from folders of transformers: seconds against a plain copy of the folder's bytes, and peak memory.

    python benchmarks/interchange.py [--part export|import|both] [--size tiny|small|1.1b] [--rounds 5] [--folder DIR]

Export: `modlib export` of a Llama-like run whose checkpoint is on this disk, as a whole command (Python, torch and
transformers are started) and without the start, against `cp -r` of the folder that it makes. "Cold": what is read is
not in the page cache, and the time ends when what is written is on the disk (fsync). "Warm": neither; a copy is then as
fast as memory, and the hashes of the checkpoint are what export takes longer. Peak memory is the command's.

Import: `modlib import` of that folder, float32 and so of as many bytes as the checkpoint that it makes, likewise.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from interleave import report

from modlib.checkpointing.writing import save
from modlib.cli.models.exported_run import export_run
from modlib.cli.models.imported_folder import import_huggingface
from modlib.cli.models.trained_run import planned_run
from modlib.runtime.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "tiny": {"num_layers": 4, "dim": 256, "num_heads": 8, "num_kv_heads": 2, "ffn_dim": 704, "vocab_size": 4096},
    "small": {"num_layers": 12, "dim": 1024, "num_heads": 16, "num_kv_heads": 4, "ffn_dim": 2816, "vocab_size": 32000},
    "1.1b": {"num_layers": 22, "dim": 2048, "num_heads": 32, "num_kv_heads": 4, "ffn_dim": 5632, "vocab_size": 32000},
}
"""The last is TinyLlama's shape."""


def make_run(folder: Path, sizes: dict[str, int]) -> RunFolder:
    """A run whose checkpoint holds a model of these sizes with random weights."""
    words = ["--gin_file", "debug/tiny.gin", "--gin_file", "models/llama.gin", "--gin_param", "NUM_STEPS=1"]
    command = [sys.executable, ROOT / "launch.py", *words, "--runs_dir", folder, "--name", "run"]
    subprocess.run(command, check=True, capture_output=True)
    config = folder / "run" / "config.gin"
    head, separator, rest = config.read_text().partition("\nGPT2:\n")
    block, blank, tail = rest.partition("\n\n")
    for name, value in sizes.items():
        block = re.sub(rf"(?m)^    {name} = .*$", f"    {name} = {value}", block)
    config.write_text(head + separator + block + blank + tail)
    run = RunFolder(folder / "run")
    model = planned_run(run).model.to_empty(device="cpu")
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for begin in range(0, flat.numel(), values.numel()):
                flat[begin : begin + values.numel()] = values[: flat.numel() - begin]
    shutil.rmtree(run.checkpoints_path)
    save(run.checkpoints_path, step=1, model=model)
    return run


def peak_memory(command: list[str | Path]) -> int:
    """Bytes that a command holds at most."""
    child = os.fork()
    if child == 0:
        subprocess.run(command, check=True, capture_output=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        Path(command[-1]).with_suffix(".peak").write_text(str(peak * 1024))
        os._exit(0)
    os.waitpid(child, 0)
    return int(Path(command[-1]).with_suffix(".peak").read_text())


def in_turn(
    variants: dict[str, Callable[[], object]], out: Path, sources: list[Path], rounds: int, *, cold: bool
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after one that does not count; what it makes is removed untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, make in variants.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            for path in sources if cold else ():
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            make()
            for path in _files(out) if cold else ():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(folder: Path, size: str, rounds: int, part: str) -> None:
    """Print memory and the tables of each part."""
    run, out, made = make_run(folder, SIZES[size]), folder / "out", folder / "made"
    exporting: list[str | Path] = [sys.executable, "-m", "modlib", "export", run.path, out]
    importing: list[str | Path] = [sys.executable, "-m", "modlib", "import", made, out]
    _tell_memory("export", size, exporting)
    out.rename(made)
    if part != "import":
        sources = [*_files(made), *_files(run.checkpoints_path)]
        own: Callable[[], object] = partial(export_run, run, None, out, dtype=None, plain=False)
        _compare("export", size, rounds, made, out, exporting, own, sources=sources)
    if part != "export":
        _tell_memory("import", size, importing)
        own = partial(import_huggingface, made, out)
        _compare("import", size, rounds, made, out, importing, own, sources=_files(made))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _tell_memory(part: str, size: str, command: list[str | Path]) -> None:
    largest = 4 * SIZES[size]["vocab_size"] * SIZES[size]["dim"]
    above = (peak_memory(command) - largest) / 2**20
    total = sum(path.stat().st_size for path in _files(Path(command[-1])))
    print(
        f"{part} makes {total / 1e9:.2f} GB; peak memory: largest tensor ({largest / 2**20:.0f} MiB) + {above:.0f} MiB"
    )


def _compare(
    part: str, size: str, rounds: int, made: Path, out: Path,
    command: list[str | Path], without_start: Callable[[], object], *, sources: list[Path],
) -> None:  # fmt: skip
    variants: dict[str, Callable[[], object]] = {
        "cp -r": lambda: subprocess.run(["cp", "-r", made, out], check=True),
        f"modlib {part}": lambda: subprocess.run(command, check=True, capture_output=True),
        "without the start": without_start,
    }
    for cold in (True, False):
        seconds = in_turn(variants, out, sources, rounds, cold=cold)
        report(f"{part} of {size}, {'cold' if cold else 'warm'}", seconds, "cp -r")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("export", "import", "both"), default="both")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        measure(Path(place), options.size, options.rounds, options.part)


if __name__ == "__main__":
    main()
