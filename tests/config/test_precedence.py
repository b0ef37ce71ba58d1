"""Several gin files: one that has no effect is an error, and the run is named after the file that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from modlib.config import load
from modlib.runtime.errors import ConfigError

TINY = "debug/tiny.gin"


def problems(files: Sequence[str | Path], params: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(files, params)
    return caught.value.problems


def name_file(*files: str | Path) -> str:
    found = load(files).run_file
    assert found is not None
    return found.name


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_part_before_the_runs_file_has_no_effect_and_is_told_its_place() -> None:
    assert problems(["optim/muon.gin", "quickstart.gin"]) == [
        "--gin_file #1: optim/muon.gin has no effect: what it sets is set again by the files after it; give it after "
        "quickstart.gin"
    ]
    assert load(["quickstart.gin", "optim/muon.gin"]).resolved["train.optimizer"] == "@MuonWithAdamW"


def test_the_place_is_the_first_where_it_has_an_effect(tmp_path: Path) -> None:
    change = written(tmp_path, "change.gin", "LR = 5e-4\n")
    (problem,) = problems([change, TINY, "tracking/csv.gin"])
    assert problem.endswith("; give it after debug/tiny.gin")


def test_what_a_file_sets_may_be_read_by_nothing_wherever_it_is_given(tmp_path: Path) -> None:
    adam = written(tmp_path, "adamw.gin", "AdamW.weight_decay = 0.2\n")
    (problem,) = problems([TINY, adam, "optim/muon.gin"])
    assert problem == (
        f"--gin_file #2: {adam} has no effect: nothing in this run reads what it sets; remove it, or give the file "
        "that uses it"
    )


def test_a_file_that_is_given_twice() -> None:
    (problem,) = problems([TINY, TINY])
    assert problem.endswith("debug/tiny.gin has no effect: it is given again as --gin_file #2; leave one of them out")


def test_one_line_that_counts_is_enough(tmp_path: Path) -> None:
    part = written(tmp_path, "part.gin", "LR = 5e-4\nGPT2.qk_norm = True\n")
    assert load([part, TINY]).resolved["GPT2.qk_norm"] is True


def test_flags_and_axes_may_override_a_whole_file(tmp_path: Path) -> None:
    change = written(tmp_path, "change.gin", "LR = 5e-4\n")
    assert load([TINY, change], ["LR=1e-4"]).resolved["AdamW.lr"] == 1e-4
    swept = load([TINY, change], (), [('--sweep "LR=[1e-4]"', "LR=1e-4")])
    assert swept.resolved["AdamW.lr"] == 1e-4
    (problem,) = problems([change, TINY], ["LR=1e-4"])  # the file alone would have had none either
    assert problem.endswith("; give it after debug/tiny.gin")


def test_a_flag_may_be_what_gives_a_file_its_effect(tmp_path: Path) -> None:
    sgd = written(tmp_path, "sgd.gin", "SGD.lr = 0.1\n")
    config = load([TINY, sgd], ["train.optimizer=@SGD"])
    assert config.resolved["SGD.lr"] == 0.1


def test_a_file_that_is_added_to_counts() -> None:
    config = load([TINY, "tracking/csv.gin", "tracking/rich_results.gin"])
    assert config.resolved["train.subscribers"][-2:] == ["@CSV", "@RichResults"]


def test_a_file_that_brings_components_counts(tmp_path: Path) -> None:
    (tmp_path / "brings_for_precedence.py").write_text("")
    brings = written(tmp_path, "brings.gin", "import brings_for_precedence\nLR = 1.0\n")
    assert load([brings, TINY]).imports == ("brings_for_precedence",)


def test_a_site_profile_counts_wherever_the_run_goes(tmp_path: Path) -> None:
    site = written(tmp_path, "site.gin", "Slurm.partition = 'long'\n")
    for files in ([TINY, site], [site, TINY]):
        assert load(files).resolved["Slurm.partition"] == "long"


def test_a_run_is_named_after_the_file_that_describes_a_whole_run(tmp_path: Path) -> None:
    site = written(tmp_path, "site.gin", "Slurm.partition = 'long'\n")
    assert name_file(TINY) == "tiny.gin"
    assert name_file(TINY, "optim/muon.gin") == "tiny.gin"
    assert name_file(site, TINY) == "tiny.gin"
    mine = written(tmp_path, "mine.gin", f"include '{TINY}'\nLR = 5e-4\n")
    assert name_file(mine, "optim/muon.gin") == "mine.gin"


def test_of_two_whole_runs_the_later_gives_the_name(tmp_path: Path) -> None:
    mine = written(tmp_path, "mine.gin", "include 'gpt2.gin'\nGPT2.qk_norm = True\n")
    assert name_file(mine, "quickstart.gin") == "quickstart.gin"
    assert name_file("quickstart.gin", mine) == "mine.gin"


def test_of_parts_alone_the_first_gives_the_name(tmp_path: Path) -> None:
    text = load([TINY]).text
    assert "    seed = %SEED\n" in text
    most = written(tmp_path, "most.gin", text.replace("    seed = %SEED\n", "", 1))
    rest = written(tmp_path, "rest.gin", "train.seed = %SEED\n")
    assert name_file(most, rest) == "most.gin"
    assert name_file(rest, most) == "rest.gin"
