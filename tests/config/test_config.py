"""The resolved configuration: complete, feeds back to itself, hashed by what matters, traced to its origins."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import gin
import pytest
from hypothesis import given, settings

from modlib.config import Config, load
from modlib.config.values import format_value
from tests.config.projects import Project
from tests.config.test_values import literals, same

WHOLE = """\
D = 16
NAME = 'v'
Model.dim = 2 * %D
Model:
    ffn_dim = 4 * %D
    norm = @Norm
    betas = [0, 1]
    anything = {'a': [1, (2.5, None)], 'b': -1e-3}
Norm.eps = 1e-3
RUN.evaluators = [@a/Eval(), @b/Eval]
RUN.subscribers = [@Log]
RUN.steps = 100
Eval.data = @Data
Eval.name = %NAME
a/Data.path = 'a'
b/Data.path = 'b'
b/Eval.depth = 3
"""


def again(config: Config, folder: Path, *params: str) -> Config:
    path = folder / "again.gin"
    path.write_text(config.text)
    return load([path], params)


def test_every_parameter_with_its_default(project: Project) -> None:
    config = project.load(WHOLE)
    run = project.run
    launched = ("Local.", "Slurm.", "launch.")
    assert {name for name in config.resolved if name.startswith(launched)} >= {"Local.num_processes", "Slurm.nodes"}
    assert {name: value for name, value in config.resolved.items() if not name.startswith(launched)} == {
        f"{run}.model": "@Model",
        f"{run}.evaluators": ["@a/Eval()", "@b/Eval"],
        f"{run}.optimizer": None,
        f"{run}.subscribers": ["@Log"],
        f"{run}.steps": 100,
        f"{run}.log_every": 1,
        "Model.dim": 32,
        "Model.ffn_dim": 64,
        "Model.dropout": 0.0,
        "Model.activation": "gelu",
        "Model.betas": (0.0, 1.0),
        "Model.norm": "@Norm",
        "Model.layers": [],
        "Model.path": "",
        "Model.options": None,
        "Model.bias": True,
        "Model.anything": {"a": [1, (2.5, None)], "b": -0.001},
        "a/Eval.name": "v",
        "a/Eval.data": "@Data",
        "a/Eval.depth": 0,
        "b/Eval.name": "v",
        "b/Eval.data": "@Data",
        "b/Eval.depth": 3,
        "Log.every": 1,
        "Norm.eps": 0.001,
        "a/Data.path": "a",
        "a/Data.length": 3,
        "b/Data.path": "b",
        "b/Data.length": 3,
    }


def test_the_text_feeds_back_to_itself(project: Project, tmp_path: Path) -> None:
    config = project.load(WHOLE)
    second = again(config, tmp_path)
    assert second.text == config.text
    assert second.hash == config.hash
    assert second.resolved == config.resolved


def test_stock_gin_reads_the_text(project: Project) -> None:
    config = project.load(WHOLE)
    config.activate()
    gin.clear_config()
    gin.parse_config(config.text)
    gin.finalize()
    run = gin.get_configurable(project.run)()
    assert (run.model().dim, run.evaluators[0].data.path, run.evaluators[1]().data.path) == (32, "a", "b")


def test_activated_components_get_their_values(project: Project) -> None:
    config = project.load(WHOLE)
    for _ in range(2):
        config.activate()
        assert gin.config_is_locked()
        run = gin.get_configurable(project.run)()
        model = run.model(device="gpu")
        assert (model.dim, model.ffn_dim, model.device, model.betas) == (32, 64, "gpu", (0.0, 1.0))
        assert model.anything == {"a": [1, (2.5, None)], "b": -1e-3}
        assert model.norm().eps == 1e-3
        called, uncalled = run.evaluators
        assert (called.name, called.data.path, called.depth) == ("v", "a", 0)
        assert (uncalled().data.path, uncalled().depth) == ("b", 3)


def test_an_inherited_scope_holds_when_the_component_is_called_later(project: Project) -> None:
    """gin itself would have forgotten the scope by then."""
    project.load(
        "RUN.evaluators = [@a/Eval()]\na/Eval.data = @Data\na/Data.path = 'a'\nModel.norm = @a/Eval"
    ).activate()
    norm = gin.get_configurable(project.run)().model().norm
    assert norm().data.path == "a"


def test_activate_replaces_what_gin_held(project: Project) -> None:
    project.load("Model.dropout = 0.5").activate()
    project.load("").activate()
    assert gin.get_configurable(project.run)().model().dropout == 0.0


def test_a_path_annotation_gets_a_path(project: Project) -> None:
    source = """
