"""`modlib sweep`: table, JSON, CSV, the best point, and plots."""

from __future__ import annotations

import builtins
import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from modlib.cli.main import app
from tests.cli.test_main import imported
from tests.cli.test_main import modlib as in_a_process
from tests.launching.sweeps import is_a_drawing, made


def shown(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["sweep", *map(str, words)])


def bowl(values: Mapping[str, str]) -> float:
    """Lowest at a learning rate of 1e-3, a little different with every seed."""
    return 5 + abs(math.log10(float(values["LR"]) / 1e-3)) + 0.01 * int(values.get("SEED", "0"))


def test_the_table_the_best_point_and_what_to_run(tmp_path: Path) -> None:
    made(tmp_path, lambda v: "failed" if v["LR"] == "1.0" else bowl(v), "LR=[1e-4,1e-3,1.0]", "SEED=[1,0]")
    done = shown(tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        ["LR", "SEED", "state", "step", "last", "best", ""],
        ["1e-4", "1", "finished", "30", "6.2600", "6.0100 at 20", ""],
        ["1e-4", "0", "finished", "30", "6.2500", "6.0000 at 20", ""],
        ["1e-3", "1", "finished", "30", "5.2600", "5.0100 at 20", ""],
        ["1e-3", "0", "finished", "30", "5.2500", "5.0000 at 20", "<- best"],
        ["1.0", "1", "failed: non-finite numbers, exit code 5", "", "", "", ""],
        ["1.0", "0", "failed: non-finite numbers, exit code 5", "", "", "", ""],
    ]
    folder = tmp_path / "s"
    assert done.stderr.splitlines() == [
        "6 points: 4 finished, 2 failed",
        "best: LR=1e-3 SEED=0: lowest val/validation/loss 5.0000 at step 20",
        "best mean over seeds: LR=1e-3: 5.0050 (5.0000 to 5.0100, 2 runs)",
        "# the best point alone",
        f"python launch.py --gin_file {folder / 'LR-1e-3_SEED-0' / 'config.gin'} --name "
        f"LR-1e-3_SEED-0 --runs_dir {folder}",
        "# run what is not finished",
        "python launch.py --gin_file debug/tiny.gin --sweep 'LR=[1e-4, 1e-3, 1.0]' --sweep 'SEED=[1, 0]' --name s "
        f"--runs_dir {tmp_path}",
    ]


def test_json(tmp_path: Path) -> None:
    made(
        tmp_path,
        lambda v: "missing" if v["LR"] == "1.0" else bowl(v),
        "LR=[1e-3,1.0];train.loss=[@CLMCrossEntropyLoss,@ChunkedCLMCrossEntropyLoss]",
    )
    content = json.loads(shown(tmp_path / "s", "--json", "--goal", "max").stdout)
    assert {name: content[name] for name in ("sweep", "metric", "goal", "counts", "best")} == {
        "sweep": "s", "metric": "val/validation/loss", "goal": "max", "counts": {"finished": 1, "missing": 1},
        "best": content["points"][0]["name"],
    }  # fmt: skip
    first, second = content["points"]
    assert first["values"] == {"LR": 1e-3, "train.loss": "@CLMCrossEntropyLoss"}
    assert (first["best"], first["best_step"], first["last"], first["state"]) == (6.0, 10, 5.25, "finished")
    assert (second["values"], second["best"], second["state"]) == (
        {"LR": 1.0, "train.loss": "@ChunkedCLMCrossEntropyLoss"},
        None,
        "missing",
    )


def test_csv(tmp_path: Path) -> None:
    made(tmp_path, bowl, "LR=[1e-3];AdamW.betas=[(0.9, 0.95)]")
    rows = list(csv.reader(io.StringIO(shown(tmp_path / "s", "--csv").stdout)))
    assert rows == [
        ["point", "LR", "AdamW.betas", "state", "exit_code", "step", "last", "best", "best_step"],
        ["LR-1e-3_AdamW.betas-0.9-0.95", "1e-3", "(0.9, 0.95)", "finished", "0", "30", "5.25", "5.0", "20"],
    ]
    both = shown(tmp_path / "s", "--csv", "--json")
    assert both.exit_code == 2
    assert "--json and --csv exclude each other" in both.stderr


def test_a_sweep_that_has_not_begun(tmp_path: Path) -> None:
    made(tmp_path, lambda values: "missing", "LR=[1e-3,1e-2]")
    done = shown(tmp_path / "s")
    assert done.exit_code == 0
    assert "no point has val/validation/loss yet" in done.stderr
    plot = shown(tmp_path / "s", "--plot", tmp_path / "a.png")
    assert plot.exit_code == 2
    assert "needs a point that has val/validation/loss; run the sweep first, or choose a --metric" in plot.stderr


