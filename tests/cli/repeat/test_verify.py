"""`modlib verify`: a run beside its recipe, the scoreboard, and a default that changed under a lock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modlib.cli.repeat import recipes
from modlib.cli.start.launch import app
from tests.cli.commands import modlib
from tests.launching_command import ROOT

RECIPE = """
include 'debug/tiny.gin'
DATA = '{data}'
VAL_DATA = '{data}'
NUM_STEPS = 3
EVAL_EVERY = 2
train.sample = None
train.subscribers = [@JSONL]
GPT2.dropout = 0.0
"""
CLAIMS: list[dict[str, Any]] = [
    {"name": "size", "kind": "parameters", "metric": "non_embedding", "value": 25472, "tolerance": 0},
    {"name": "tokens", "kind": "plan", "metric": "num_tokens", "value": 384, "tolerance": 0},
    {"name": "first loss", "kind": "run", "metric": "train/loss", "at": "first", "value": 8.32, "tolerance": 0.1},
    {"name": "loss in the end", "kind": "run", "metric": "val/validation/loss", "at_most": 9.0},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> Path:
    """An experiment 2001_small with a locked recipe, and a run of it in runs/a."""
    folder = tmp_path_factory.mktemp("board")
    paper = folder / "experiments" / "2001_small"
    paper.mkdir(parents=True)
    (paper / "small.gin").write_text(RECIPE.format(data=small_corpus))
    claims = [{"recipe": "small.gin", "source": "table 1", **claim} for claim in CLAIMS]
    (paper / "expected.json").write_text(json.dumps({"paper": "A 2001, Small", "claims": claims}))
    recipes.Paper(paper).lock()
    done = CliRunner().invoke(
        app, ["--gin_file", str(paper / "small.gin"), "--runs_dir", str(folder / "runs"), "--name", "a"]
    )
    assert done.exit_code == 0, done.output
    change_state(folder, git_commit="c0" * 20, git_dirty=False)  # whatever the checkout is like that the test runs in
    return folder


@pytest.fixture
def board(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that the test may change; it is what modlib takes for its experiments."""
    shutil.copytree(made, tmp_path / "board")
    monkeypatch.setattr(recipes, "EXPERIMENTS", tmp_path / "board" / "experiments")
    return tmp_path / "board"


def paper(board: Path) -> Path:
    return board / "experiments" / "2001_small"


def change_state(board: Path, **fields: Any) -> None:
    path = board / "runs" / "a" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_parameter(board: Path, name: str, value: str | None) -> None:
    """Another value in what the run says of itself; None takes the parameter out."""
    path = board / "runs" / "a" / "provenance.json"
    record = json.loads(path.read_text())
    if value is None:
        del record["parameters"][name]
    else:
        record["parameters"][name]["value"] = value
    path.write_text(json.dumps(record))


def refused(board: Path) -> str:
    """What is said of a run that must not be recorded."""
    done = modlib("verify", board / "runs" / "a", "--record", code=2)
    assert not (paper(board) / "results").exists()
    return " ".join(done.stderr.split())


def change_claim(board: Path, name: str, **fields: Any) -> None:
    path = paper(board) / "expected.json"
    content = json.loads(path.read_text())
    next(claim for claim in content["claims"] if claim["name"] == name).update(fields)
    path.write_text(json.dumps(content))


def test_a_run_that_is_as_it_should_be(board: Path) -> None:
    done = modlib("verify", board / "runs" / "a")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], row[2], row[3], row[4]) for row in rows[:2]] == [
        ("first loss", "8.32 ± 0.1", "pass", "table 1"),
        ("loss in the end", "<= 9", "pass", "table 1"),
    ]
    assert 8.22 <= float(rows[0][1]) <= 8.42
    assert not [row for row in rows if row[0].startswith(("config", "data", "world", "version"))]


def test_a_claim_that_fails_is_exit_code_1(board: Path) -> None:
    change_claim(board, "first loss", value=1.0)
    done = modlib("verify", board / "runs" / "a", code=1)
    assert "\tFAIL\t" in done.stdout.splitlines()[0]


def test_a_claim_that_was_not_measured_is_exit_code_1(board: Path) -> None:
    change_claim(board, "first loss", metric="train/accuracy")
    done = modlib("verify", board / "runs" / "a", code=1)
    assert done.stdout.splitlines()[0].split("\t")[1:4] == ["", "8.32 ± 0.1", "not measured"]