from pathlib import Path
from modlib.components import component

@component("run", "{m}", name="{m}_run")
def run(path: Path, other: Path | None = None, text: str | Path = ""):
    return path, other, text
"""
    mine = Project(project.folder, source)
    try:
        mine.load(f"import {mine.module}\nRUN.path = '/a'\nRUN.text = 'b'", whole=False).activate()
        assert gin.get_configurable(mine.run)() == (Path("/a"), None, "b")
    finally:
        mine.forget()


@settings(max_examples=40)
@given(literals)
def test_any_literal_round_trips(project: Project, value: Any) -> None:
    config = project.load(f"Model.anything = {format_value(value)}")
    second = again(config, project.folder)
    assert second.hash == config.hash
    second.activate()
    assert same(gin.get_configurable(project.run)().model().anything, value)


def test_infinities_and_nan_round_trip(project: Project) -> None:
    config = again(project.load("Model.anything = [float('inf'), float('-inf'), float('nan')]"), project.folder)
    config.activate()
    up, down, neither = gin.get_configurable(project.run)().model().anything
    assert (up, down) == (math.inf, -math.inf)
    assert math.isnan(neither)


def test_knobs_stay_knobs(project: Project, tmp_path: Path) -> None:
    config = project.load("STEPS = 7\nD = 3\nRUN.steps = %STEPS\nModel.layers = [%STEPS, 1]\nModel.ffn_dim = 2 * %D")
    second = again(config, tmp_path, "STEPS=9", "Model.dropout=0.25")
    assert second.resolved[f"{project.run}.steps"] == 9
    assert second.resolved["Model.layers"] == [9, 1]
    assert second.resolved["Model.dropout"] == 0.25
    assert second.hash != config.hash
    # D took part in arithmetic: set alone it would no longer change ffn_dim, so it is refused
    with pytest.raises(ValueError, match="the macro D is defined but never used"):
        again(config, tmp_path, "D=4")


def test_the_text_does_not_depend_on_how_the_files_were_written(project: Project) -> None:
    one = project.load("RUN.steps = 5\nModel.norm = @Norm\nRUN.subscribers = [@Log]\nNorm.eps = 1.0")
    other = project.load("Norm.eps = 1.0\nRUN.subscribers = [@Log]\nRUN.steps = 10 // 2\nModel.norm = @Norm")
    assert one.text == other.text


def test_hash_covers_what_changes_numbers(project: Project) -> None:
    same_science = ["", "RUN.log_every = 7", "RUN.subscribers = [@Log]\nLog.every = 3", "Local.num_processes = 2"]
    assert len({project.load(text).hash for text in same_science}) == 1
    other_science = ["", "Model.dropout = 0.1", "RUN.steps = 11", "RUN.evaluators = [@Eval]", "Model.norm = @Norm"]
    assert len({project.load(text).hash for text in other_science}) == len(other_science)


def test_hash_is_of_the_meaning(project: Project) -> None:
    texts = [
        "Model.options = {'a': 1, 'b': 2}\nModel.betas = (0.5, 1.0)",
        "X = 1\nModel.options = {'b': 2, 'a': %X}\nModel.betas = [0.5, 1]\nModel.dropout = 0",
    ]
    assert len({project.load(text).hash for text in texts}) == 1
    assert len(project.load("").hash) == 64


def test_hash_is_the_same_in_another_process(project: Project) -> None:
    config = project.load(WHOLE)
    code = "import sys; from modlib.config import load; print(load([sys.argv[1]]).hash)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(project.folder / "a.gin")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == config.hash


def test_provenance(project: Project) -> None:
    config = project.load("Model.ffn_dim = 2\nSTEPS = 1\nRUN.steps = %STEPS", ["Model.ffn_dim=3", "STEPS=4"])
    folder = f"{project.folder}/"
    trace = {name: [one.replace(folder, "") for one in origins] for name, origins in config.provenance.items()}
    assert trace["Model.ffn_dim"] == ["a.gin:4", "--gin_param #1"]
    assert trace[f"{project.run}.steps"] == ["a.gin:6", "STEPS a.gin:5", "STEPS --gin_param #2"]
    assert trace["Model.dropout"] == []
    assert config.overridden == {"Model.ffn_dim": [(f"{folder}a.gin:4", 2)]}
    assert config.resolved["Model.ffn_dim"] == 3


def test_a_scope_overrides(project: Project) -> None:
    config = project.load("RUN.evaluators = [@a/Eval]\nEval.depth = 1\na/Eval.depth = 2")
    assert [one.rpartition("/")[2] for one in config.provenance["a/Eval.depth"]] == ["a.gin:5", "a.gin:6"]
    assert [value for _, value in config.overridden["a/Eval.depth"]] == [1]


def test_explain(project: Project) -> None:
    config = project.load("Model.ffn_dim = 5")
    text = config.explain("Model", "ffn_dim (5) must be a multiple of dim (8); use 8")
    assert text.replace(f"{project.folder}/", "") == (
        "ffn_dim (5) must be a multiple of dim (8); use 8\n"
        "Model.dim = 8 was set at a.gin:3\n"
        "Model.ffn_dim = 5 was set at a.gin:4"
    )
    assert config.explain("Model", "dropout is odd") == "dropout is odd\nModel.dropout = 0.0 is its default"


def test_explain_a_text_that_names_no_parameter(project: Project) -> None:
    config = project.load("Model.dropout = 0.25\nModel.path = 'a.txt'\nModel.norm = @Norm\nNorm.eps = 3.0")

    def told(name: str, message: str) -> str:
        return config.explain(name, message).removeprefix(f"{message}\n").replace(f"{project.folder}/", "")

    assert told("Model", "Invalid value: 0.25") == "Model.dropout = 0.25 was set at a.gin:4"
    assert told("Model", "there is no a.txt here") == "Model.path = 'a.txt' was set at a.gin:5"
    assert told("Model", "eps (3.0) must be small") == "Norm.eps = 3.0 was set at a.gin:7", "of a part of it"
    assert told("Norm", "Norm: takes 1 argument") == "Model.norm = @Norm was set at a.gin:6"
    assert told("Model", "it is too dark, 0.255 or 10.25") == "it is too dark, 0.255 or 10.25"


def test_explain_in_scopes(project: Project) -> None:
    config = project.load("RUN.evaluators = [@a/Eval, @b/Eval]\na/Eval.depth = 1\nb/Eval.depth = 2")
    both, one = config.explain("Eval", "depth is odd"), config.explain("Eval", "depth (2) must be odd")
    assert [line.split(" was")[0] for line in both.splitlines()[1:]] == ["a/Eval.depth = 1", "b/Eval.depth = 2"]
    assert [line.split(" was")[0] for line in one.splitlines()[1:]] == ["b/Eval.depth = 2"]


def test_run_folder(project: Project, tmp_path: Path) -> None:
    config = project.load(WHOLE, ["Model.bias=False"])
    config.to_run_folder(tmp_path / "run")
    assert (tmp_path / "run" / "config.gin").read_text() == config.text
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["hash"] == config.identity
    assert record["parameters"]["Model.bias"]["value"] == "False"
    assert record["parameters"]["Model.bias"]["origins"] == ["--gin_param #1"]
    assert record["import_paths"] == [str(project.folder)]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.gin", "provenance.json"]


def test_a_run_folder_finds_the_users_module_again(project: Project, tmp_path: Path) -> None:
    """The job starts in another process and another directory; the module lies beside the first gin file."""
    config = project.load(WHOLE)
    config.to_run_folder(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    code = "import sys; from modlib.config import load; c = load([sys.argv[1]]); c.activate(); print(c.hash)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run" / "config.gin")],
        capture_output=True, text=True, cwd=tmp_path / "elsewhere",
    )  # fmt: skip
    assert done.stdout.strip() == config.hash, done.stderr


def test_objects_as_defaults_are_named_in_comments(project: Project) -> None:
    source = """