def test_what_is_no_sweep_or_no_metric(tmp_path: Path) -> None:
    made(tmp_path, bowl, "LR=[1e-3]")
    done = shown(tmp_path)
    assert done.exit_code == 4
    told = f"SWEEP ({tmp_path}) must be a sweep in runs/ or the path of one; {tmp_path} is a folder without sweep.json"
    assert f"{told}; the sweeps in it: s\n" in done.stderr
    assert shown("s", "--runs_dir", tmp_path).stdout == shown(tmp_path / "s").stdout
    done = shown(tmp_path / "s", "--metric", "val/loss")
    assert done.exit_code == 2
    assert "--metric (val/loss) must be a metric of the runs; they have val/validation/loss" in done.stderr


def test_the_table_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    made(tmp_path, bowl, "LR=[1e-3,1e-2]", "SEED=[0,1]")
    done = in_a_process("sweep", str(tmp_path / "s"))
    assert done.returncode == 0, done.stderr
    assert imported(done) == "[]"


RANDOM = {"num_samples": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["LR=[1e-4,1e-3,1e-2,1e-1]"], {}),
        (["LR=[1e-3,1e-2,1e-1]", "SEED=[0,1]"], {}),
        (["LR=[1e-3]", "GPT2.activation=['gelu','relu']"], {}),
        (["LR=[1e-4,1e-3,1e-1]", "WARMUP_STEPS=[1,2]", "SEED=[0,1]"], {}),
        pytest.param(
            ["LR=[1e-3,1e-1]", "WARMUP_STEPS=[1,2]", "GPT2.num_layers=[1,2,3]"], {}, marks=pytest.mark.slow
        ),
        pytest.param(["LR=[1e-4,1e-3,1e-1];WARMUP_STEPS=[1,2,3]"], {}, marks=pytest.mark.slow),
        pytest.param(["LR=loguniform(1e-5,1e-1)"], RANDOM, marks=pytest.mark.slow),
        pytest.param(["LR=loguniform(1e-5,1e-1)", "WARMUP_STEPS=[1,2]"], RANDOM, marks=pytest.mark.slow),
        (["LR=loguniform(1e-5,1e-1)", "AdamW.weight_decay=uniform(0.0,0.3)"], RANDOM),
        pytest.param(
            ["LR=loguniform(1e-5,1e-1)", "WARMUP_STEPS=integers(1,4)", "GPT2.activation=choice(['gelu','relu'])"],
            RANDOM, marks=pytest.mark.slow,
        ),
    ],
    ids=["line", "seeds", "names", "heat_map", "panels", "zipped", "random", "curves", "scatter", "parallel"],
)  # fmt: skip
def test_every_kind_of_sweep_is_drawn(
    tmp_path: Path, flags: list[str], options: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    """Also with a point that failed and one that is missing."""
    states = iter(["failed", "missing"])

    def loss(values: Mapping[str, str]) -> float | str:
        return bowl(values) if float(values["LR"]) < 5e-2 else next(states, "failed")

    made(tmp_path, loss, *flags, **options)
    done = shown(tmp_path / "s", "--plot", tmp_path / "out.png")
    assert done.exit_code == 0, done.output
    assert f"drawn: {tmp_path / 'out.png'}" in done.stderr
    assert is_a_drawing(tmp_path / "out.png")
    assert [str(one.message) for one in recwarn if "matplotlib" in str(one.filename) or "sweep" in one.filename] == []


def test_a_plot_of_points_that_all_failed(tmp_path: Path) -> None:
    for number, flags in enumerate((["LR=[1e-3,1e-2]"], ["LR=[1e-3,1e-2]", "WARMUP_STEPS=[1,2]"])):
        sweep = made(tmp_path, bowl, *flags, name=f"s{number}")
        for point in sweep.points:
            point.run.update(status="failed", exit_code=1)
        done = shown(sweep.folder, "--plot", tmp_path / f"{number}.png")
        assert done.exit_code == 0, done.output
        assert is_a_drawing(tmp_path / f"{number}.png")


def test_what_keeps_a_plot_from_being_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, bowl, "LR=[1e-3,1e-2]")
    done = shown(tmp_path / "s", "--plot", tmp_path / "a.jpeg2")
    assert done.exit_code == 2
    assert "a.jpeg2) must end in .png, .pdf, .svg; name a file of one of these kinds" in done.stderr
    done = shown(tmp_path / "s", "--plot", tmp_path / "none" / "a.png")
    assert done.exit_code == 2
    assert "cannot be written: No such file or directory; choose another" in done.stderr
    real = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    done = shown(tmp_path / "s", "--plot", tmp_path / "a.png")
    assert done.exit_code == 2
    assert (
        "--plot needs the package matplotlib (No module named 'matplotlib'); pip install 'modlib[plots]'" in done.stderr
    )
