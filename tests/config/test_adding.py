"""`+=`: a file adds to a list that another one sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.config import load
from modlib.runtime.errors import ConfigError

TINY = "debug/tiny.gin"
DEFAULT = ["@RichProgress", "@JSONL", "@TensorBoard"]
TRACKING = ["tracking/wandb.gin", "tracking/csv.gin", "tracking/rich_results.gin"]


def subscribers(*files: str | Path, params: tuple[str, ...] = ()) -> object:
    return load(files, params).resolved["train.subscribers"]


def test_any_number_of_files_combine_in_any_order_and_change_no_number() -> None:
    assert subscribers(TINY, *TRACKING) == [*DEFAULT, "@WandB", "@CSV", "@RichResults"]
    assert subscribers(TINY, *reversed(TRACKING)) == [*DEFAULT, "@RichResults", "@CSV", "@WandB"]
    assert load([TINY, *TRACKING]).hash == load([TINY]).hash


def test_what_is_there_is_not_added_again(tmp_path: Path) -> None:
    (tmp_path / "config.gin").write_text(load([TINY, "tracking/csv.gin"]).text)
    assert subscribers(tmp_path / "config.gin", "tracking/csv.gin", "tracking/csv.gin") == [*DEFAULT, "@CSV"]


def test_a_list_that_a_later_file_replaces_is_added_to_from_there() -> None:
    assert subscribers(TINY, "tracking/quiet.gin", "tracking/rich_results.gin") == [
        "@DummyProgress",
        "@JSONL",
        "@TensorBoard",
        "@RichResults",
    ]


def test_the_command_line_a_block_and_a_macro_add_too(tmp_path: Path) -> None:
    assert subscribers(TINY, params=("train.subscribers+=[@CSV]",)) == [*DEFAULT, "@CSV"]
    (tmp_path / "block.gin").write_text(
        "include 'debug/tiny.gin'\nALL = [@CSV]\nALL += [@RichResults]\ntrain:\n    subscribers += %ALL\n"
    )
    config = load([tmp_path / "block.gin"])
    assert config.resolved["train.subscribers"] == [*DEFAULT, "@CSV", "@RichResults"]
    (tmp_path / "again.gin").write_text(config.text)
    assert load([tmp_path / "again.gin"]).resolved == config.resolved


def test_the_origin_names_every_file() -> None:
    origins = load([TINY, "tracking/csv.gin"], ["train.subscribers+=[@RichResults]"]).provenance["train.subscribers"]
    assert [origin.rpartition(":")[0] or origin for origin in origins] == [
        "tracking/default.gin",
        "tracking/csv.gin",
        "--gin_param #1",
    ]


@pytest.mark.parametrize(
    ("files", "param", "problem"),
    [
        (
            ["tracking/csv.gin", TINY],
            None,
            "train.subscribers += adds to what is set before, and nothing sets it before",
        ),
        ([TINY], "LR += [1.0]", "+= adds items to a list, and 0.001 is float; use ="),
        ([TINY], "train.subscribers += @CSV", "+= adds items to a list, and @CSV is a component; use ="),
    ],
)
def test_what_cannot_be_added(files: list[str], param: str | None, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(files, [param] if param else [])
    assert problem in str(error.value)