from modlib.components import component

@component("run", "{m}", name="{m}_run")
def run(key=len, size: int = 3, choice={{1, 2}}):
    return key, size, choice
"""
    mine = Project(project.folder, source)
    try:
        config = mine.load(f"import {mine.module}\nRUN.size = 4", whole=False)
        assert "    # key = builtins.len (default; not a gin value)\n" in config.text
        assert config.resolved[f"{mine.run}.key"] == "builtins.len"
        assert again(config, project.folder).hash == config.hash
        config.activate()
        assert gin.get_configurable(mine.run)() == (len, 4, {1, 2})
    finally:
        mine.forget()


def test_a_default_that_is_a_secret_is_not_written_down(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / f"{project.module}.py"
    code.write_text(
        code.read_text().replace('path: str | Path = ""', "path: str | Path = 'canary-value', pat: str = 'abc'")
    )
    monkeypatch.setenv("SOME_PASSWORD", "canary-value")
    config = project.load()
    assert "    # path = '***' (default; a secret, which is not written down)\n" in config.text
    assert "    # pat = '***' (default; a secret, which is not written down)\n" in config.text
    assert config.record()["parameters"]["Model.path"]["value"] == "'***'"
    config.to_run_folder(tmp_path / "run")
    assert not [
        path for path in (tmp_path / "run").iterdir() if "canary" in path.read_text() or "abc" in path.read_text()
    ]
    loaded = load([tmp_path / "run" / "config.gin"])
    assert loaded.resolved["Model.path"] == "canary-value"
    assert loaded.hash == config.hash


def test_constants_of_a_users_module(project: Project) -> None:
    source = """