def test_record_and_scoreboard(board: Path) -> None:
    before = modlib("verify", "--all")
    states = [line.split("\t")[4] for line in before.stdout.splitlines()]
    assert states == ["pass", "pass", "not run", "not run"]
    assert "2 of 4 claims hold, 0 fail, 2 are not run" in before.stderr

    assert "wrote " in modlib("verify", board / "runs" / "a", "--record").stderr
    result = json.loads((paper(board) / "results" / "small.json").read_text())
    assert set(result["values"]) == {"first loss", "loss in the end"}
    assert (result["world_size"], result["steps"]) == (1, 3)
    assert [one["use"] for one in result["data"]] == ["train", "val/validation"]
    assert all(set(one) == {"use", "name", "fingerprint"} for one in result["data"])
    assert str(board) not in json.dumps(result)

    after = modlib("verify", "--all")
    rows = [line.split("\t") for line in after.stdout.splitlines()]
    assert [row[4] for row in rows] == ["pass"] * 4
    assert rows[2][5].startswith(f"{result['date']}, {result['machine']}, commit {str(result['git_commit'])[:10]}")

    change_claim(board, "first loss", value=1.0)
    failed = json.loads(modlib("verify", "--all", "--json", code=1).stdout)
    assert [row["state"] for row in failed["claims"]] == ["pass", "pass", "FAIL", "pass"]
    assert failed["claims"][2]["measured"] == result["values"]["first loss"]["value"]

    change_claim(board, "first loss", value=8.32, at=2)  # another question: the recorded value does not answer it
    asked = json.loads(modlib("verify", "--all", "--json", code=1).stdout)
    assert asked["claims"][2]["state"] == "not measured"
    assert "1 are not measured by the run of their recipe" in modlib("verify", "--all", code=1).stderr


def test_a_threshold_that_is_never_reached_fails(board: Path) -> None:
    change_claim(board, "first loss", at="last", value=None, tolerance=None, reaches=99.0, at_most=2)
    done = modlib("verify", board / "runs" / "a", "--record", code=1)
    assert done.stdout.splitlines()[0].split("\t")[1:4] == ["never", "<= 2", "FAIL"]
    result = json.loads((paper(board) / "results" / "small.json").read_text())
    assert result["values"]["first loss"]["value"] == "never"
    row = modlib("verify", "--all", code=1).stdout.splitlines()[2].split("\t")
    assert (row[2], row[4]) == ("never", "FAIL")
    assert json.loads(modlib("verify", "--all", "--json", code=1).stdout)["claims"][2]["measured"] == "never"


def test_a_claim_that_the_recorded_run_has_not_logged_is_not_measured(board: Path) -> None:
    change_claim(board, "first loss", metric="train/accuracy")
    modlib("verify", board / "runs" / "a", "--record", code=1)
    row = modlib("verify", "--all", code=1).stdout.splitlines()[2].split("\t")
    assert (row[2], row[4]) == ("", "not measured")


def test_what_was_different_is_said(board: Path) -> None:
    modlib("verify", board / "runs" / "a", "--record")
    flags = ["--gin_param", "LR=2e-3", "--gin_param", "SEQ_LEN=16", "--gin_param", "LOG_EVERY=2"]
    words = ["--gin_file", str(paper(board) / "small.gin"), "--runs_dir", str(board / "runs"), "--name", "b"]
    done = CliRunner().invoke(app, [*words, *flags])
    assert done.exit_code == 0, done.output
    found = json.loads(modlib("verify", board / "runs" / "b", "--json").stdout)
    said = {one["what"]: (one["here"], one["there"]) for one in found["differences"]}
    assert said["config: AdamW.lr"] == ("0.002", "0.001")
    assert said["config: GPT2.seq_len"] == ("16", "32")
    assert said["config: train.log_every (changes no number)"] == ("2", "1")
    assert said["data of train"][0].endswith("/seq_len=16/stride=16")
    assert "world size" not in said
    state = json.loads((board / "runs" / "b" / "run.json").read_text())
    state |= {
        "git_commit": "f" * 40,
        "git_dirty": True,
        "world_size": 4,
        "versions": {**state["versions"], "torch": "1.0"},
    }
    (board / "runs" / "b" / "run.json").write_text(json.dumps(state))
    found = json.loads(modlib("verify", board / "runs" / "b", "--json").stdout)
    said = {one["what"]: (one["here"], one["there"]) for one in found["differences"]}
    assert said["code: commit"][0] == "f" * 40
    assert said["code: changes since the commit"] == ("some; see dirty.patch", "none")
    assert said["world size"] == ("4", "1")
    assert said["version of torch"][0] == "1.0"


