"""What is wrong with hosts by their reports, and the texts that say so."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from modlib.distributed.hosts import Finding, HostReport, by_host, compare, gpu_memory_errors, skewed, slow
from modlib.distributed.preflight import raise_on_fatal
from modlib.runtime.errors import ClusterError

VERSIONS = ("python 3.11.7", "torch 2.13.0", "modlib 0.1.0")
FOLDER = Path("/runs/one")


def host(name: str, *ranks: int, device: str = "NVIDIA H100", versions: tuple[str, ...] = VERSIONS) -> HostReport:
    ids = tuple(f"{name}-gpu{rank}" for rank in ranks)
    return HostReport(name, ranks, (device,) * len(ranks), ids, 0.99, 0, 1 << 40, 16, versions)


GOOD = [host("node1", 0, 1), host("node2", 2, 3), host("node3", 4, 5)]


def only(reports: list[HostReport], **request: object) -> Finding:
    (finding,) = compare(reports, folder=FOLDER, **request)  # type: ignore[arg-type]
    return finding


def test_nothing_is_wrong_with_equal_hosts() -> None:
    planned = ["node1", "node1", "node2.cluster", "node2.cluster", "node3", "node3"]
    assert compare(GOOD, folder=FOLDER, planned=planned, cpus_per_task=16, needed_bytes=1 << 40) == []
    assert compare(GOOD, folder=FOLDER, planned=("",) * 6) == []


def test_the_ranks_of_a_host_become_one_report() -> None:
    ranks = [host("node2", 3), replace(host("node2", 2), cores=4, free_bytes=7, device_free=0.5), host("node1", 0)]
    assert by_host(ranks) == [
        host("node1", 0),
        replace(host("node2", 2, 3), cores=4, free_bytes=7, device_free=0.5),
    ]


def test_another_kind_of_device() -> None:
    assert only([GOOD[0], host("node2", 2, 3, device="NVIDIA A100"), GOOD[2]]) == Finding(
        "node2",
        "devices of host node2 (2 x NVIDIA A100) must be those of the other hosts (2 x NVIDIA H100); "
        "ask for hosts of one kind, or leave it out",
        True,
    )


def test_fewer_devices_matter_where_there_is_no_plan() -> None:
    uneven = [GOOD[0], GOOD[1], host("node3", 4)]
    assert only(uneven).what.startswith("devices of host node3 (1 x NVIDIA H100) must be those of the other hosts (2 x")
    assert compare(uneven, folder=FOLDER, planned=["node1", "node1", "node2", "node2", "node3"]) == []


def test_other_versions() -> None:
    old = ("python 3.11.7", "torch 2.12.0", "modlib 0.1.0")
    finding = only([GOOD[0], GOOD[1], host("node3", 4, 5, versions=old)])
    assert (finding.host, finding.fatal) == ("node3", True)
    assert finding.what == (
        "versions of host node3 (python 3.11.7, torch 2.12.0, modlib 0.1.0) must be those of the other hosts "
        "(python 3.11.7, torch 2.13.0, modlib 0.1.0); use one environment for all, or leave it out"
    )


def test_of_two_that_differ_neither_is_at_fault() -> None:
    assert only([GOOD[0], host("node2", 2, 3, device="NVIDIA A100")]).host == ""


def test_the_order_of_hosts_is_a_warning_and_their_ranks_are_not() -> None:
    planned = ["node1", "node2", "node1", "node2"]
    assert only(GOOD[:2], planned=planned) == Finding(
        "",
        "hosts of the ranks (rank 1 is on node1, not node2, rank 2 is on node2, not node1) must be as planned in "
        "MODLIB_HOSTS; start the planned number of tasks on each host, in its order (srun --distribution=block)",
        False,
    )
    assert only(GOOD[:2], planned=["node1", "node1", "node1", "node2"]).fatal
    assert only(GOOD[:2], planned=["node1", "node1", "node4", "node4"]).fatal
    many = [host("node1", *range(9))]
    assert "rank 3 is on node1, not node2, and 5 more)" in only(many, planned=["node2"] * 9).what


def test_a_gpu_that_two_ranks_use() -> None:
    both = replace(GOOD[1], device_ids=("GPU-7", "GPU-7"))
    assert only([GOOD[0], both]) == Finding(
        "node2", "GPU (GPU-7) on host node2 must be one rank's (ranks 2, 3); ask for one GPU per task", True
    )


def test_fewer_cores_than_asked_for() -> None:
    assert only([GOOD[0], replace(GOOD[1], cores=1)], cpus_per_task=8) == Finding(
        "node2",
        "cores of a rank (1) on host node2 must be at least cpus_per_task (8); give --cpus-per-task=8 to srun itself",
        False,
    )


def test_a_gpu_that_another_process_uses() -> None:
    assert only([GOOD[0], replace(GOOD[1], device_free=0.25)]) == Finding(
        "node2",
        "free GPU memory (25%) on host node2 must be at least 80%; end the other process that uses it, "
        "or leave the host out",
        False,
    )


def test_a_gpu_with_memory_errors() -> None:
    assert only([GOOD[0], replace(GOOD[1], memory_errors=3)]) == Finding(
        "node2",
        "uncorrectable GPU memory errors (3) on host node2 must be 0; leave the host out, and tell its administrators",
        False,
    )


def test_too_little_disk() -> None:
    assert only([GOOD[0], replace(GOOD[1], free_bytes=5 << 20)], needed_bytes=1 << 30) == Finding(
        "",
        "free disk (5 MiB) for /runs/one on host node2 must be at least what the run needs (1 GiB); free some, "
        "or keep fewer checkpoints",
        True,
    )


def test_clocks() -> None:
    assert skewed({"node1": 1000.0, "node2": 1059.0, "node3": 990.0}) == []
    assert skewed({"node1": 1000.0}) == []
    assert skewed({"node1": 1000.0, "node2": 1120.0, "node3": 1001.0}) == [
        Finding(
            "node2",
            "clock of host node2 (off by 1m 59s) must be within 1m 00s of the other hosts'; set it, dates in its logs "
            "are wrong",
            False,
        )
    ]
    assert [finding.host for finding in skewed({"node1": 1120.0, "node2": 1000.0})] == ["node2"]


def test_slow_links_as_text() -> None:
    times = {(0, 1): 0.002, (1, 0): 0.002, (1, 2): 0.5, (2, 1): 0.5, (2, 0): 0.5, (0, 2): 0.5}
    assert slow(times, ["node1", "node2", "node3"]) == [
        Finding(
            "node3",
            "time of a message on host node3 (500 ms) must be below 4 times the hosts' median (2 ms); "
            "look at its network and load, or leave it out",
            False,
        )
    ]


def test_only_fatal_findings_stop_with_their_hosts() -> None:
    raise_on_fatal([Finding("node1", "a warning", False)])
    findings = [Finding("node2", "first", True), Finding("node1", "a warning", False), Finding("", "disk", True)]
    findings += [Finding("node3", "second", True), Finding("node2", "third", True)]
    with pytest.raises(ClusterError) as caught:
        raise_on_fatal(findings)
    assert str(caught.value) == "first\ndisk\nsecond\nthird"
    assert caught.value.hosts == ("node2", "node3")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("answer", "errors"), [("0\n2\n1\n", 3), ("[N/A]\n", 0), ("No devices were found\n", 0), ("", 0)]
)
def test_what_nvidia_smi_says_of_memory_errors(
    answer: str, errors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nprintf '%s' '{answer}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout == answer
    assert gpu_memory_errors() == errors


def test_without_nvidia_smi_there_are_no_memory_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_errors() == 0