import gin
from modlib.components import component

gin.constant("{m}.LIMIT", 12)
gin.constant("{m}.OBJECT", object)

@component("run", "{m}", name="{m}_run")
def run(limit: int, thing=None):
    return limit, thing
"""
    mine = Project(project.folder, source)
    try:
        text = f"import {mine.module}\nRUN.limit = 2 * %{mine.module}.LIMIT\nRUN.thing = %{mine.module}.OBJECT"
        config = mine.load(text, whole=False)
        assert config.resolved[f"{mine.run}.thing"] == f"%{mine.module}.OBJECT"
        assert again(config, project.folder).hash == config.hash
        config.activate()
        assert gin.get_configurable(mine.run)() == (24, object)
    finally:
        mine.forget()


def test_dataclass_factories(project: Project) -> None:
    source = """
from dataclasses import dataclass, field
from modlib.components import component

@component("run", "{m}", name="{m}_run")
@dataclass(frozen=True)
class Run:
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    other: object = field(default_factory=object)
"""
    mine = Project(project.folder, source)
    try:
        config = mine.load(f"import {mine.module}\nRUN.sizes = [1, 2]", whole=False)
        assert config.resolved[f"{mine.run}.sizes"] == [1, 2]
        assert config.resolved[f"{mine.run}.other"] == "builtins.object object"
        config.activate()
        assert gin.get_configurable(mine.run)().sizes == [1, 2]
    finally:
        mine.forget()
