"""Old names in gin files, parameters, scopes and records: what they mean now, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from modlib.components import SHIPPED_RENAMES, Rename, rename_problem, renames
from modlib.config import diff, load
from modlib.config.lock import drift, lock_entry
from tests.config.projects import COMPONENTS, Project

RENAMES = (
    COMPONENTS
    + """

from modlib.components import renamed

renamed("OldModel", "Model", since="0.2")
renamed("OlderModel", "OldModel", since="0.1")
renamed("Model.width", "Model.dim", since="0.2")
renamed("Model.drop_rate", "Model.dropout", since="0.3")
renamed("OldModel.drop", "OldModel.drop_rate", since="0.1")
renamed("OldEval", "Eval", since="0.2")
"""
)


@pytest.fixture
def renaming(tmp_path: Path) -> Iterator[Project]:
    """A user's project whose components had other names before."""
    made = Project(tmp_path, RENAMES)
    yield made
    made.forget()


def test_a_file_with_old_names_is_the_file_with_the_new_ones(
    renaming: Project, caplog: pytest.LogCaptureFixture
) -> None:
    old = """
        RUN.model = @OlderModel
        OldModel.width = 16
        RUN.evaluators = [@code/OldEval]
        code/OldEval.depth = 3
        model.OlderModel:
            drop = 0.25
    """
    new = """
        RUN.model = @Model
        Model.dim = 16
        RUN.evaluators = [@code/Eval]
        code/Eval.depth = 3
        Model.dropout = 0.25
    """
    with caplog.at_level(logging.WARNING, "modlib"):
        read_old = renaming.load(old)
    told = [record.getMessage().replace(f"{renaming.folder}/", "") for record in caplog.records]
    assert told == [
        "a.gin:5: OlderModel is called Model since 0.1; write Model",
        "a.gin:6: OldModel is called Model since 0.2; write Model",
        "a.gin:6: Model.width is called Model.dim since 0.2; write Model.dim",
        "a.gin:7: OldEval is called Eval since 0.2; write Eval",
        "a.gin:8: OldEval is called Eval since 0.2; write Eval",
        "a.gin:10: OlderModel is called Model since 0.1; write Model",
        "a.gin:10: Model.drop is called Model.dropout since 0.1; write Model.dropout",
    ]
    caplog.clear()
    read_new = renaming.load(new)
    assert not caplog.records
    assert read_old.hash == read_new.hash
    assert read_old.text == read_new.text
    assert read_old.resolved["Model.dim"] == 16
    assert read_old.resolved["code/Eval.depth"] == 3
    assert not any("Old" in name for name in read_old.resolved)


def test_old_names_on_the_command_line(renaming: Project, caplog: pytest.LogCaptureFixture) -> None:
    config = renaming.load(params=["OldModel.width=32", "code/OldModel.drop=0.5", "RUN.model=@code/OldModel"])
    assert config.resolved["code/Model.dim"] == 32
    assert config.resolved["code/Model.dropout"] == 0.5
    told = [record.getMessage() for record in caplog.records]
    assert "--gin_param #1: Model.width is called Model.dim since 0.2; write Model.dim" in told
    assert "--gin_param #3: OldModel is called Model since 0.2; write Model" in told


def test_the_last_binding_wins_whichever_name_it_uses(renaming: Project) -> None:
    config = renaming.load("Model.dim = 4\nOldModel.width = 5\n")
    assert config.resolved["Model.dim"] == 5
    assert [value for _, value in config.overridden["Model.dim"]] == [8, 4]
    assert renaming.load("OldModel.width = 5\nModel.dim = 4\n").resolved["Model.dim"] == 4


def test_a_wrong_value_under_an_old_name_is_told_with_the_new_one(renaming: Project) -> None:
    (problem,) = renaming.problems("OldModel.width = 'wide'\n")
    assert problem.startswith("a.gin:4: Model.dim = 'wide' is str, expected int")


def test_records_with_old_names_compare_by_meaning(renaming: Project) -> None:
    config = renaming.load("Model.dim = 16\n")
    entry = lock_entry(config)
    before = {"hash": "", "other": {}, "science": {}}
    for name, value in entry["science"].items():
        before["science"][name.replace("Model.dim", "OlderModel.width")] = value.replace("@Model", "@OlderModel")
    before["other"] = dict(entry["other"])
    assert drift(before, entry) == []
    before["science"]["OlderModel.width"] = "17"
    assert [str(one) for one in drift(before, entry)] == ["Model.dim: 17 -> 16"]


def test_a_run_folder_of_before_the_rename_is_the_same_run(renaming: Project, tmp_path: Path) -> None:
    config = renaming.load("Model.dim = 16\n")
    run = tmp_path / "runs" / "old"
    config.to_run_folder(run)
    text = (run / "config.gin").read_text().replace("@Model", "@OldModel")
    text = text.replace("\nModel:\n    dim = 16", "\nOldModel:\n    width = 16")
    assert text.count("OldModel") == 2
    assert "width = 16" in text
    (run / "config.gin").write_text(text)
    assert load([run / "config.gin"]).hash == config.hash
    assert diff(run, config) == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('renamed("Gone", "NoSuch", since="1")', "NoSuch must be a component; correct the name"),
        ('renamed("Norm", "Model", since="1")', "Norm must not be a component any more, but"),
        ('renamed("Model.size", "Model.no_such", since="1")', "no_such must be a parameter of Model (dim, "),
        ('renamed("Model.bias", "Model.dim", since="1")', "bias must not be a parameter of Model any more, but is"),
        ('renamed("Model.size", "Model", since="1")', "must name two components, or two parameters"),
        ('renamed("Norm.size", "Model.dim", since="1")', "both must be parameters of one component"),
        ('renamed("Other.size", "Other.dim", since="1")', "Other must be a component; correct the name"),
    ],
)
def test_a_rename_to_what_is_not_there_is_refused(tmp_path: Path, line: str, text: str) -> None:
    project = Project(tmp_path, COMPONENTS + f"\nfrom modlib.components import renamed\n\n{line}\n")
    try:
        problem = project.problems()[0]
        assert text in problem, problem
        assert "a.gin:1: cannot import" in problem
    finally:
        project.forget()


def test_renames_of_a_module_end_with_it(tmp_path: Path) -> None:
    project = Project(tmp_path, RENAMES)
    project.load()
    assert "OldModel" in renames()
    project.forget()
    assert "OldModel" not in renames()


def test_shipped_renames_lead_to_what_is_there() -> None:
    """Every row of modlib.components.SHIPPED_RENAMES, to its end."""
    for entry in SHIPPED_RENAMES:
        assert rename_problem(entry) is None
        seen = [entry.old]
        while entry.new in renames():
            entry = renames()[entry.new]
            assert entry.old not in seen, f"{entry.old} leads to itself"
            seen.append(entry.old)
        assert rename_problem(entry) is None


def test_unknown_shipped_rows_would_be_found() -> None:
    assert rename_problem(Rename("GPT", "GPT2", "0.1")) is None
    assert rename_problem(Rename("GPT2.n_embd", "GPT2.dim", "0.1")) is None
    assert "NoSuchModel must be a component" in str(rename_problem(Rename("GPT", "NoSuchModel", "0.1")))
    assert "no_such must be a parameter of GPT2" in str(rename_problem(Rename("GPT2.n_embd", "GPT2.no_such", "0.1")))
