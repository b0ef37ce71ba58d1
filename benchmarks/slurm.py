"""On a SLURM cluster: from the command to the queue, from a job's start to its first step, from a signal to the disk.

eval "$(slurm/testcluster env)" && python benchmarks/slurm.py [--rounds 5] [--only submit|start|save]

submit: seconds of `launch.py` until the job is in the queue; the goal is 10 s.
start: seconds from the attempt's begin to the first logged step of a run that continues, against a bare start on the
    same nodes (srun, import torch, join a gloo group, build the model, FSDP, one step); goal: at most 1.5 times it.
save: GPT-2 124M on four ranks: from SIGTERM to the committed checkpoint and the end of the ranks; KillWait is 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
BARE = """
import os, sys, time
import torch
import torch.distributed as dist
rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
dist.init_process_group("gloo", init_method="tcp://node1:28999", rank=rank, world_size=size)
from torch.distributed.fsdp import fully_shard
block = lambda: torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
model = torch.nn.Sequential(torch.nn.Embedding(4096, 256), *[block() for _ in range(4)], torch.nn.Linear(256, 4096))
for layer in model[1:-1]:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.randint(4096, (4, 256))
torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
optimizer.step()
if rank == 0:
    open(sys.argv[1], "w").write(str(time.time()))
dist.barrier()
"""


EAGER = ("EVAL_EVERY=100000", "train.compile=False")  # like the bare start


def launch(runs: Path, name: str, gin_file: str, *params: str) -> Path:
    """Submit with the test cluster's profile; the run folder."""
    words = [sys.executable, "launch.py", "--gin_file", gin_file, "--gin_file", "testcluster.gin"]
    words += ["--runs_dir", str(runs), "--name", name]
    for param in params:
        words += ["--gin_param", param]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return runs / name


def state(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def cancel(run: Path) -> None:
    subprocess.run(["scancel", *state(run)["slurm"]["job_ids"]], check=False)
    wait(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip())


def wait(holds: Callable[[], object], limit_s: float = 300) -> float:
    """Poll; the time when it held."""
    deadline = time.time() + limit_s
    while not holds():
        if time.time() > deadline:
            raise TimeoutError
        time.sleep(0.02)
    return time.time()


def lines(run: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def submit(runs: Path, rounds: int) -> None:
    seconds = []
    for number in range(rounds):
        began = time.perf_counter()
        run = launch(runs, f"submit{number}", "quickstart.gin", "Slurm.extra={'hold': True}")
        seconds.append(time.perf_counter() - began)
        cancel(run)
    show("launch.py to the queue", seconds, "goal: below 10 s")


def start(runs: Path, rounds: int) -> None:
    script = runs / "bare.py"
    script.write_text(BARE)
    words = ["srun", "--nodelist=node1,node2", "--ntasks-per-node=2", "--nodes=2", sys.executable, str(script)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    ours, bare = [], []
    run = launch(runs, "start", "quickstart.gin", "LOG_EVERY=1", "NUM_STEPS=100000", *EAGER)
    (job,) = state(run)["slurm"]["job_ids"]
    for attempt in range(1, rounds + 2):
        wait(lambda attempt=attempt: any(line["attempt"] == attempt for line in lines(run)))
        first = next(line["time"] for line in lines(run) if line["attempt"] == attempt)
        if attempt > 1:  # the first one does not continue
            ours.append(first - (run / "attempts" / f"{attempt:04d}" / "logs").stat().st_ctime)
        subprocess.run(["scontrol", "requeuehold", job], check=True)  # the machine is free for the other
        wait(lambda: queue("%T", job) == "PENDING")
        done = runs / f"bare{attempt}"
        before = time.time()
        subprocess.run([*words, str(done)], env=environment, check=True)
        bare.append(float(done.read_text()) - before)
        subprocess.run(["scontrol", "release", job], check=True)
    cancel(run)
    show("bare start to first step", bare)
    show("a continued job's ranks to the first new step", ours)
    print(f"ratio of medians: {statistics.median(ours) / statistics.median(bare):.2f} (goal: at most 1.5)")


def queue(what: str, job: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", job, "-o", what], capture_output=True, text=True).stdout.strip()


def save(runs: Path, rounds: int) -> None:
    seconds = []
    for number in range(rounds):
        run = launch(runs, f"save{number}", "gpt2.gin", "LOG_EVERY=1", "SEQ_LEN=64", "GRAD_ACCUM_STEPS=1")
        wait(lambda run=run: len(lines(run)) >= 2, 600)
        subprocess.run(["scancel", "--signal=TERM", state(run)["slurm"]["job_ids"][0]], check=True)
        sent = time.time()
        ended = wait(lambda run=run: (run / "attempts" / "0001" / "exit.json").exists())
        (saved,) = (run / "checkpoints").glob("step-*")
        durable = saved.stat().st_ctime - sent
        print(f"{saved.name} committed {durable:.1f} s after SIGTERM, the end after {ended - sent:.1f} s")
        seconds.append(ended - sent)
        cancel(run)
    show("GPT-2 124M: SIGTERM to saved and ended", seconds, "KillWait: 30 s")


def show(what: str, seconds: list[float], note: str = "") -> None:
    spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
    print(f"{what}: median {statistics.median(seconds):.1f} s of {len(seconds)} rounds ({spread}) {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("submit", "start", "save"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (("submit", submit), ("start", start), ("save", save)):
            if options.only in (None, name):
                measure(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
