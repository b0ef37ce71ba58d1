"""The page of what works together is what running gives, and holds nothing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compatibility import architectures, tokenizers
from tests.compatibility.__main__ import PAGE, line, versions


@pytest.mark.parametrize("family", tokenizers.FAMILIES)
def test_every_family_has_the_librarys_ids_and_its_line_in_the_page(family: str, tmp_path: Path) -> None:
    row = tokenizers.row(family, tmp_path / "tokenizer")
    assert row.ids == f"{len(tokenizers.TEXTS)} of {len(tokenizers.TEXTS)}"
    assert not any("WRONG" in cell for cell in row)
    page = PAGE.read_text()
    if versions() in page:  # with other libraries, cells may be others
        assert line(row) in page, "run python -m tests.compatibility"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3"])
def test_an_architecture_trains_resumes_and_is_read_elsewhere(name: str, tmp_path: Path) -> None:
    assert architectures.row(name, tmp_path) == architectures.Row(
        name, "yes", "to the bit", "yes", "equal logits", "yes"
    )


def test_the_page_names_everything_that_is_run() -> None:
    page = PAGE.read_text()
    for name in (*tokenizers.FAMILIES, *architectures.ARCHITECTURES):
        assert f"| {name.replace('|', chr(92) + '|')} |" in page, f"{name}: run python -m tests.compatibility"
    assert "WRONG" not in page
    assert "wrong" not in page
