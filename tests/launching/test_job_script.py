"""The script of a job, for submitit and for sbatch by hand; bash reads every one of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from modlib.launching.job_script import JobScript
from modlib.launching.slurm import Slurm
from modlib.launching.submission import submitit_text
from modlib.runtime.errors import ConfigError

FOLDER = Path("/runs/my run/submitit")


def script(slurm: Slurm, *runs: Path, array_file: Path | None = None) -> JobScript:
    paths = list(runs) or [Path("/runs/my run")]
    return JobScript(
        slurm, "a-run", paths, [Path("/code/project")], Path("/code"), Path("/home/me"), FOLDER, array_file
    )


def require_bash_reads(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


SETTINGS = [
    Slurm(),
    Slurm(nodes=16, gpus_per_node=4, partition="gpu", cpus_per_task=8, setup=["module load cuda"], python="/opt/py"),
    Slurm(gpus_per_node=1, container="/images/modlib.sif", environment={"A": 'it\'s "quoted" $HOME'}),
]


@pytest.mark.parametrize("slurm", SETTINGS)
def test_both_forms_hold_the_same_life_around_srun(slurm: Slurm) -> None:
    made = script(slurm)
    for text in (made.text("train.seed = 0\n"), submitit_text(made)):
        require_bash_reads(text)
        lines = text.splitlines()
        srun = next(index for index, line in enumerate(lines) if line.startswith("srun "))
        for line in (*made.before(), *made.after()):
            assert line in lines
        assert lines.index(made.before()[-1]) < srun < lines.index("status=$?")
        assert next(line for line in lines[srun + 1 :] if line and not line.startswith("#")) == "status=$?"
        assert text.count("#SBATCH --nodes=") == 1
        assert "wckey" not in text


def test_values_survive_the_shell() -> None:
    made = script(SETTINGS[2])
    line = next(line for line in made.before() if line.startswith("export A="))
    done = subprocess.run(["bash", "-c", f'{line}; printf %s "$A"'], capture_output=True, text=True, timeout=20)
    assert done.stdout == 'it\'s "quoted" $HOME'


def test_an_exit_status_of_srun_is_what_the_end_sees(tmp_path: Path) -> None:
    made = script(Slurm(python="echo"), tmp_path)
    after = "\n".join(made.after())
    done = subprocess.run(
        ["bash", "-c", f"export MODLIB_RUN=/r; (exit 7)\n\n# teardown\n{after}"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout.split() == ["-m", "modlib.cli.processes.slurm_job", "end", "/r", "7"]


def test_each_element_of_an_array_has_its_own_run(tmp_path: Path) -> None:
    listed = tmp_path / "runs.txt"
    runs = [tmp_path / "runs" / name for name in ("a", "b b", "c")]
    listed.write_text("".join(f"{run}\n" for run in runs))
    first = script(Slurm(), *runs, array_file=listed).before()[0]
    for index, run in enumerate(runs):
        done = subprocess.run(
            ["bash", "-c", f'SLURM_ARRAY_TASK_ID={index}; {first}; printf %s "$MODLIB_RUN"'],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.stdout == str(run)


def test_ranks_run_in_the_container_and_the_rest_outside() -> None:
    made = script(Slurm(container="/images/modlib.sif", gpus_per_node=4, python=None))
    assert made.rank_python.startswith(
        "apptainer exec --nv --bind /code/project,/home/me,/runs /images/modlib.sif python3"
    )
    assert "apptainer" not in "\n".join([*made.before(), *made.after()])
    own = script(Slurm(container="podman-hpc run --rm image"))
    assert own.rank_python == "podman-hpc run --rm image python3"


def test_no_environment_of_the_submitting_shell_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    monkeypatch.setenv("RANK", "5")
    made = script(Slurm())
    for text in (made.text(""), submitit_text(made)):
        assert "canary" not in text
        assert "RANK" not in text


def test_a_script_that_would_hold_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_PAT", "canary-value")
    made = script(Slurm(), Path("/runs/canary-value/run"))
    for write in (lambda: made.text("train.seed = 0\n"), lambda: submitit_text(made)):
        with pytest.raises(ConfigError) as caught:
            write()
        assert str(caught.value) == (
            "the job's script must not hold the value of the environment variable GITHUB_PAT, which is a secret; it "
            "would be in the line that begins 'export MODLIB_RUN=/runs/***/run': take it out of paths and settings, "
            "and set it in the shell that submits: SLURM passes the environment on"
        )
    with pytest.raises(ConfigError):
        script(Slurm()).text("note = 'canary-value'\n")
