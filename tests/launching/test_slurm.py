"""What is asked of SLURM, and what is refused before anything is queued."""

from __future__ import annotations

import pytest

from modlib.config import load
from modlib.launching.slurm import Slurm, minutes_of
from modlib.runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("1:30", 2),
        ("0:59", 1),
        ("24:00:00", 1440),
        ("0:02:01", 3),
        ("1-0", 1440),
        ("2-12", 3600),
        ("1-06:30", 1830),
        ("7-00:00:00", 10080),
    ],
)
def test_time_limits_in_sbatchs_forms(time: str, minutes: int) -> None:
    assert minutes_of(time) == (minutes, "")


@pytest.mark.parametrize("time", ["", "soon", "1h", "-5", "0", "0:00:00", "1:2:3:4", "1-"])
def test_what_is_no_time_limit(time: str) -> None:
    assert f"Slurm.time ({time!r}) must be a time limit as sbatch takes it" in minutes_of(time)[1]


def test_one_rank_per_gpu() -> None:
    slurm = Slurm(nodes=3, gpus_per_node=4)
    assert slurm.world_size == 12
    assert slurm.options("run")["ntasks-per-node"] == 4
    assert slurm.options("run")["gpus-per-node"] == 4


def test_gpus_are_asked_for_as_the_site_wants() -> None:
    assert Slurm(gpus_per_node=4, gpu_option="gres").options("run")["gres"] == "gpu:4"
    silent = Slurm(gpus_per_node=4, gpu_option="none", extra={"gres": "gpu:a100:4"}).options("run")
    assert silent["gres"] == "gpu:a100:4"
    assert "gpus-per-node" not in silent


def test_only_what_is_said_is_asked_for() -> None:
    assert set(Slurm().options("run")) == {
        "job-name", "nodes", "ntasks-per-node", "time", "open-mode", "requeue", "signal",
    }  # fmt: skip
    said = Slurm(
        partition="gpu", account="a1", qos="high", constraint="ib", mem_gb=64, exclude="n1", reservation="r",
        cpus_per_task=8, requeue=False, signal_lead_s=60, extra={"mail_type": "END", "--hint": "nomultithread"},
    ).options("run")  # fmt: skip
    assert said["mem"] == "64G"
    assert said["mail-type"] == "END"
    assert said["hint"] == "nomultithread"
    assert said["no-requeue"] is True
    assert said["signal"] == "USR2@60"


def test_srun_gets_its_cores_literally() -> None:
    assert "--cpus-per-task=8" in Slurm(cpus_per_task=8).srun()
    assert "--kill-on-bad-exit=1" in Slurm().srun()
    assert {"--cpu-bind=cores", "--no-kill"} <= set(Slurm(srun_options={"cpu_bind": "cores", "no_kill": True}).srun())


def test_threads_follow_the_cores_and_the_users_variables_win() -> None:
    assert Slurm(cpus_per_task=8).variables()["OMP_NUM_THREADS"] == "8"
    own = Slurm(cpus_per_task=8, environment={"OMP_NUM_THREADS": "2", "NCCL_SOCKET_IFNAME": "ib0"}).variables()
    assert own["OMP_NUM_THREADS"] == "2"
    assert own["NCCL_SOCKET_IFNAME"] == "ib0"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"nodes": 0}, "Slurm.nodes (0) must be at least 1; set it to 1 or more"),
        ({"cpus_per_task": 0}, "Slurm.cpus_per_task (0) must be at least 1"),
        ({"signal_lead_s": 5}, "Slurm.signal_lead_s (5) must be at least 20"),
        (
            {"gpus_per_node": 4, "tasks_per_node": 2},
            "Slurm.tasks_per_node (2) must equal Slurm.gpus_per_node (4), since each rank computes on one GPU",
        ),
        (
            {"time": "0:01:00", "signal_lead_s": 50},
            "Slurm.signal_lead_s (50) must be at most half of Slurm.time (0:01:00), or the job does little but save; "
            "set it to 30 or less, or ask for more time",
        ),
        (
            {"environment": {"WANDB_API_KEY": "x"}},
            "Slurm.environment ({'WANDB_API_KEY': ...}) must not hold a secret, since it is written into",
        ),
        ({"setup": ["export WANDB_API_KEY=0123456789abcdef"]}, "Slurm.setup (...) must not hold a secret, since"),
    ],
)
def test_what_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Slurm(**settings)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_ordinary_names_are_no_secrets() -> None:
    Slurm(environment={"TOKENIZERS_PARALLELISM": "true"}, setup=["export MODEL_KEY_COUNT=3"])
    Slurm(setup=["export HF_TOKEN=$(cat ~/.token)", 'export WANDB_API_KEY="$OTHER"'])  # the shell fills it in


def test_the_value_of_a_secret_variable_is_refused_with_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "canary-of-a-variable")
    for settings in ({"environment": {"X": "canary-of-a-variable"}}, {"setup": ["login canary-of-a-variable"]}):
        with pytest.raises(ConfigError) as caught:
            Slurm(**settings)  # type: ignore[arg-type]
        assert "must not hold the value of the environment variable DATABASE_URL, which is a secret" in str(
            caught.value
        )
        assert "canary" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Slurm(nodes=0, time="soon", mem_gb=0)
    assert len(caught.value.problems) == 3


def test_the_machine_is_outside_the_science_hash() -> None:
    here = load(["debug/tiny.gin"])
    there = load(["debug/tiny.gin", "testcluster.gin"], ["Slurm.nodes=4", "Slurm.environment={'NCCL_DEBUG': 'INFO'}"])
    assert here.hash == there.hash
    assert there.resolved["launch.executor"] == "slurm"
