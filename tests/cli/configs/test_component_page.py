"""The catalogue as a page: nothing of it is left without a word, and what is there is what the docstrings say."""

from __future__ import annotations

import inspect
import re

import pytest

from modlib.cli.configs.component_page import argument_lines, body, page
from modlib.cli.configs.list import describe
from modlib.components import load_component
from tests.test_catalogue import CATALOGUE

ENTRIES = {entry["name"]: entry for entry in describe("") if entry["defined"].startswith(("modlib/", "/"))}
OURS = [name for name, entry in ENTRIES.items() if entry["defined"].startswith("modlib/")]


def section(name: str) -> str:
    """One component's part of the page."""
    return page([ENTRIES[name]]).partition(f"### {name}\n")[2]


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_says_what_it_is(name: str) -> None:
    rows = [line for line in section(name).splitlines() if line.startswith("| `")]
    entry = ENTRIES[name]
    assert [row.split("`")[1] for row in rows] == [*entry["parameters"], *entry["runtime_args"]]
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.parametrize("name", [name for name in OURS if ENTRIES[name]["type"] in CATALOGUE])
def test_errors_that_its_constructor_raises_are_told(name: str) -> None:
    target = load_component(name).target
    constructor = vars(target).get("__init__") if inspect.isclass(target) else target
    if constructor is None or not inspect.isfunction(constructor):
        return  # inherited, and so documented there
    told = argument_lines(target, "Raises:")
    for error in set(re.findall(r"raise (\w+Error)\(", inspect.getsource(constructor))):
        assert error in told, f"{name} needs {error} under Raises"


def test_a_section_has_the_whole_docstring() -> None:
    text = section("ComposedInitializer")
    assert "[modlib/models/initialization.py](../modlib/models/initialization.py)" in text
    assert "\nEvery parameter is claimed by exactly one rule; one that no rule claims, or two do, is an error" in text
    assert (
        "| `std` | `float \\| 'auto'` | `0.02` | Of the normal distribution, or \"auto\" for sqrt(2 / (5 * dim)). |"
        in text
    )
    assert "\nRaises `ConfigError`: Unknown type, a std that is negative or not finite" in text
    assert "\nSource: Radford et al. 2019, GPT-2, section 2.3 (scaling);" in text
    assert body(load_component("StepLR").target).startswith("Notice that such decay")


def test_torchs_own_classes_are_described_by_torch() -> None:
    text = section("AdamW")
    assert "[torch.optim.AdamW](https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html)" in text
    assert "| `weight_decay` | `float` | `0.01` | weight decay coefficient (default: 1e-2) |" in text
    assert "from the paper On the Convergence of Adam and Beyond (default: False) |" in text
    whole = page([ENTRIES["StepLR"], ENTRIES["LambdaLR"]])
    assert whole.count("Stepped once after every optimizer step, which is what torch's own mean by an epoch.") == 1
    assert not re.search(r":\w+:`|\.\. math", page([entry for entry in ENTRIES.values() if entry["type"] in CATALOGUE]))


def test_a_users_component_is_described_too() -> None:
    text = section("catalogue_row")  # of tests/test_catalogue.py
    assert re.search(r"\n`run/catalogue_row`, `\S*tests/test_catalogue.py`\n\nThe component under test.\n", text)
