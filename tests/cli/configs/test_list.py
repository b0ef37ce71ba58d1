"""`modlib list`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from modlib.cli.main import app
from modlib.components import known_components


def run(*words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["list", *words])
    assert done.exit_code == code, done.output
    return done


def test_every_component_is_listed() -> None:
    found = json.loads(run("--json").stdout)
    shipped = {name for name, entry in known_components().items() if entry.module.startswith(("modlib", "torch"))}
    assert shipped <= {one["name"] for one in found}
    for one in found:
        assert set(one) == {"type", "variant", "name", "selector", "doc", "defined", "runtime_args", "parameters"}


def test_one_component() -> None:
    (one,) = json.loads(run("AdamW", "--json").stdout)
    assert one["selector"] == "optimizer.AdamW"
    assert one["variant"] == "adam_w"
    assert one["runtime_args"] == ["params"]
    assert one["parameters"]["betas"]["default"] == "(0.9, 0.999)"
    assert one["parameters"]["fused"] == {"type": "bool | None", "required": False, "default": "None"}
    assert one["defined"].rpartition(":")[2].isdigit()


@pytest.mark.parametrize("pattern", ["adam_w", "ADAMW", "AdamW"])
def test_pattern_in_any_case(pattern: str) -> None:
    assert [one["name"] for one in json.loads(run(pattern, "--json").stdout)] == ["AdamW"]


def test_pattern_is_a_part() -> None:
    names = {one["name"] for one in json.loads(run("cosine", "--json").stdout)}
    assert {"CosineAnnealingLR", "LinearWarmupCosine"} <= names


def test_lines_when_piped() -> None:
    (line,) = run("StepLR").stdout.splitlines()
    name, kind, parameters, doc, defined = line.split("\t")
    assert (name, kind) == ("StepLR", "scheduler/step_lr")
    assert parameters.startswith("step_size: int; gamma: float = 0.1")
    assert doc
    assert "lr_scheduler.py:" in defined


def test_nothing_matches() -> None:
    done = run("AdmaW", code=1)
    assert "no component matches 'AdmaW'. Did you mean AdamW" in done.stderr
    assert "`modlib list` shows all" in run("zzzzzzzzz", code=1).stderr