def test_only_a_finished_run_is_recorded(board: Path) -> None:
    change_state(board, status="stopped")
    done = modlib("verify", board / "runs" / "a", "--record", code=4)
    text = "status of run a (stopped) must be finished to be recorded; let it train to its end"
    assert text in " ".join(done.stderr.split())
    assert not (paper(board) / "results").exists()


def test_only_the_recipe_as_it_is_locked_is_recorded(board: Path) -> None:
    change_parameter(board, "AdamW.lr", "0.01")
    change_parameter(board, "train.log_every", "7")
    said = refused(board)
    assert "AdamW.lr of run a (0.01) must be as it is locked (0.001) to be recorded; run the recipe as it is" in said
    assert "log_every" not in said


def test_only_a_recipe_that_is_locked_is_recorded(board: Path) -> None:
    (paper(board) / "lock.json").unlink()
    assert "2001_small/small.gin must be in lock.json; `modlib verify --lock 2001_small` locks it" in refused(board)


@pytest.mark.parametrize(("dirty", "text"), [(True, "some; see dirty.patch"), (None, "unknown")])
def test_only_code_of_a_commit_is_recorded(board: Path, dirty: bool | None, text: str) -> None:
    change_state(board, git_dirty=dirty)
    wanted = f"changes since the commit of run a ({text}) must be none to be recorded; commit them and run it again"
    assert wanted in refused(board)


def test_only_code_of_a_known_commit_is_recorded(board: Path) -> None:
    change_state(board, git_commit=None)
    assert "commit of run a (unknown) must be known to be recorded; run it from a git checkout" in refused(board)


def test_only_a_run_that_has_measured_something_is_recorded(board: Path) -> None:
    change_claim(board, "first loss", metric="train/accuracy")
    change_claim(board, "loss in the end", metric="val/accuracy")
    assert (
        "claims that run a has measured (0 of 2) must be at least 1 to be recorded; the metrics that they ask for: "
        "train/accuracy, val/accuracy" in refused(board)
    )


def test_a_recipe_that_no_claim_is_about(board: Path) -> None:
    path = paper(board) / "expected.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"claims": content["claims"][:2]}))
    done = modlib("verify", board / "runs" / "a")
    assert "no claim of expected.json is about a run of this recipe" in done.stderr
    assert "claims that run a has measured (0 of 0) must be at least 1 to be recorded" in refused(board)


def test_where_the_data_lies_is_no_difference(board: Path) -> None:
    for use in ("train", "validation"):
        change_parameter(board, f"{use}/PackedDataset.path", "'/home/somebody/corpus.packed'")
    state = json.loads((board / "runs" / "a" / "run.json").read_text())
    moved = [one | {"name": "/home/somebody/corpus.packed"} for one in state["data"]]
    change_state(board, data=moved)
    done = modlib("verify", board / "runs" / "a", "--record")
    assert "PackedDataset" not in done.stdout
    text = (paper(board) / "results" / "small.json").read_text()
    assert [one["name"] for one in json.loads(text)["data"]] == ["corpus.packed"] * 2
    assert "somebody" not in text
    assert [line.split("\t")[4] for line in modlib("verify", "--all").stdout.splitlines()] == ["pass"] * 4

    shutil.rmtree(paper(board) / "results")
    change_state(board, data=[one | {"fingerprint": ""} for one in moved])
    assert "train/PackedDataset.path of run a ('/home/somebody/corpus.packed') must be as it is locked" in refused(
        board
    )
    change_state(board, data=moved)
    change_parameter(board, "train/PackedDataset.path", "'stdlib:train'")
    assert "train/PackedDataset.path of run a ('stdlib:train') must be as it is locked" in refused(board)


def test_a_parameter_that_is_new_since_the_run_and_at_its_default_is_no_difference(board: Path) -> None:
    change_parameter(board, "GPT2.qk_norm", None)
    assert "qk_norm" not in modlib("verify", board / "runs" / "a", "--record").stdout
    assert "qk_norm" not in (paper(board) / "results" / "small.json").read_text()
    assert [line.split("\t")[4] for line in modlib("verify", "--all").stdout.splitlines()] == ["pass"] * 4
    recipe = paper(board) / "small.gin"
    recipe.write_text(recipe.read_text() + "GPT2.qk_norm = True\n")
    modlib("verify", "--lock", "all")
    row = modlib("verify", "--all", code=1).stdout.splitlines()[2].split("\t")
    assert row[4] == "stale"
    assert row[5].endswith("; the recipe since then: GPT2.qk_norm: (absent) -> True")


