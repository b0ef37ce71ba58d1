"""Start-up: `--help` and a config error, against `python -c "import gin, typer"` in the same rounds.

python benchmarks/startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from interleave import interleave, report

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> object:
    """A callable that runs a fresh Python with these arguments and waits for it."""
    return lambda: subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder) / "wrong.gin"
        wrong.write_text("Local.num_proceses = 2\n")
        variants = {
            "python -c pass": command("-c", "pass"),
            "import gin, typer": command("-c", "import importlib.util, gin, typer"),
            "launch.py --help": command("launch.py", "--help"),
            "modlib --help": command("-m", "modlib.cli.main", "--help"),
            "config error": command("launch.py", "--gin_file", str(wrong)),
            "import torch": command("-c", "import torch"),
        }
        seconds = interleave(variants, rounds)
    report("start-up", seconds, "import gin, typer", "goal: --help at least 0.33 of the speed of the two imports")


if __name__ == "__main__":
    main()
