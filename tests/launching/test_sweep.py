"""A sweep from its flags to sweep.json, and what may change when it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from modlib.config import Config, load
from modlib.launching.identity import with_planned_batch
from modlib.launching.prepare import prepare
from modlib.launching.sweep import (
    Sweep,
    pending_points,
    plan_sweep,
    point_command,
    read_sweep,
    sweep_command,
    without_checkpoints,
)
from modlib.launching.sweep_points import grouped
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder

TINY = "debug/tiny.gin"


def planned(folder: Path, *flags: str, params: tuple[str, ...] = (), **options: Any) -> Sweep:
    return plan_sweep(flags, [TINY], list(params), runs_dir=folder, ranks_of=ranks_of, **options)


def ranks_of(config: Config) -> int:
    return config.resolved["Local.num_processes"] or 1


def begin(sweep: Sweep, *names: str, status: str = "finished") -> None:
    """Leave what a run leaves that began."""
    for name in names:
        run = prepare(sweep.configs[name], runs_dir=sweep.folder, name=name)
        run.update(status=status)


def problem(folder: Path, *flags: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        planned(folder, *flags, **options)
    return str(caught.value)


def test_every_point_is_a_checked_run_of_its_own(tmp_path: Path) -> None:
    sweep = planned(tmp_path / "runs", "LR=[1e-4,3e-4]", "SEED=[0,1]", params=("NUM_STEPS=5",))
    assert re.fullmatch(r"tiny-sweep-[0-9a-f]{8}", sweep.name)
    assert sweep.folder == tmp_path / "runs" / sweep.name
    assert [point.name for point in sweep.points] == [
        "LR-1e-4_SEED-0", "LR-1e-4_SEED-1", "LR-3e-4_SEED-0", "LR-3e-4_SEED-1",
    ]  # fmt: skip
    assert [point.index for point in sweep.points] == [0, 1, 2, 3]
    last = sweep.points[-1]
    assert last.params == ("LR=3e-4", "SEED=1")
    assert last.values == {"LR": "3e-4", "SEED": "1"}
    assert last.run.path == sweep.folder / "LR-3e-4_SEED-1"
    alone = with_planned_batch(load([TINY], ["NUM_STEPS=5", "LR=3e-4", "SEED=1"]), 1)
    assert last.config_hash == alone.identity == sweep.configs[last.name].identity
    assert len({point.config_hash for point in sweep.points}) == 4
    assert list(tmp_path.iterdir()) == []


def test_values_know_which_axis_set_them(tmp_path: Path) -> None:
    axes = tmp_path / "axes.gin"
    axes.write_text("\nSEED = [3]\n")
    sweep = planned(tmp_path, "AdamW.lr=[1e-4]", str(axes))
    provenance = sweep.configs[sweep.points[0].name].provenance
    assert provenance["AdamW.lr"][-1] == "--sweep #1"
    assert provenance["train.seed"][-1].endswith(f"{axes}:2")


def test_the_default_name_follows_experiment_axes_and_seed_but_not_the_number_of_samples(tmp_path: Path) -> None:
    def name(flag: str = "LR=uniform(0.1,1.0)", params: tuple[str, ...] = (), **options: Any) -> str:
        return planned(tmp_path, flag, params=params, **{"num_samples": 2, **options}).name

    assert name() == name(num_samples=3) == name(params=("LR=7e-1",))  # LR is drawn anyway
    assert len({name(), name("LR=uniform(0.1,2.0)"), name(params=("NUM_STEPS=7",)), name(seed=1)}) == 4


def test_the_errors_of_all_points_are_told_together_each_once(tmp_path: Path) -> None:
    text = problem(tmp_path, "AdamW.lrr=[1,2]", "SEED=[0,'x']", "LR=[1e-3,'y']")
    lines = text.splitlines()
    assert lines[0] == (
        "--sweep #1: AdamW has no parameter 'lrr'. Did you mean 'lr' (float | Tensor, default 0.001)? (at all 8 points)"
    )
    assert any(
        "train.seed = 'x' (from %SEED, --sweep #2) is str, expected int (at 4 points: AdamW.lrr=1 SEED='x' LR=1e-3, "
        "AdamW.lrr=1 SEED='x' LR='y', AdamW.lrr=2 SEED='x' LR=1e-3, ...)" in line
        for line in lines
    )
    assert any("AdamW.lr = 'y' (from %LR, --sweep #3) is str" in line and "(at 4 points: " in line for line in lines)
    assert sum("'lrr'" in line for line in lines) == 1


def test_grouped_names_the_points_of_each_problem() -> None:
    wrong = [("a", ["one\nwhy"]), ("b", ["one\nwhy", "two", "two"]), ("c", ["three"])]
    assert grouped(wrong, 3) == ["one (at 2 points: a, b)\nwhy", "two (at b)", "three (at c)"]
    assert grouped([("a", ["one"])], 1) == ["one (at a)"]


def test_points_that_mean_the_same_run_are_one(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "LR=[0.1, 1 / 10, 0.2]")
    assert [point.params for point in sweep.points] == [("LR=0.1",), ("LR=0.2",)]
    assert sweep.notes == ("LR=1 / 10 means the same run as LR=0.1: one point",)


def test_settings_that_change_no_number_can_be_swept_and_that_is_said(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "LOG_EVERY=[1,2]")
    assert len(sweep.points) == 2
    assert sweep.points[0].config_hash == sweep.points[1].config_hash
    assert sweep.notes == ("LOG_EVERY=2 and LOG_EVERY=1 differ in settings that change no number",)


def test_the_number_of_processes_is_another_run_unless_the_global_batch_is_given(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "Local.num_processes=[1,2]")
    assert [sweep.configs[point.name].resolved["train.global_batch_size"] for point in sweep.points] == [4, 8]
    assert sweep.points[0].config_hash != sweep.points[1].config_hash
    assert sweep.notes == ()
    sweep = planned(tmp_path, "Local.num_processes=[1,2]", params=("train.global_batch_size=8",))
    assert sweep.points[0].config_hash == sweep.points[1].config_hash
    assert sweep.notes == (
        "Local.num_processes=2 and Local.num_processes=1 train on the same batches; rounding, and dropout where there "
        "is any, may differ",
    )


def test_sweep_json_says_it_all(tmp_path: Path) -> None:
    sweep = planned(
        tmp_path, "LR=uniform(0.1,0.2)", "SEED=[0,1]", params=("NUM_STEPS=5",), num_samples=2, seed=4, name="s"
    )
    sweep.write()
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert content["format"] == 1
    assert content["gin_files"] == [TINY]
    assert content["axes"] == ["LR=uniform(0.1, 0.2)", "SEED=[0, 1]"]
    assert len(content["points"]) == 4
    assert content["points"][0]["config_hash"] == sweep.points[0].config_hash
    again = read_sweep(tmp_path / "s")
    assert again == sweep
    assert again.points[3].run.path == tmp_path / "s" / sweep.points[3].name
    assert sweep_command(again) == [
        "python", "launch.py", "--gin_file", TINY, "--gin_param", "NUM_STEPS=5", "--sweep", "LR=uniform(0.1, 0.2)",
        "--sweep", "SEED=[0, 1]", "--sweep_samples", "2", "--sweep_seed", "4", "--name", "s",
        "--runs_dir", str(tmp_path),
    ]  # fmt: skip


def test_pending_points_are_those_that_are_not_finished(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "SEED=[0,1,2,3]", name="s")
    sweep.write()
    begin(sweep, "SEED-0")
    begin(sweep, "SEED-1", status="failed")
    begin(sweep, "SEED-3", status="stopped")
    assert [point.name for point in pending_points(sweep)] == ["SEED-1", "SEED-2", "SEED-3"]
    assert [point.name for point in pending_points(read_sweep(tmp_path / "s"))] == ["SEED-1", "SEED-2", "SEED-3"]


def test_finished_points_without_checkpoints_are_known(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "SEED=[0,1,2]", name="s")
    begin(sweep, "SEED-0", "SEED-1")
    begin(sweep, "SEED-2", status="running")
    (sweep.points[0].run.checkpoints_path / "step-00000040").mkdir()
    assert without_checkpoints(sweep) == ["SEED-1"]


def test_a_point_knows_its_sweep(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "SEED=[0]", name="s")
    sweep.write()
    begin(sweep, "SEED-0")
    assert RunFolder(tmp_path / "s" / "SEED-0").read()["sweep"] == "s"
    run = prepare(load([TINY]), runs_dir=tmp_path, name="alone")
    assert "sweep" not in run.read()


def test_a_points_own_config_is_the_same_run_and_keeps_the_origins(tmp_path: Path) -> None:
    sweep = planned(tmp_path, "AdamW.lr=[1e-4]", name="s")
    sweep.write()
    (point,) = sweep.points
    sweep.configs[point.name].to_run_folder(point.run.path)
    words = point_command(point)
    assert words == ["--gin_file", str(point.run.config_path), "--name", point.name, "--runs_dir", str(sweep.folder)]
    config = load([words[1]])
    assert config.identity == point.config_hash
    prepare(config, runs_dir=sweep.folder, name=point.name)
    provenance = json.loads(point.run.provenance_path.read_text())
    assert provenance["parameters"]["AdamW.lr"]["origins"][-1] == "--sweep #1"


def test_new_values_are_added_and_points_keep_their_names(tmp_path: Path) -> None:
    before = planned(tmp_path, "LR=[1e-4,3e-4]", name="s")
    before.write()
    begin(before, "LR-1e-4")
    after = planned(tmp_path, "LR=[1e-5,0.0001,3e-4,1e-3]", name="s")
    assert [point.name for point in after.points] == ["LR-1e-5", "LR-1e-4", "LR-3e-4", "LR-1e-3"]
    assert after.notes == ("new in the sweep: 2 points: LR-1e-5, LR-1e-3",)
    assert [point.name for point in pending_points(after)] == ["LR-1e-5", "LR-3e-4", "LR-1e-3"]


def test_more_samples_continue_the_sweep_under_its_default_name(tmp_path: Path) -> None:
    before = planned(tmp_path, "LR=loguniform(1e-4,1e-2)", num_samples=2)
    before.write()
    begin(before, before.points[0].name)
    after = planned(tmp_path, "LR=loguniform(1e-4,1e-2)", num_samples=4)
    assert after.folder == before.folder
    assert after.points[:2] == before.points
    assert len(pending_points(after)) == 3


def test_a_value_that_was_not_begun_may_go(tmp_path: Path) -> None:
    before = planned(tmp_path, "LR=[1e-4,30.0]", name="s")
    before.write()
    begin(before, "LR-1e-4")
    after = planned(tmp_path, "LR=[1e-4,3e-4]", name="s")
    assert after.notes == ("new in the sweep: LR-3e-4", "not in the sweep any more: LR-30.0")


def test_a_value_that_was_begun_must_stay(tmp_path: Path) -> None:
    before = planned(tmp_path, "LR=[1e-4,3e-4]", name="s")
    before.write()
    begin(before, "LR-1e-4", status="failed")
    assert problem(tmp_path, "LR=[3e-4]", "SEED=[0]", name="s") == (
        f"sweep 's' exists with other points ({tmp_path / 's' / 'sweep.json'}):\n"
        '    was --sweep "LR=[1e-4, 3e-4]"\n'
        '    now --sweep "LR=[3e-4]" --sweep "SEED=[0]"\n'
        "    begun and not in it any more: LR-1e-4\n"
        "    keep their values and add new ones, remove their run folders, or choose another --name"
    )


def test_another_experiment_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    before = planned(tmp_path, "LR=[1e-4,3e-4]", name="s")
    before.write()
    begin(before, "LR-1e-4", "LR-3e-4")
    assert problem(tmp_path, "LR=[1e-4,3e-4]", params=("SEED=7",), name="s") == (
        "sweep 's' exists with a different config (at 2 points: LR-1e-4, LR-3e-4):\n"
        "    train.seed: 0 -> 7  (training/causal_lm.gin:8 -> SEED quickstart.gin:7; "
        "training/causal_lm.gin:8 -> SEED quickstart.gin:7 -> SEED --gin_param #1)\n"
        "    ShuffledSampler.seed: 0 -> 7  (data/packed.gin:9 -> SEED quickstart.gin:7; data/packed.gin:9 -> SEED "
        "quickstart.gin:7 -> SEED --gin_param #1)\n"
        "    start it as a new sweep with another --name, or set these values back to continue this one"
    )


def test_a_sweep_and_a_run_do_not_share_a_folder(tmp_path: Path) -> None:
    prepare(load([TINY]), runs_dir=tmp_path, name="run")
    assert problem(tmp_path, "SEED=[0]", name="run") == (
        f"name (run) must be a sweep's, but {tmp_path / 'run'} is a run; choose another --name"
    )
    planned(tmp_path, "SEED=[0]", name="s").write()
    with pytest.raises(ConfigError) as caught:
        prepare(load([TINY]), runs_dir=tmp_path, name="s")
    assert str(caught.value) == (
        f"name (s) must be a run's, but {tmp_path / 's'} is the folder of a sweep; give its --sweep too, or choose "
        "another --name"
    )
    assert "it is a name, not a path" in problem(tmp_path, "SEED=[0]", name="a/b")


def test_a_folder_that_is_no_sweeps(tmp_path: Path) -> None:
    planned(tmp_path, "SEED=[0]", name="s").write()
    with pytest.raises(RunFolderError) as caught:
        read_sweep(tmp_path)
    assert str(caught.value) == (
        f"sweep ({tmp_path}) must be the folder of a sweep, with a sweep.json in it; there are {tmp_path / 's'}"
    )
    (tmp_path / "s" / "sweep.json").write_text('{"format": 1, "points": [')
    with pytest.raises(RunFolderError, match=r"must have a sweep.json that can be read \(JSONError: "):
        read_sweep(tmp_path / "s")
    (tmp_path / "s" / "sweep.json").write_text('{"format": 2}')
    with pytest.raises(RunFolderError, match=r"format of .* \(2\) must be 1; use the modlib that wrote it"):
        read_sweep(tmp_path / "s")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sweep = planned(tmp_path / "file", "SEED=[0]", name="s")
    with pytest.raises(RunFolderError) as caught:
        sweep.write()
    assert str(caught.value) == (
        f"runs_dir ({tmp_path / 'file'}) must be a folder that can be written: Not a directory; choose another with "
        "--runs_dir"
    )
