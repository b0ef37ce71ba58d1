"""The kinds of faults: each injects one into a run, drawn by a generator, and says how the run came out."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tests.faults.runs import NUM_STEPS, Ended, Run, write_data

Verdict = Literal["equal", "refused", "silent change", "hang", "raw", "leak"]
"""equal: ended as if nothing had happened. refused: a documented exit code, in words. The others are failures."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGKILL)
STARTS = 4  # the same command, until the run is finished


def judged(run: Run, ended: Ended, expected: Any) -> tuple[Verdict, str]:
    """How a run stands after its last start."""
    told = ended.text.strip().splitlines()[-1:] or [""]
    if ended.code is None:
        return "hang", told[0]
    if ended.is_raw:
        return "raw", f"exit code {ended.code}: {told[0]}"
    if ended.code != 0:
        return "refused", f"exit code {ended.code}: {told[0]}"
    return ("equal", "") if run.result() == expected else ("silent change", "other numbers or weights")


def continued(run: Run, first: Ended, expected: Any) -> tuple[Verdict, str]:
    """Start it again while it stops with "the same command continues", or was killed; then judge it."""
    ended = first
    for _ in range(STARTS):
        if ended.code is None or ended.is_raw or ended.code in (0, 2, 3, 4, 5, 6):
            break
        ended = run.to_the_end()
    return judged(run, ended, expected)


def a_signal(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """One signal at any moment, to the process or its group; then the same command."""
    number, group = random.choice(SIGNALS), random.random() < 0.5
    process = run.start()
    if random.random() < 0.25:
        where = f"after {(delay := random.uniform(0, 2)):.2f} s"
        time.sleep(delay)
    else:
        where = f"at step {(step := random.randint(1, NUM_STEPS - 1))}"
        run.reach(process, step)
        time.sleep(random.uniform(0, 0.1))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number) if group else process.send_signal(number)
    verdict, text = continued(run, run.wait(process), expected)
    return f"{signal.Signals(number).name} {'to the group ' if group else ''}{where}", verdict, text


def stopped(run: Run, random: random.Random) -> None:
    """A run that was killed behind its second checkpoint."""
    process = run.start()
    run.reach(process, random.randint(9, NUM_STEPS - 2))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    run.wait(process)


def damage(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """A file of the run folder changed, cut, emptied, removed, or replaced between two starts."""
    stopped(run, random)
    files = sorted(path for path in run.path.rglob("*") if path.is_file() and "attempts" not in path.parts)
    path = random.choice(files)
    how = random.choice(list(DAMAGES))
    DAMAGES[how](path, random)
    what = f"{path.relative_to(run.path)} {how}"
    marker = run.folder / "executed"
    verdict, text = continued(run, run.to_the_end(), expected)
    if marker.exists():
        return what, "leak", "code of the file was executed"
    if verdict == "silent change" and path.name == "metrics.jsonl" and (lost := _told_of_lost_lines(run, expected)):
        return what, "refused", lost
    return what, verdict, text


def _told_of_lost_lines(run: Run, expected: Any) -> str:
    """The weights are right and the run says which lines of metrics.jsonl are gone: what was lost cannot come back."""
    told = (run.folder / "output").read_text(errors="replace")
    return (
        "said which lines of metrics.jsonl are missing"
        if run.result()[1] == expected[1] and "metrics.jsonl" in told
        else ""
    )


def _flip(path: Path, random: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, random: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content) + 1)])


def _replace_by_folder(path: Path, random: random.Random) -> None:
    path.unlink()
    path.mkdir()


