"""Tables whose last column is a remark: readable on terminals of any width, with heads where they are piped."""

from __future__ import annotations

import pytest

from modlib.cli.table import print_remarked, remarked

COLUMNS = ("run", "state", "ETA", "loss", "why")
ROWS = [
    ["quickstart-d0fc09fb", "finished", "", "4.2000", ""],
    ["base", "died", "", "5.0000", "process 123 on host is gone and left no word; nothing was saved"],
]


def shown(width: int) -> list[str]:
    return [line.plain for line in remarked(COLUMNS, ROWS, width, {})]


def test_a_remark_goes_beside_its_row_where_there_is_room() -> None:
    assert shown(120) == [
        "run                  state     loss    why",
        "quickstart-d0fc09fb  finished  4.2000",
        "base                 died      5.0000  process 123 on host is gone and left no word; nothing was saved",
    ]


def test_a_remark_goes_below_its_row_in_90_columns() -> None:
    assert shown(90) == [
        "run                  state     loss",
        "quickstart-d0fc09fb  finished  4.2000",
        "base                 died      5.0000",
        "    process 123 on host is gone and left no word; nothing was saved",
    ]


def test_a_row_goes_below_its_name_in_30_columns() -> None:
    assert shown(30)[:4] == ["run", "  state     loss", "quickstart-d0fc09fb", "  finished  4.2000"]
    assert max(map(len, shown(30))) <= 30


def test_piped_there_is_a_head_and_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_remarked(COLUMNS, [*ROWS, ["a", "b", "c", "d", "two\nlines"]])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [list(COLUMNS), *ROWS, ["a", "b", "c", "d", "two; lines"]]
