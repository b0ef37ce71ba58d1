"""What each host of a run has, and what is wrong with it: against the plan, the request, and the other hosts."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modlib.distributed.links import SLOW_FACTOR, slow_hosts
from modlib.distributed.meeting import same_host
from modlib.runtime.units import format_bytes, format_seconds

MAX_SKEW_S = 60.0
LEAST_FREE_DEVICE_SHARE = 0.8
NVIDIA_SMI_LIMIT_S = 2.0
MOST_NAMED = 4  # ranks in one text


@dataclass(frozen=True)
class HostReport:
    """What one host has, as its ranks see it.

    Args:
        host: Its name.
        ranks: The ranks on it.
        devices: The name of each rank's device.
        device_ids: What tells each rank's device from every other; "" for a CPU.
        device_free: The free share of the memory of the fullest device, before training; 1 for CPUs.
        memory_errors: Uncorrectable memory errors of its GPUs since they were last reset.
        free_bytes: Free disk where the run folder is.
        cores: Cores that the rank with the fewest may use.
        versions: Of python, torch and modlib.
    """

    host: str
    ranks: tuple[int, ...]
    devices: tuple[str, ...]
    device_ids: tuple[str, ...]
    device_free: float
    memory_errors: int
    free_bytes: int
    cores: int
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a host.

    Args:
        host: The host at fault; "" where it is not one host's.
        what: For the user.
        fatal: Whether training must not begin.
    """

    host: str
    what: str
    fatal: bool


def by_host(reports: Iterable[HostReport]) -> list[HostReport]:
    """One report per host from one per rank, in the order of their lowest ranks."""
    merged: dict[str, HostReport] = {}
    for new in sorted(reports, key=lambda report: report.ranks):
        old = merged.get(new.host)
        merged[new.host] = new if old is None else replace(
            old,
            ranks=old.ranks + new.ranks,
            devices=old.devices + new.devices,
            device_ids=old.device_ids + new.device_ids,
            device_free=min(old.device_free, new.device_free),
            memory_errors=max(old.memory_errors, new.memory_errors),
            free_bytes=min(old.free_bytes, new.free_bytes),
            cores=min(old.cores, new.cores),
        )  # fmt: skip
    return list(merged.values())


def compare(
    reports: Sequence[HostReport],
    *,
    folder: Path,
    planned: Sequence[str] = (),
    cpus_per_task: int | None = None,
    needed_bytes: int = 0,
) -> list[Finding]:
    """What is wrong with hosts by their reports: against the plan, against the request, and against each other.

    Args:
        reports: One per host, in the order of their ranks.
        folder: The run folder.
        planned: The host of each rank; empty, or "" for each, where there is no plan.
        cpus_per_task: Cores that were asked for, for each rank.
        needed_bytes: Free disk that the run needs in its folder.
    """
    findings = off_plan(reports, planned)
    kinds = _kinds if any(planned) else _counted  # how many a host has is the plan's
    findings += unlike(reports, "devices", lambda report: kinds(report.devices), "ask for hosts of one kind")
    findings += unlike(reports, "versions", lambda report: ", ".join(report.versions), "use one environment for all")
    for report in reports:
        findings += [Finding(report.host, what, fatal) for what, fatal in _wrong_alone(report, cpus_per_task)]
    least = min(reports, key=lambda report: report.free_bytes)
    if least.free_bytes < needed_bytes:
        what = (
            f"free disk ({format_bytes(least.free_bytes)}) for {folder} on host {least.host} must be at least what "
            f"the run needs ({format_bytes(needed_bytes)}); free some, or keep fewer checkpoints"
        )
        findings.append(Finding("", what, True))
    return findings


def _wrong_alone(report: HostReport, cpus_per_task: int | None) -> Iterator[tuple[str, bool]]:
    """Text, and whether it is fatal, of what is wrong with a host whatever the others are."""
    host = report.host
    for device, count in Counter(filter(None, report.device_ids)).items():
        if count > 1:
            ranks = ", ".join(str(r) for r, own in zip(report.ranks, report.device_ids, strict=True) if own == device)
            yield f"GPU ({device}) on host {host} must be one rank's (ranks {ranks}); ask for one GPU per task", True
    if cpus_per_task is not None and report.cores < cpus_per_task:
        yield (
            f"cores of a rank ({report.cores}) on host {host} must be at least cpus_per_task ({cpus_per_task}); "
            f"give --cpus-per-task={cpus_per_task} to srun itself",
            False,
        )
    if report.device_free < LEAST_FREE_DEVICE_SHARE:
        yield (
            f"free GPU memory ({report.device_free:.0%}) on host {host} must be at least "
            f"{LEAST_FREE_DEVICE_SHARE:.0%}; end the other process that uses it, or leave the host out",
            False,
        )
    if report.memory_errors:
        yield (
            f"uncorrectable GPU memory errors ({report.memory_errors}) on host {host} must be 0; leave the host out, "
            "and tell its administrators",
            False,
        )


