"""Every experiment: its recipes are as they were locked and build, its claims are met or marked as not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.checkpointing.writing import save
from modlib.cli.repeat.recipes import Paper, papers
from modlib.config import load
from modlib.models.gpt2 import GPT2
from modlib.tracking.claims import COMPUTED, from_json

PAPERS = papers()
RECIPES = [
    # the first of each paper by default, since a plan of a large model takes a second
    pytest.param(paper, recipe, id=f"{paper.name}/{recipe}", marks=[pytest.mark.slow] if number else [])
    for paper in PAPERS
    for number, recipe in enumerate(paper.recipes)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small model that fine-tuning begins with, untrained."""
    model = GPT2(
        vocab_size=99, seq_len=4, num_layers=2, num_heads=4, dim=128, activation="relu", bias=False,
        tie_embeddings=False,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("base"), step=5000, model=model).path


@pytest.mark.parametrize(("paper", "recipe"), RECIPES)
def test_a_recipe_is_as_locked_and_its_claims_hold(paper: Paper, recipe: str, base: Path, tmp_path: Path) -> None:
    """Builds the model on meta, with the plan and the script for the machines that the recipe asks for."""
    from modlib.cli.repeat.measuring import computed, recipe_plan
    from modlib.cli.start.planning import place_of
    from modlib.cli.start.slurm import job_script
    from modlib.launching.slurm import Slurm

    config = paper.config(recipe)
    drifted = [f"{paper.name}/{recipe}: {one}" for one in paper.drifted(recipe, config) if one.science]
    assert not drifted, "\n".join(
        ["a locked recipe is not what it was; if this is meant: modlib verify --lock all", *drifted]
    )
    claims = [claim for claim in paper.expected.claims if claim.recipe == recipe and claim.kind in COMPUTED]
    if "CheckpointedModel.checkpoint_path" in config.resolved:  # goes on from a run of ours, which is not here
        config = load([paper.path / recipe], [f"CHECKPOINT='{base}'"])
    if not claims:
        assert recipe_plan(config).parameters["total"] > 0
    values = computed(config, claims) if claims else {}
    place = place_of(config, None)
    if isinstance(place, Slurm):
        assert f"--nodes={place.nodes}" in job_script(place, tmp_path / "run")
    wrong = [f"{claim.name}: {values[claim.name]}, not {claim.expected}" for claim in claims
             if not claim.holds(values[claim.name])]  # fmt: skip
    assert not wrong


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_a_folder_is_complete(paper: Paper) -> None:
    assert set(paper.locks) == set(paper.recipes), "lock.json has other recipes: modlib verify --lock all"
    readme = (paper.path / "README.md").read_text()
    assert "modlib verify" in readme or "launch.py" in readme
    about_runs = {claim.name for claim in paper.expected.claims if claim.kind == "run"}
    for path in (paper.path / "results").glob("*.json"):
        assert f"{path.stem}.gin" in paper.recipes, f"{path} is of no recipe"
        result = paper.result(f"{path.stem}.gin")
        assert result is not None
        assert set(result["values"]) <= about_runs, f"{path} has values that no claim asks for; record it again"
        assert {"date", "machine", "git_commit", "config_hash", "data", "versions", "world_size"} <= set(result)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_recorded_values_are_of_the_recipe_as_it_is_locked(paper: Paper) -> None:
    results = {recipe: result for recipe in paper.recipes if (result := paper.result(recipe)) is not None}
    stale = [f"{paper.name}/{recipe}: {one}" for recipe, result in results.items()
             for one in paper.changes_since(recipe, result)]  # fmt: skip
    assert not stale, "\n".join(["recorded of a recipe that is another one now; run it again and record it", *stale])


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_recorded_values_hold(paper: Paper) -> None:
    for claim in paper.expected.claims:
        result = paper.result(claim.recipe) if claim.kind == "run" else None
        if result is not None:
            assert claim.name in result["values"], f"{claim.name} is not measured by the recorded run of {claim.recipe}"
            kept = result["values"][claim.name]
            assert kept["question"] == claim.question, f"{claim.name} was measured for another question"
            assert claim.holds(from_json(kept["value"])), f"{claim.name}: {kept['value']}, not {claim.expected}"
