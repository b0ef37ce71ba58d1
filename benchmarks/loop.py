"""What the training loop costs: `launch.py` against a hand-written loop of the same model and data, in turn.

    python benchmarks/loop.py [--rounds 7] [--steps 40]

Each round runs both in processes of their own: modlib with progress, metrics.jsonl, TensorBoard and every check on;
the hand-written loop with nothing but the step. Both log every 10 steps and keep freed memory. The first 10 steps are
left out on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SEQ_LEN, BATCH, LOG_EVERY = 256, 4, 10


def hand_written(steps: int) -> float:
    """Tokens per second of the shortest loop that trains quickstart.gin's model."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from modlib.data.corpora.corpus import prepare
    from modlib.data.packed.file import PackedFile
    from modlib.models.gpt2 import GPT2
    from modlib.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    tokens = PackedFile(prepare("stdlib:train")).tokens
    model = GPT2(vocab_size=4096, seq_len=SEQ_LEN, num_layers=4, num_heads=4, dim=256, activation="gelu_tanh")
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    kept = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.5e-3, betas=(0.9, 0.95), fused=True)
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        if step == LOG_EVERY + 1:
            start = time.perf_counter()
        starts = rng.integers(0, len(tokens) - SEQ_LEN - 1, BATCH)
        windows = torch.from_numpy(np.stack([tokens[i : i + SEQ_LEN + 1] for i in starts]).astype(np.int64))
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.view(-1, 4096), windows[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            print(step, loss.item(), file=sys.stderr)
    return (steps - LOG_EVERY) * BATCH * SEQ_LEN / (time.perf_counter() - start)


def with_modlib(steps: int, folder: Path) -> float:
    """Tokens per second of launch.py, from its own metrics.jsonl."""
    parameters = [
        f"NUM_STEPS={steps}",
        "LOG_EVERY=10",
        f"CHECKPOINT_EVERY={steps}",
        f"EVAL_EVERY={steps}",
        "validation/Evaluator.num_sequences=8",
    ]
    flags = [word for parameter in parameters for word in ("--gin_param", parameter)]
    command = [sys.executable, "launch.py", "--gin_file", "quickstart.gin", "--runs_dir", str(folder), *flags]
    subprocess.run([*command, "--name", f"loop-{time.time_ns()}"], cwd=ROOT, check=True, capture_output=True)
    metrics = max(folder.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    rates = [line["throughput/tokens_per_s"] for line in lines if "throughput/tokens_per_s" in line][1:]
    return len(rates) / sum(1 / rate for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--hand", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hand:
        print(hand_written(options.steps))
        return
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            command = [sys.executable, __file__, "--hand", "--steps", str(options.steps)]
            output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
            hand, ours = float(output), with_modlib(options.steps, Path(folder))
            pairs.append((hand, ours))
            print(f"round {number + 1}: hand-written {hand:,.0f} tokens/s, modlib {ours:,.0f}, ratio {ours / hand:.3f}")
    print(f"median ratio {statistics.median(ours / hand for hand, ours in pairs):.3f} (goal: at least 0.97)")


if __name__ == "__main__":
    main()
