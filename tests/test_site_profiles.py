"""Every profile in slurm/ is read, checked with a run, and asks SLURM for what its site takes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modlib.cli.start.launch import app
from modlib.cli.start.planning import place_of
from modlib.config import load
from modlib.launching.slurm import Slurm
from modlib.runtime.errors import ConfigError
from tests.launching_command import ROOT

PROFILES = sorted((ROOT / "slurm").glob("*.gin"))
SITES = [path for path in PROFILES if path.stem not in ("default", "testcluster")]
ACCOUNT = "Slurm.account='abc'"

# What each site's script must hold, and how many ranks a node has.
GOLDEN = {
    "alps": (4, "--partition=normal --cpus-per-task=72 --time=1440"),
    "default": (1, "--nodes=1 --ntasks-per-node=1 --time=1440 --requeue"),
    "delta": (4, "--partition=gpuA100x4 --gpus-per-node=4 --cpus-per-task=16 --time=2880"),
    "frontier": (8, "--partition=batch --gpus-per-node=8 --cpus-per-task=7 --time=120 --network=disable_rdzv_get"),
    "jean_zay": (4, "--constraint=h100 --qos=qos_gpu_h100-t3 --gres=gpu:4 --cpus-per-task=24 --hint=nomultithread"),
    "juwels_booster": (4, "--partition=booster --gres=gpu:4 --cpus-per-task=12 --time=1440"),
    "leonardo": (4, "--partition=boost_usr_prod --gres=gpu:4 --cpus-per-task=8 --time=1440"),
    "lumi": (8, "--partition=standard-g --gpus-per-node=8 --time=2880"),
    "marenostrum5": (4, "--partition=acc --qos=acc_ehpc --gres=gpu:4 --cpus-per-task=20 --time=1440"),
    "perlmutter": (4, "--constraint=gpu --qos=regular --gpus-per-node=4 --cpus-per-task=32 --gpu-bind=none"),
    "snellius": (4, "--partition=gpu_h100 --gpus-per-node=4 --cpus-per-task=16 --time=7200"),
    "testcluster": (4, "--partition=main --nodes=2 --ntasks-per-node=2 --mem=3G"),
}


@pytest.fixture(autouse=True)
def _no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM on this machine is another site's, and would refuse."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_profile_asks_for_what_its_site_takes(path: Path) -> None:
    ranks, options = GOLDEN[path.stem]
    params = [] if path not in SITES else ["--gin_param", ACCOUNT]
    flags = ["--gin_file", "quickstart.gin", "--gin_file", path.name, *params, "--dry_run", "--json"]
    result = CliRunner().invoke(app, flags)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["world_size"] == ranks
    script = plan["sbatch"].splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH ")}
    assert set(options.split()) <= asked
    gpu_options = {option for option in asked if option.startswith(("--gres", "--gpus"))}
    assert len(gpu_options) == ("--gres" in options or "--gpus-per-node" in options), gpu_options
    assert plan["slurm"] is None, "not checked by a SLURM"


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_a_site_asks_for_the_account_and_nothing_else(path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(["quickstart.gin", path])
    assert len(raised.value.problems) == 1
    assert "Slurm.account is required and not set" in str(raised.value)


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_a_site_says_where_its_numbers_are_from_and_that_it_was_not_run(path: Path) -> None:
    text = path.read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Never run there." in comment
    assert "From: " in comment or "published job scripts" in comment
    assert "requeue" in comment


def test_a_profile_does_not_rename_a_run() -> None:
    assert len({load(["quickstart.gin", path], [ACCOUNT]).hash for path in PROFILES}) == 1


def test_the_template_names_every_setting_with_its_default() -> None:
    config = load(["quickstart.gin", "default.gin"])
    text = (ROOT / "slurm" / "default.gin").read_text()
    for name, parameter in inspect.signature(Slurm).parameters.items():
        assert f"    {name} = {parameter.default!r}" in text, name
    assert vars(place_of(config, "slurm")) == vars(Slurm())


def test_ranks_of_amd_sites_are_bound_to_the_cores_next_to_their_gpu() -> None:
    place = place_of(load(["quickstart.gin", "lumi.gin"], [ACCOUNT]), None)
    assert isinstance(place, Slurm)
    masks = [int(mask, 16) for mask in place.srun_options["cpu-bind"].removeprefix("mask_cpu:").split(",")]
    assert [mask.bit_count() for mask in masks] == [7] * 8
    assert sum(masks) == 0xFEFE_FEFE_FEFE_FEFE, "no core twice, and none of the eight that the system keeps"


def test_the_page_about_clusters_lists_every_profile() -> None:
    rows = [line for line in (ROOT / "docs" / "clusters.md").read_text().splitlines() if line.startswith("| `")]
    listed = {row.split("`")[1] for row in rows if row.split("`")[1].endswith(".gin")}
    assert listed == {path.name for path in PROFILES} - {"default.gin"}
