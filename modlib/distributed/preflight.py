"""Before training: which host is missing, wrong, or slow.

Every rank reports what it has, all compare, and all come to the same findings. What only costs time is a warning; what
would spoil the run is fatal. A rank that dies or hangs meanwhile is named with its host.
"""

from __future__ import annotations

import contextlib
import json
import platform
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from modlib.distributed.hosts import (
    MOST_NAMED,
    Finding,
    HostReport,
    by_host,
    compare,
    gpu_memory_errors,
    host_of_each_rank,
    skewed,
    slow,
    unshared,
    unwritable,
)
from modlib.distributed.links import check_sum, time_links
from modlib.distributed.meeting import planned_hosts, remedy, this_host
from modlib.distributed.process_group import World
from modlib.runtime.errors import ClusterError
from modlib.runtime.hardware import disk_free_bytes, num_cores
from modlib.runtime.json_files import parse_json
from modlib.version import VERSION

LIMIT_S = 10.0  # for one message, and for what a rank looks up by itself
SUM_LIMIT_S = 60.0  # the first NCCL operation connects all GPUs
SHARED_WAIT_S = 2.0  # for another host's new file to be seen


def preflight(
    world: World,
    *,
    folder: Path,
    cpus_per_task: int | None = None,
    needed_bytes: int = 0,
    host: str | None = None,
    limit_s: float = LIMIT_S,
) -> list[Finding]:
    """Look at all hosts before training begins; the same findings on every rank. All ranks call it together.

    Args:
        world: This rank's place.
        folder: The run folder, which all hosts must share.
        cpus_per_task: Cores that were asked for, for each rank.
        needed_bytes: Free disk that the run needs in its folder.
        host: This host's name. None: the scheduler's name for it, or the system's.
        limit_s: How long one message, and what each rank looks up by itself, may take.

    Raises:
        HangError: Rank 0 stopped answering.
        ClusterError: Another rank did, or a message between ranks failed.
    """
    report = _report(world, folder, host or this_host())
    token, problem = _write_token(folder) if world.rank == 0 else (None, "")
    try:
        facts = _gather(world, "report", {"report": asdict(report), "token": token, "problem": problem}, limit_s)
        clock = time.time()  # what was gathered reaches all ranks at one moment
        token, problem = facts[0]["token"], facts[0]["problem"]
        own: dict[str, Any] = {"clock": clock, "sees": token is None or _sees(folder, token)}
        patience_s = SUM_LIMIT_S + 2 * limit_s
        try:
            own |= _exchange(world, limit_s)
        except RuntimeError as error:  # this rank's error, or that of one whose end it saw
            own["error"], patience_s = str(error).strip().partition("\n")[0], limit_s + SHARED_WAIT_S
        results = _gather(world, "exchange", own, patience_s)
    finally:
        if world.rank == 0 and token:
            with contextlib.suppress(OSError):
                (folder / token).unlink()
    _raise_on_errors(world, results)
    reports = by_host([HostReport(**_tuples(facts[rank]["report"])) for rank in range(world.size)])
    hosts = host_of_each_rank(reports, world.size)
    planned = planned_hosts(world.size) if world.size > 1 else ()
    findings = compare(reports, folder=folder, planned=planned, cpus_per_task=cpus_per_task, needed_bytes=needed_bytes)
    if problem:
        findings.append(unwritable(folder, hosts[0], problem))
    findings += unshared(folder, [hosts[rank] for rank in range(world.size) if not results[rank]["sees"]], hosts[0])
    findings += skewed({report.host: results[report.ranks[0]]["clock"] for report in reports})
    findings += slow({(int(a), b): s for b, result in results.items() for a, s in result["links"].items()}, hosts)
    return findings


def raise_on_fatal(findings: Iterable[Finding]) -> None:
    """Refuse to train on what was found.

    Raises:
        ClusterError: With the text of every fatal finding, and their hosts.
    """
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        hosts = dict.fromkeys(finding.host for finding in fatal if finding.host)
        raise ClusterError("\n".join(finding.what for finding in fatal), tuple(hosts))


def _gather(world: World, phase: str, own: dict, limit_s: float) -> dict[int, dict]:
    if world.meeting is None:
        return {0: parse_json(json.dumps(own), dict[str, Any])}
    found = world.meeting.gather(f"preflight/{phase}", json.dumps(own), limit_s)
    missing = [rank for rank in range(world.size) if rank not in found]
    if missing:
        hosts = world.meeting.hosts_of(missing)
        raise ClusterError(
            f"{world.meeting.who(missing)} did not finish the preflight's {phase} within {limit_s:g} s; "
            f"{remedy(hosts)}",
            hosts,
        )
    return {rank: parse_json(text, dict[str, Any]) for rank, text in found.items()}


def _raise_on_errors(world: World, results: Mapping[int, dict]) -> None:
    failed = [rank for rank, result in results.items() if "error" in result]
    if failed and world.meeting is not None:
        texts = [f"{world.meeting.who([rank])}: {results[rank]['error']}" for rank in failed[:MOST_NAMED]]
        raise ClusterError(f"the preflight's exchange failed on {'; on '.join(texts)}; {remedy(())}")


def _report(world: World, folder: Path, host: str) -> HostReport:
    device_id, device_free, memory_errors = "", 1.0, 0
    device = "cpu"
    if world.device.type == "cuda":
        properties = torch.cuda.get_device_properties(world.device)
        device, device_id = properties.name, str(getattr(properties, "uuid", ""))
        free, total = torch.cuda.mem_get_info(world.device)
        device_free = free / total
        memory_errors = gpu_memory_errors() if world.local_rank == 0 else 0
    try:
        free_bytes = disk_free_bytes(folder)
    except OSError:  # such as a stale handle: then the shared file is not seen either
        free_bytes = 0
    versions = (f"python {platform.python_version()}", f"torch {torch.__version__}", f"modlib {VERSION}")
    return HostReport(
        host, (world.rank,), (device,), (device_id,), device_free, memory_errors, free_bytes, num_cores(), versions
    )


def _write_token(folder: Path) -> tuple[str | None, str]:
    """Write a new file into the run folder; its name, and else the system's reason."""
    token = f".preflight-{secrets.token_hex(8)}"
    try:
        (folder / token).write_text(token)
    except OSError as error:
        return None, error.strerror or str(error)
    return token, ""


def _sees(folder: Path, token: str) -> bool:
    deadline = time.monotonic() + SHARED_WAIT_S
    while True:
        with contextlib.suppress(OSError):
            if (folder / token).read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _exchange(world: World, limit_s: float) -> dict:
    """Time messages between neighbours, then use the training group once."""
    if world.control_group is None:
        return {"links": {}}
    links = time_links(world.control_group, world.rank, world.size, limit_s)
    check_sum(world.device, world.rank, world.size, max(limit_s, SUM_LIMIT_S))
    return {"links": links}


def _tuples(report: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in report.items()}