def off_plan(reports: Sequence[HostReport], planned: Sequence[str]) -> list[Finding]:
    """Fatal where a host has more or fewer ranks than planned; a warning where only their order is another."""
    if not any(planned):
        return []
    found = host_of_each_rank(reports, len(planned))
    names = {host: next((name for name in planned if same_host(name, host)), host) for host in dict.fromkeys(found)}
    wrong = [rank for rank, host in enumerate(planned) if names[found[rank]] != host]
    if not wrong:
        return []
    texts = [f"rank {rank} is on {found[rank]}, not {planned[rank]}" for rank in wrong[:MOST_NAMED]]
    more = f", and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
    what = (
        f"hosts of the ranks ({', '.join(texts)}{more}) must be as planned in MODLIB_HOSTS; start the planned number "
        "of tasks on each host, in its order (srun --distribution=block)"
    )
    return [Finding("", what, Counter(names[host] for host in found) != Counter(planned))]


def unlike(
    reports: Sequence[HostReport], name: str, of: Callable[[HostReport], str], remedy_text: str
) -> list[Finding]:
    """A finding for each host that differs from what most have. Where no value is most hosts', no host is at fault."""
    usual, count = Counter(of(report) for report in reports).most_common(1)[0]
    return [
        Finding(
            report.host if 2 * count > len(reports) else "",
            f"{name} of host {report.host} ({of(report)}) must be those of the other hosts ({usual}); "
            f"{remedy_text}, or leave it out",
            True,
        )
        for report in reports
        if of(report) != usual
    ]


def _counted(devices: Sequence[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(Counter(devices).items()))


def _kinds(devices: Sequence[str]) -> str:
    return ", ".join(sorted(set(devices)))


def host_of_each_rank(reports: Sequence[HostReport], size: int) -> list[str]:
    """The host's name by rank."""
    by_rank = {rank: report.host for report in reports for rank in report.ranks}
    return [by_rank[rank] for rank in range(size)]


def unshared(folder: Path, blind: Iterable[str], writer: str) -> list[Finding]:
    """A finding for each host that does not see what `writer` wrote into the run folder."""
    return [
        Finding(
            host,
            f"run folder ({folder}) on host {host} must be the one that host {writer} sees; put it on a file system "
            "that all hosts share",
            True,
        )
        for host in dict.fromkeys(blind)
    ]


def skewed(clocks: Mapping[str, float]) -> list[Finding]:
    """A finding for each host whose clock, all read at one moment, is far from the others' median."""
    seconds = list(clocks.values())  # of two hosts, the first is taken to be right
    right = statistics.median(seconds) if len(seconds) > 2 else seconds[0]
    return [
        Finding(
            host,
            f"clock of host {host} (off by {format_seconds(clock - right)}) must be within "
            f"{format_seconds(MAX_SKEW_S)} of the other hosts'; set it, dates in its logs are wrong",
            False,
        )
        for host, clock in clocks.items()
        if abs(clock - right) > MAX_SKEW_S
    ]


def slow(times: Mapping[tuple[int, int], float], hosts: Sequence[str]) -> list[Finding]:
    """A finding for each host whose links are slow, from seconds by (source rank, target rank)."""
    return [
        Finding(
            found.host,
            f"time of a message on host {found.host} ({1000 * found.seconds:.3g} ms) must be below {SLOW_FACTOR:g} "
            f"times the hosts' median ({1000 * found.median:.3g} ms); look at its network and load, or leave it out",
            False,
        )
        for found in slow_hosts(times, hosts)
    ]


def unwritable(folder: Path, host: str, problem: str) -> Finding:
    """The finding that the first host cannot write into the run folder."""
    return Finding(host, f"run folder ({folder}) must be writable on host {host} ({problem}); choose another", True)


def gpu_memory_errors() -> int:
    """Uncorrectable memory errors of this host's GPUs since their last reset; 0 where nvidia-smi does not say."""
    if shutil.which("nvidia-smi") is None:
        return 0
    query = ["nvidia-smi", "--query-gpu=ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_LIMIT_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(int(line) for line in answer.split("\n") if line.strip().isdecimal())