class _Executed:
    """Unpickling it leaves a file behind: a harmless proof that code of a file was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _pickle(path: Path, random: random.Random) -> None:
    folder = next(parent for parent in path.parents if parent.name == "runs").parent
    path.write_bytes(pickle.dumps(_Executed(folder / "executed")))


DAMAGES: dict[str, Callable[[Path, random.Random], Any]] = {
    "with one bit flipped": _flip,
    "cut off": _cut,
    "emptied": lambda path, random: path.write_bytes(b""),
    "removed": lambda path, random: path.unlink(),
    "of zeros": lambda path, random: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": _replace_by_folder,
    "of another kind of JSON": lambda path, random: path.write_text(
        random.choice(["[]", '{"step": "12"}', "null", "7"])
    ),
    "nested too deeply": lambda path, random: path.write_text("[" * 100_000),
    "a pickle": _pickle,
}


def data(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """The packed file changed before the run, while it trains, or between two starts."""
    when = random.choice(["before the run", "between two starts", "while it trains"])
    how = random.choice(["a token changed", "an id beyond the vocabulary", "cut off", "touched", "other contents"])
    if how == "other contents" and when == "before the run":
        how = "touched"  # the other would be another experiment, not a fault
    process = None
    if when == "between two starts":
        stopped(run, random)
    elif when == "while it trains":
        process = run.start()
        run.reach(process, random.randint(3, NUM_STEPS // 2))
    status = run.data.stat()
    if how == "cut off":
        os.truncate(run.data, status.st_size - random.randint(1, 1000))
    elif how == "other contents":
        write_data(run.data, seed=1)
    elif how != "touched":
        with open(run.data, "r+b") as file:
            file.seek(4096 + 2 * random.randrange(30_000))
            file.write((4095 - random.randrange(4000) if how == "a token changed" else 60_000).to_bytes(2, "little"))
        os.utime(run.data, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that keeps times does
    else:
        os.utime(run.data)
    ended = run.wait(process) if process else run.to_the_end()
    verdict, text = continued(run, ended, expected)
    return f"{how} {when}", verdict, text


def full_disk(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """A file system of its own that has no space left from some step on; then there is space, and the same command."""
    folder = run.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        run.runs_dir = folder / "runs"
        process = run.start()
        step = random.randint(1, NUM_STEPS - 2)
        run.reach(process, step)
        filled = folder / "filled"
        with contextlib.suppress(OSError), open(filled, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        transient = random.random() < 0.5
        if transient:
            time.sleep(random.uniform(0, 1))
            filled.unlink()
        ended = run.wait(process)
        filled.unlink(missing_ok=True)
        what = f"no space from step {step}{' for a while' if transient else ''}"
        if ended.code is None or ended.is_raw:
            return (what, *judged(run, ended, expected))
        verdict, text = _after_lost_lines(run, ended, expected)
        return what, verdict, text
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _after_lost_lines(run: Run, ended: Ended, expected: Any) -> tuple[Verdict, str]:
    """The run is continued; one that could not write all its metrics may say so, and be right in its weights."""
    again = run.to_the_end()
    if ended.code == 4 and again.code == 0 and run.result()[1] == expected[1] and run.result() != expected:
        return "refused", "whole checkpoints; said which lines of metrics.jsonl are missing"
    return continued(run, again, expected)


def file_limit(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """No file may grow beyond a limit (EFBIG, as with a quota) from some step on; then the same command without."""
    process = run.start()
    step = random.randint(1, NUM_STEPS - 2)
    run.reach(process, step)
    limit = random.choice([1 << 10, 1 << 13, 1 << 16, 1 << 20])
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    ended = run.wait(process)
    what = f"files limited to {limit} bytes from step {step}"
    if ended.code is None or ended.is_raw:
        return (what, *judged(run, ended, expected))
    verdict, text = _after_lost_lines(run, ended, expected)
    return what, verdict, text


SECRET_NAMES = ("WANDB_API_KEY", "HF_TOKEN", "MY_PAT", "DB_PASSPHRASE", "SITE_CREDENTIALS", "SESSION_COOKIE", "X_AUTH")


def secret(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """A made-up secret in the environment, and perhaps in a setting; nothing that is written may hold it."""
    name = random.choice(SECRET_NAMES)
    canary = "canary" + "".join(random.choices("abcdefghijkmnpqrstuvwxyz23456789", k=24))
    run.environment = {name: canary}
    where = random.choice(["the environment", "a prompt", "a message of an error", "a run's note"])
    if where == "a prompt":
        run.gin_params = (f"TextSample.prompt='x {canary}'",)
    elif where == "a run's note":
        run.gin_params = (f"RichProgress.style='{canary}'",)
    elif where == "a message of an error":
        run.data.with_name(canary).mkdir()
        run.gin_params = (f"DATA='{run.data.with_name(canary) / 'gone.packed'}'",)
    ended = run.to_the_end()
    written = [path for path in run.folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    what = f"{name} in {where}"
    if written:
        return what, "leak", f"in {written[0].relative_to(run.folder)}"
    if where == "the environment":
        return (what, *judged(run, ended, expected))
    return what, "hang" if ended.code is None else "raw" if ended.is_raw else "refused", f"exit code {ended.code}"


def odd_neighbour(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """Another run folder with an odd run.json beside it: `modlib ls` still lists the run."""
    ended = run.to_the_end()
    other = run.path.with_name("odd")
    other.mkdir()
    odd = random.choice(["[" * 100_000, '{"step": "12", "status": 3}', "[]", "{", '{"status": {"a": []}}', "\x00"])
    (other / "config.gin").write_text("")
    if random.random() < 0.2:
        (other / "run.json").mkdir()
    else:
        (other / "run.json").write_text(odd)
    code = "from modlib.cli.main import main; main()"
    command = [sys.executable, "-c", code, "ls", "--runs_dir", str(run.path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    listed = Ended(done.returncode, done.stdout + done.stderr)
    what = f"run.json of {odd[:30]!r}"
    if listed.is_raw:
        return what, "raw", listed.text[-200:]
    if not any(line.split()[:1] == ["r"] for line in done.stdout.splitlines()):
        return what, "silent change", "the other run is not listed"
    return (what, *judged(run, ended, expected))


def two_starts(run: Run, random: random.Random, expected: Any) -> tuple[str, Verdict, str]:
    """The same command twice, the lease deleted or the folder moved in between: one trains, nothing is doubled."""
    process = run.start()
    run.reach(process, random.randint(1, NUM_STEPS // 2))
    how = random.choice(["at once", "with the lease deleted", "with the folder renamed"])
    if how == "with the lease deleted":
        (run.path / "lease.json").unlink(missing_ok=True)
    elif how == "with the folder renamed" and process.poll() is None:
        run.path.rename(run.path.with_name("moved"))
    second = Run(run.folder / "second", run.gin_params, run.environment, run.path.parent)
    shutil.copy2(run.data, second.data)
    second.gin_params = (*run.gin_params, f"DATA='{run.data}'", f"VAL_DATA='{run.data}'")
    other = second.start()
    ends = run.wait(process), second.wait(other)
    if any(ended.code is None for ended in ends):
        return f"two starts {how}", "hang", ""
    if any(ended.is_raw for ended in ends):
        return f"two starts {how}", "raw", next(ended.text[-200:] for ended in ends if ended.is_raw)
    moved = run.path.with_name("moved")
    if moved.exists() and run.path.exists():
        half = [path for path in (moved, run.path) if not (path / "config.gin").exists()]
        if half:
            return f"two starts {how}", "silent change", f"{half[0].name} is half a run folder"
    verdict, text = continued(run, run.to_the_end(), expected)
    return f"two starts {how}", verdict, text


KINDS: dict[str, Callable[[Run, random.Random, Any], tuple[str, Verdict, str]]] = {
    "signals": a_signal,
    "damage of the run folder": damage,
    "changed data": data,
    "full disk": full_disk,
    "quota": file_limit,
    "secrets": secret,
    "odd run.json": odd_neighbour,
    "two trainers": two_starts,
}
