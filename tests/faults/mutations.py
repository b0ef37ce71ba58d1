"""Is each promise watched by a test? `python -m tests.faults.mutations [NAME ...]` breaks the code on purpose to see.

Every row takes one safeguard out of a copy of this tree and runs the tests that must notice. A row whose tests still
pass is a promise that nobody watches; a row whose text is gone from the source must be written anew. Exits with 1 for
either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.launching_command import ROOT


@dataclass(frozen=True)
class Mutation:
    """One safeguard taken out.

    Args:
        name: What is broken.
        file: In modlib/.
        old: A text that is there exactly once.
        new: What stands there instead.
        tests: Which must fail then.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "no fsync of files",
        "runtime/durable.py",
        '    faults.point("fs.operation", f"fsync {path}")\n    os.fsync(descriptor)',
        "    pass",
        ("tests/checkpointing/test_commit.py",),
    ),
    Mutation(
        "the manifest first",
        "checkpointing/raw_writer.py",
        "        durable.write_new_file(self.path / MANIFEST, manifest.to_bytes())\n"
        "        durable.fsync_directory(self.path)\n"
        "        self.num_bytes = manifest.num_bytes\n"
        "        commit(self.path, manifest.step)",
        "        self.num_bytes = manifest.num_bytes\n"
        "        target = commit(self.path, manifest.step)\n"
        "        durable.write_new_file(target / MANIFEST, manifest.to_bytes())\n"
        "        durable.fsync_directory(target)",
        ("tests/checkpointing/test_commit.py",),
    ),
    Mutation(
        "clip before check",
        "training/step.py",
        "    _guard(parts, grad_norm, loss_sum / tokens, step)\n    _prove_adapters(parts, loss_sum)\n"
        "    parts.clipper.clip(grad_norm)\n    parts.optimizer.step()",
        "    parts.clipper.clip(grad_norm)\n    parts.optimizer.step()\n"
        "    _guard(parts, grad_norm, loss_sum / tokens, step)\n    _prove_adapters(parts, loss_sum)",
        ("tests/training/test_non_finite.py",),
    ),
    Mutation(
        "a NaN loss is not looked at",
        "training/step.py",
        "torch.isfinite(grad_norm) & torch.isfinite(loss)",
        "torch.isfinite(grad_norm)",
        ("tests/training/test_non_finite.py",),
    ),
    Mutation(
        "an unmasked sink",
        "tracking/broker.py",
        "        message = without_secrets(message)\n",
        "",
        ("tests/tracking/test_broker.py", "tests/training/test_log.py"),
    ),
    Mutation(
        "the lock by its name only",
        "runtime/run_lock.py",
        "            if problem := _problem(folder, descriptor, lease):\n",
        '            if problem := "":\n',
        ("tests/runtime/test_run_lock.py",),
    ),
    Mutation(
        "hashes of checkpoints not compared",
        "checkpointing/raw_reader.py",
        "        if digest.hexdigest() != expected.sha256:",
        "        if False:",
        ("tests/checkpointing/test_damage.py",),
    ),
    Mutation(
        "chunks may overlap",
        "checkpointing/manifest.py",
        " and not _overlap(tensor.chunks)",
        "",
        ("tests/checkpointing",),
    ),
    Mutation(
        "the checkpoint's configuration not compared",
        "checkpointing/run_checkpoints.py",
        "    if same_hash and same_batch:\n",
        "    if True:\n",
        ("tests/integration/test_identity.py", "tests/launching/test_continuing.py"),
    ),
    Mutation(
        "vanished checkpoints not noticed",
        "checkpointing/run_checkpoints.py",
        "    if step and not there:\n",
        "    if False:\n",
        ("tests/integration/test_identity.py", "tests/launching/test_continuing.py"),
    ),
    Mutation(
        "data believed by its header",
        "training/contents.py",
        "                packed.verify_once()\n",
        "                pass\n",
        ("tests/training/test_contents.py",),
    ),
    Mutation(
        "ids beyond the vocabulary pass",
        "training/step.py",
        '        require_known_ids(parts, inputs, targets, f"step {step}")\n',
        "        pass\n",
        ("tests/training/test_known_ids.py",),
    ),
    Mutation(
        "two lists of signals",
        "runtime/signals.py",
        "    for number in LEFT_TO_PARENT:\n        signal.signal(number, signal.SIG_IGN)",
        "    for number in (signal.SIGTERM, signal.SIGINT):\n        signal.signal(number, signal.SIG_IGN)",
        ("tests/data/batches/test_loader_workers.py",),
    ),
    Mutation(
        "bookkeeping ends the run",
        "runtime/bookkeeping.py",
        "    except OSError as error:\n        note(what, error)\n",
        "    finally:\n        pass\n",
        ("tests/runtime/test_bookkeeping.py", "tests/training/test_full_disk.py"),
    ),
    Mutation(
        "inf as a setting",
        "config/checks.py",
        "    if parameter.non_finite or all(",
        "    if True or all(",
        ("tests/config/test_checks.py",),
    ),
    Mutation(
        "the global batch not in the hash",
        "config/hashing.py",
        "for name, value in values.items())\n    return hashlib",
        "for name, value in values.items() if name != GLOBAL_BATCH)\n    return hashlib",
        ("tests/config/test_hashing.py", "tests/launching/test_identity.py"),
    ),
)


def copied(folder: Path) -> None:
    """The files of this tree that git tracks, or would."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def outcome(mutation: Mutation, folder: Path) -> str:
    """Break the copy, run the tests, mend the copy."""
    path = folder / "modlib" / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        return "STALE: the text is not in the file, or not once"
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "--run_slow", *mutation.tests]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    finally:
        path.write_text(text)
    if done.returncode == 1:
        first = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        return f"caught by {first.split(' - ')[0].split(' ', 1)[-1]}"
    return "NOT CAUGHT" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-300:]}"


def main() -> None:
    """Entry point of the command."""
    chosen = [one for one in MUTATIONS if len(sys.argv) == 1 or one.name in sys.argv[1:]]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="modlib-mutations-") as name:
        copied(Path(name))
        for mutation in chosen:
            found = outcome(mutation, Path(name))
            missed += not found.startswith("caught")
            print(f"{mutation.name}: {found}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
