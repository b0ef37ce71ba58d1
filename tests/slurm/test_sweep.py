"""A sweep is one array of jobs; what failed is submitted again, alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Submitted, ask, launch_slurm, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
PACED = str(Path(__file__).parent / "paced.gin")
ONE_RANK = ["NUM_STEPS=6", "Slurm.nodes=1", "Slurm.tasks_per_node=1", "Slurm.mem_gb=1", "EVAL_EVERY=3"]


def test_four_points_of_which_one_fails(tmp_path: Path) -> None:
    fail = tmp_path / "fail"
    fail.write_text("0")
    axis = f"SEED=[0,1,2,3];PacedCrossEntropyLoss.fail_file=['','','{fail}','']"
    flags = ("--sweep", axis)
    done = launch_slurm(PACED, ONE_RANK, *flags, runs_dir=tmp_path, name="seeds")
    assert done.returncode == 0, done.stderr
    assert "is queued for 4 of 4 points of seeds" in done.stderr
    points = {name: Submitted(tmp_path / "seeds" / name) for name in names(tmp_path / "seeds")}
    arrays = {point.job_id.partition("_")[0] for point in points.values()}
    assert len(arrays) == 1
    for point in points.values():
        point.wait_for_status("finished", "failed", timeout_s=240)
    states = {name: point.state["status"] for name, point in points.items()}
    (failed,) = [name for name, state in states.items() if state == "failed"]
    assert list(states.values()).count("finished") == 3
    wait_for("an empty queue", lambda: ask("squeue", "-h").strip() == "")

    table = json.loads(modlib("sweep", str(tmp_path / "seeds"), "--json"))
    assert sum(row["state"] == "finished" for row in table["points"]) == 3

    fail.unlink()
    again = launch_slurm(PACED, ONE_RANK, *flags, runs_dir=tmp_path, name="seeds")
    assert again.returncode == 0, again.stderr
    assert "is queued for 1 of 4 points of seeds" in again.stderr
    points[failed].wait_for_status("finished", timeout_s=120)
    assert points[failed].job_id not in arrays
    nothing = launch_slurm(PACED, ONE_RANK, *flags, runs_dir=tmp_path, name="seeds")
    assert "nothing to submit" in nothing.stderr


# SLURM gives one element, the last, the number of the whole array
@pytest.mark.parametrize(("number", "requeues"), [(0, False), (2, True)])
def test_an_array_element_that_must_be_continued_is(tmp_path: Path, number: int, requeues: bool) -> None:
    requeue = "True" if requeues else "False"
    params = [*ONE_RANK, "PacedCrossEntropyLoss.seconds=1.0", "NUM_STEPS=20", f"Slurm.requeue={requeue}"]
    done = launch_slurm(PACED, params, "--sweep", "SEED=[0,1,2]", runs_dir=tmp_path, name="three")
    assert done.returncode == 0, done.stderr
    points = [Submitted(tmp_path / "three" / name) for name in names(tmp_path / "three")]
    points[number].wait_for_step(2)
    ask("scancel", "--signal=USR2", points[number].job_id)
    for point in points:
        point.wait_for_status("finished", timeout_s=240)
    assert [point.attempts for point in points] == [2 if index == number else 1 for index in range(3)]
    assert len(points[number].job_ids) == (1 if requeues else 2)


def names(sweep: Path) -> list[str]:
    return [point["name"] for point in json.loads((sweep / "sweep.json").read_text())["points"]]


def modlib(*words: str) -> str:
    done = subprocess.run(["modlib", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
