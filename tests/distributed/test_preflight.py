"""The preflight with real ranks: what it finds on one machine that plays several hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from modlib.distributed.hosts import Finding
from modlib.distributed.meeting import Meeting
from modlib.distributed.preflight import preflight, raise_on_fatal
from modlib.distributed.process_group import World
from modlib.runtime import faults
from modlib.runtime.errors import ClusterError
from modlib.runtime.hardware import num_cores
from tests import forked
from tests.distributed.test_rendezvous import free_ports
from tests.workers import run_ranks

HOSTS = ("node1", "node1", "node2", "node2")


def joined(store: str, hosts: tuple[str, ...]) -> World:
    """This rank of a pool as `process_group` would describe it, on the host that it plays."""
    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo")
    return World(rank, rank, size, torch.device("cpu"), group, Meeting(dist.FileStore(store, size), rank, hosts))


def found(store: str, hosts: tuple[str, ...], **options: object) -> list[Finding]:
    world = joined(store, hosts)
    return preflight(world, host=hosts[world.rank], **options)  # type: ignore[arg-type]


def test_four_good_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"  # the store is beside it: torch removes that some time after the last rank has left
    folder.mkdir()
    results = run_ranks(4, found, f"{tmp_path}/store", HOSTS, folder=folder, cpus_per_task=1, needed_bytes=1000)
    assert results == [[]] * 4
    assert list(folder.iterdir()) == []  # the file that showed that the folder is shared is gone


def test_all_ranks_find_the_same(tmp_path: Path) -> None:
    cores = num_cores() + 1
    results = run_ranks(
        2, found, f"{tmp_path}/store", ("node1", "node2"), folder=tmp_path, cpus_per_task=cores, needed_bytes=1 << 62
    )
    findings = results[0]
    assert results[1] == findings
    assert [(finding.host, finding.fatal) for finding in findings] == [("node1", False), ("node2", False), ("", True)]
    assert findings[1].what == (
        f"cores of a rank ({cores - 1}) on host node2 must be at least cpus_per_task ({cores}); "
        f"give --cpus-per-task={cores} to srun itself"
    )
    assert "must be at least what the run needs (4 EiB); free some, or keep fewer checkpoints" in findings[2].what


def off_plan(store: str, planned: str, **options: object) -> list[Finding]:
    os.environ["MODLIB_HOSTS"] = planned
    try:
        return found(store, ("node1", "node1", "node2", "node3"), **options)
    finally:
        del os.environ["MODLIB_HOSTS"]


def test_a_rank_on_a_host_that_was_not_planned(tmp_path: Path) -> None:
    results = run_ranks(4, off_plan, f"{tmp_path}/store", "node1,node1,node2,node2", folder=tmp_path)
    assert results == [results[0]] * 4
    with pytest.raises(ClusterError, match=r"hosts of the ranks \(rank 3 is on node3, not node2\) must be as planned"):
        raise_on_fatal(results[0])


def own_folder(store: str, folder: str) -> list[Finding]:
    """Ranks 2 and 3, on node2, have a folder of that path on a disk of their own."""
    here = Path(f"{folder}/{HOSTS[dist.get_rank()]}")
    return found(store, HOSTS, folder=here)


def test_a_run_folder_on_a_disk_of_one_host(tmp_path: Path) -> None:
    for name in set(HOSTS):
        (tmp_path / name).mkdir()
    findings = run_ranks(4, own_folder, f"{tmp_path}/store", str(tmp_path))[0]
    with pytest.raises(ClusterError) as caught:
        raise_on_fatal(findings)
    assert caught.value.hosts == ("node2",)
    assert str(caught.value) == (
        f"run folder ({tmp_path}/node1) on host node2 must be the one that host node1 sees; "
        "put it on a file system that all hosts share"
    )


def test_a_run_folder_that_is_not_there(tmp_path: Path) -> None:
    findings = preflight(World(0, 0, 1, torch.device("cpu")), folder=tmp_path / "none", host="node1")
    text = f"run folder ({tmp_path}/none) must be writable on host node1 (No such file or directory); choose another"
    assert findings == [Finding("node1", text, True)]


def test_alone_only_local_facts_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_HOSTS", "node1,node2")
    world = World(0, 0, 1, torch.device("cpu"))
    assert preflight(world, folder=tmp_path, needed_bytes=1, cpus_per_task=num_cores()) == []
    (finding,) = preflight(world, folder=tmp_path, cpus_per_task=num_cores() + 1)
    assert not finding.fatal
    assert list(tmp_path.iterdir()) == []


def with_a_slow_rank(slow: int, store: str, hosts: tuple[str, ...], **options: object) -> list[Finding]:
    def wait(name: str, detail: str) -> None:
        if int(detail) == slow:
            time.sleep(0.3)

    with faults.installed("preflight.exchange", wait):
        return found(store, hosts, **options)


def test_a_slow_host_is_named_with_both_numbers(tmp_path: Path) -> None:
    hosts = ("node1", "node2", "node3", "node4")
    results = run_ranks(4, with_a_slow_rank, 2, f"{tmp_path}/store", hosts, folder=tmp_path)
    (finding,) = results[0]
    assert results == [[finding]] * 4
    assert (finding.host, finding.fatal) == ("node3", False)
    assert finding.what.startswith("time of a message on host node3 (3")
    assert "must be below 4 times the hosts' median (" in finding.what
    assert "look at its network and load, or leave it out" in finding.what


def with_a_hung_rank(where: str, store: str, folder: Path) -> tuple[str, tuple[str, ...]]:
    """What each rank says when rank 3 stays away, before (`report`) or in (`exchange`) the exchange."""
    world = joined(store, HOSTS)

    def hang(*_: str) -> None:
        deadline = time.monotonic() + 40
        while len(list(folder.glob("over-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)

    try:
        if world.rank == 3 and where == "report":
            hang()
        elif world.rank == 3:
            with faults.installed("preflight.exchange", hang):
                preflight(world, folder=folder, host=HOSTS[3], limit_s=1.0)
        else:
            preflight(world, folder=folder, host=HOSTS[world.rank], limit_s=1.0)
    except ClusterError as error:
        return str(error), error.hosts
    finally:
        (folder / f"over-{world.rank}").touch()
    return "", ()


@pytest.mark.parametrize("where", ["report", "exchange"])
def test_a_hung_rank_is_named_with_host_and_phase(where: str, tmp_path: Path) -> None:
    for text, hosts in run_ranks(4, with_a_hung_rank, where, f"{tmp_path}/store", tmp_path)[:3]:
        assert f"rank 3 (host node2) did not finish the preflight's {where} within" in text
        assert text.endswith("; look for why in the logs of this attempt, or leave node2 out of the next")
        assert hosts == ("node2",)


DYING = """
import os, signal, sys
from pathlib import Path
from modlib.distributed.preflight import preflight
from modlib.distributed.process_group import process_group
from modlib.runtime import faults
from modlib.runtime.errors import ModlibError
def die(name, rank):
    if rank == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    with process_group() as world, faults.installed("preflight.exchange", die):
        preflight(world, folder=Path(sys.argv[2]), limit_s=1.0)
except ModlibError as error:
    print(type(error).__name__, error.hosts, error, flush=True)
    os._exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("victim", "said"),
    [
        (1, "ClusterError ('node1',) rank 1 (host node1) did not finish the preflight's exchange within 3 s; "),
        (0, "HangError ('node0',) rank 0 (host node0), which the other ranks ask, stopped answering"),
    ],
)
def test_a_rank_that_dies_is_named_with_its_host(victim: int, said: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "WORLD_SIZE": "3",
        "MODLIB_RENDEZVOUS": f"tcp://127.0.0.1:{free_ports()}",
        "MODLIB_RENDEZVOUS_TOKEN": str(tmp_path),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        forked.Popen(
            [sys.executable, "-c", DYING, str(victim), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"RANK": str(rank), "SLURMD_NODENAME": f"node{rank}"},
        )
        for rank in range(3)
    ]
    try:
        texts = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[victim].returncode == -signal.SIGKILL
    for rank in {0, 1, 2} - {victim}:
        assert texts[rank].startswith(said), texts
