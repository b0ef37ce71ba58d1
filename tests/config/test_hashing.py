"""The hash of a configuration: its version, hashes of the first rule, and parameters that came later."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modlib import components
from modlib.config import Config, load
from modlib.config.hashing import GLOBAL_BATCH, canonical, digits_of, is_hash_of
from modlib.config.lock import drift, lock_entry
from modlib.runtime.errors import ConfigError
from tests.config.projects import COMPONENTS, Project

SOURCE = COMPONENTS.replace('name="{m}_run"', 'name="later_run"')
LATER = SOURCE.replace("anything=None,", "window: int | None = None, gain: float = 1, anything=None,").replace(
    'runtime_args=("device",)', 'runtime_args=("device",), as_before={"window": None, "gain": 1}'
)


def of_source(folder: Path, source: str, *params: str) -> Config:
    folder.mkdir()
    project = Project(folder, source)
    project.run = "later_run"
    try:
        return project.load(params=params)
    finally:
        project.forget()


def test_a_stored_hash_carries_its_version() -> None:
    config = load(["debug/tiny.gin"])
    assert re.fullmatch("[0-9a-f]{64}", config.hash)
    assert config.identity == f"2:{config.hash}"
    assert digits_of(config.identity) == digits_of(config.hash) == config.hash
    assert config.is_of(config.identity)
    assert not config.is_of(f"3:{config.hash}")  # of a newer modlib, whose rule nobody knows here
    assert not config.is_of(None)


def test_a_hash_of_the_first_rule_left_the_global_batch_open_or_gave_it() -> None:
    values = {GLOBAL_BATCH: 4, "AdamW.lr": 1e-3}
    left_open = load(["debug/tiny.gin"])
    config = left_open.with_value(GLOBAL_BATCH, 4, "of the ranks")
    assert config.hash != left_open.hash
    assert config.is_of(left_open.hash)
    assert config.is_of(config.hash)
    assert not config.is_of(left_open.identity)
    assert not config.is_of(load(["debug/tiny.gin"], ["LR=5e-4"]).hash)
    assert not is_hash_of("2:" + "0" * 64, values)


def test_a_value_that_follows_from_the_place_is_in_the_text_and_in_the_provenance() -> None:
    config = load(["debug/tiny.gin"]).with_value(GLOBAL_BATCH, 8, "4 x 1 x 2 processes")
    assert "    global_batch_size = 8\n" in config.text
    assert config.provenance[GLOBAL_BATCH] == ["4 x 1 x 2 processes"]
    assert config.overridden[GLOBAL_BATCH] == [("default", None)]


def test_the_order_of_dict_keys_and_list_or_tuple_mean_the_same() -> None:
    assert canonical({"b": (1, 2.0), "a": [None]}) == canonical({"a": (None,), "b": [1, 2.0]})
    assert canonical(1) != canonical(1.0) != canonical("1.0")


def test_a_parameter_that_came_later_changes_no_hash_where_it_does_as_before(tmp_path: Path) -> None:
    before = of_source(tmp_path / "before", SOURCE)
    after = of_source(tmp_path / "after", LATER)
    assert "Model.window" in after.resolved
    assert after.hash == before.hash
    assert after.identity == before.identity
    assert [str(one) for one in drift(lock_entry(before), lock_entry(after)) if one.science] == []
    given = of_source(tmp_path / "given", LATER, "Model.window=None", "Model.gain=1.0")
    assert given.hash == before.hash


def test_any_other_value_of_it_is_another_run(tmp_path: Path) -> None:
    before = of_source(tmp_path / "before", SOURCE)
    other = of_source(tmp_path / "other", LATER, "Model.window=16")
    assert other.hash != before.hash
    assert [str(one) for one in drift(lock_entry(before), lock_entry(other)) if one.science] == [
        "Model.window: (absent) -> 16"
    ]


def test_a_later_default_that_does_otherwise_is_another_run(tmp_path: Path) -> None:
    before = of_source(tmp_path / "before", SOURCE)
    changed = LATER.replace("window: int | None = None", "window: int | None = 128")
    assert of_source(tmp_path / "changed", changed).hash != before.hash


def test_a_later_parameter_that_is_not_declared_is_another_run(tmp_path: Path) -> None:
    before = of_source(tmp_path / "before", SOURCE)
    silent = LATER.replace(', as_before={"window": None, "gain": 1}', "")
    assert silent != LATER
    assert of_source(tmp_path / "silent", silent).hash != before.hash


def test_as_before_names_parameters_that_are_there(tmp_path: Path) -> None:
    wrong = LATER.replace('as_before={"window"', 'as_before={"windows"')
    with pytest.raises(ConfigError, match=r"declares the argument 'windows', which is not in its signature"):
        of_source(tmp_path / "wrong", wrong)


def test_torchs_classes_have_later_parameters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(["debug/tiny.gin"])
    rows = {"AdamW": {"maximize": False, "of_a_newer_torch": None}}
    monkeypatch.setattr(components, "TORCH_AS_BEFORE", rows)
    monkeypatch.delitem(components.CATALOGUE, "AdamW")
    components._torch_components.cache_clear()
    try:
        after = load(["debug/tiny.gin"])
        assert before.science - after.science == {"AdamW.maximize"}
        assert "AdamW.maximize" in load(["debug/tiny.gin"], ["AdamW.maximize=True"]).science
    finally:
        monkeypatch.undo()
        components._torch_components.cache_clear()
        components.CATALOGUE.pop("AdamW", None)