def test_a_run_of_no_recipe(board: Path) -> None:
    path = board / "runs" / "a" / "provenance.json"
    record = json.loads(path.read_text())
    record["parameters"]["AdamW.lr"]["value"] = "0.25"
    path.write_text(json.dumps(record | {"files": ["/somewhere/my.gin"]}))
    done = modlib("verify", board / "runs" / "a", code=2)
    text = " ".join(done.stderr.split())
    assert "must be made from a gin file of experiments/, but is made from my.gin; name the recipe" in text
    modlib("verify", board / "runs" / "a", "--recipe", "2001_small/small.gin")
    done = modlib("verify", board / "runs" / "a", "--recipe", "2001_small/big.gin", code=2)
    assert f"recipe (2001_small/big.gin) must be a gin file of {paper(board)}: small.gin" in " ".join(
        done.stderr.split()
    )
    done = modlib("verify", board / "runs" / "a", "--recipe", "2001_smal/small.gin", code=2)
    assert "did you mean 2001_small?" in " ".join(done.stderr.split())
    for word in ("2001_small", "small.gin"):
        done = modlib("verify", board / "runs" / "a", "--recipe", word, code=2)
        assert f"recipe ({word}) must be EXPERIMENT/FILE.gin; there is 2001_small/small.gin" in done.stderr
    done = modlib("verify", board / "runs" / "a", "--recipe", "big.gin", code=2)
    assert "recipe (big.gin) must be EXPERIMENT/FILE.gin; as in 2001_small/small.gin" in done.stderr
    assert "did you mean 2001_small?" in modlib("verify", "--lock", "small", code=2).stderr


def test_locking(board: Path) -> None:
    assert modlib("verify", "--lock", "2001_small").stdout == ""
    recipe = paper(board) / "small.gin"
    recipe.write_text(recipe.read_text() + "GPT2.qk_norm = True\n")
    done = modlib("verify", "--all", code=1)
    assert "2001_small/small.gin is not as locked: GPT2.qk_norm: False -> True" in done.stderr
    assert modlib("verify", "--lock", "all").stdout == "2001_small/small.gin: GPT2.qk_norm: False -> True\n"
    (paper(board) / "other.gin").write_text("include 'small.gin'\n")
    done = modlib("verify", "--all", code=1)
    assert "2001_small/other.gin must be in lock.json; `modlib verify --lock 2001_small` locks it" in done.stderr
    assert modlib("verify", "--lock", "all").stdout.startswith("2001_small/other.gin: new, ")


def test_what_was_measured_before_the_recipe_changed_is_stale(board: Path) -> None:
    modlib("verify", board / "runs" / "a", "--record")
    recipe = paper(board) / "small.gin"
    recipe.write_text(recipe.read_text().replace("dropout = 0.0", "dropout = 0.2"))
    modlib("verify", "--lock", "all")
    done = modlib("verify", "--all", code=1)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[4] for row in rows] == ["pass", "pass", "stale", "stale"]
    assert rows[2][5].endswith("; the recipe since then: GPT2.dropout: 0.0 -> 0.2")
    assert "2 of 4 claims hold, 0 fail, 0 are not run, 2 are stale: run their recipes again" in done.stderr


def test_a_claim_about_no_recipe(board: Path) -> None:
    change_claim(board, "size", recipe="big.gin")
    done = modlib("verify", "--all", code=2)
    assert "recipe (big.gin) of claim 'size' must be a gin file of the folder, which has small.gin" in done.stderr


def test_a_claim_about_no_number(board: Path) -> None:
    change_claim(board, "size", metric="colour")
    done = modlib("verify", "--all", code=1)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    text = "metric (colour) of claim 'size' must be one of total, trainable, non_embedding"
    assert [row[4] for row in rows] == ["FAIL", "FAIL", "not run", "not run"], (
        "both claims of the recipe were asked for"
    )
    assert rows[0][5] == text
    assert f"2001_small/small.gin: {text}" in done.stderr


