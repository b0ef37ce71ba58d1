"""docs/migrating.md is the table, and the table names parameters that exist."""

from __future__ import annotations

import inspect

from modlib.components import load_component
from modlib.migration.page import page
from modlib.migration.rows import ROWS, Param
from tests.launching_command import ROOT


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "migrating.md").read_text() == page()


def test_every_parameter_of_the_table_exists() -> None:
    for row in ROWS.values():
        names = [rule.name for rule in row.fields.values() if isinstance(rule, Param)]
        for name in [name for name in names if not name.isupper()]:
            owner, _, parameter = name.partition(".")
            assert parameter in inspect.signature(load_component(owner).target).parameters, name  # type: ignore[arg-type]