def test_a_recipe_that_cannot_be_read_leaves_the_others(board: Path) -> None:
    shutil.copytree(paper(board), board / "experiments" / "2002_broken")
    (board / "experiments" / "2002_broken" / "small.gin").write_text("train.model = @NoSuchModel\n")
    rows = [line.split("\t") for line in modlib("verify", "--all", code=1).stdout.splitlines()]
    assert [(row[0], row[4]) for row in rows] == [
        *[("2001_small", state) for state in ("pass", "pass", "not run", "not run")],
        *[("2002_broken", state) for state in ("FAIL", "FAIL", "not run", "not run")],
    ]
    assert "no component NoSuchModel" in rows[4][5]


def test_the_scoreboard_of_one_experiment(board: Path) -> None:
    shutil.copytree(paper(board), board / "experiments" / "2002_other")
    rows = [line.split("\t") for line in modlib("verify", "2002_other").stdout.splitlines()]
    assert [row[0] for row in rows] == ["2002_other"] * 4
    assert modlib("verify", paper(board), "--json").stdout.count('"2001_small"') == 4


def test_the_number_of_ranks_is_compared_with_what_the_recipe_asks_for(board: Path) -> None:
    assert "world size" not in modlib("verify", board / "runs" / "a").stdout
    path = paper(board) / "lock.json"
    content = json.loads(path.read_text())
    content["recipes"]["small.gin"]["other"] |= {
        "launch.executor": "'slurm'", "Slurm.nodes": "2", "Slurm.tasks_per_node": "None", "Slurm.gpus_per_node": "4"
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert "world size\t1\t8" in modlib("verify", board / "runs" / "a").stdout


def test_a_run_that_reproduces_another_is_of_its_recipe(board: Path) -> None:
    shutil.copytree(board / "runs" / "a", board / "runs" / "again")
    path = board / "runs" / "again" / "provenance.json"
    record = json.loads(path.read_text()) | {"files": [str(board / "runs" / "a" / "config.gin")]}
    record["parameters"]["Local.num_processes"]["value"] = "3"
    record["parameters"]["AdamW.lr"]["value"] = "0.25"
    path.write_text(json.dumps(record))
    modlib("verify", board / "runs" / "again", code=2)
    path = board / "runs" / "again" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reproduces": str(board / "runs" / "a")}))
    done = modlib("verify", board / "runs" / "again")
    assert done.stderr.startswith("again: 2001_small/small.gin")
    assert "num_processes" not in done.stdout


def test_without_experiments(board: Path) -> None:
    shutil.rmtree(board / "experiments")
    done = modlib("verify", "--all", code=2)
    assert f"experiments ({board}/experiments) must be a folder with papers, and is none" in " ".join(
        done.stderr.split()
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give one of RUN, --all and --lock"),
        (["--all", "--lock", "x"], "give one of RUN, --all and --lock"),
        (["--all", "--record"], "--record goes with a RUN"),
        (["--all", "--recipe", "x"], "--recipe goes with a RUN"),
    ],
)
def test_flags_that_do_not_go_together(words: list[str], text: str) -> None:
    assert text in " ".join(modlib("verify", *words, code=2).stderr.split())


def test_verifying_a_run_does_not_import_torch(board: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from modlib.cli.repeat import recipes;"
        "recipes.EXPERIMENTS = Path(sys.argv[1]);"
        "from modlib.cli.repeat.verify_run import verify_run;"
        "code = verify_run(sys.argv[2], Path(), recipe=None, record=False, as_json=True);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    words = [sys.executable, "-c", code, board / "experiments", board / "runs" / "a"]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_default_that_changes_under_a_locked_recipe_is_named(tmp_path: Path) -> None:
    """In a copy of the project, the default of a parameter that no gin file sets is changed on purpose."""
    for name in ("modlib", "gin_configs", "experiments/2026_modalities"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    model = tmp_path / "modlib" / "models" / "gpt2.py"
    text = model.read_text()
    assert text.count("rope_fraction: float = 1.0") == 1
    model.write_text(text.replace("rope_fraction: float = 1.0", "rope_fraction: float = 0.5"))
    words = [sys.executable, "-c", "from modlib.cli.main import main; main()", "verify", "--all"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "locked" in line] == [
        f"2026_modalities/{recipe}.gin is not as locked: GPT2.rope_fraction: 1.0 -> 0.5"
        for recipe in ("leonardo_2_7b", "leonardo_6_7b", "marenostrum_2_7b")
    ]
