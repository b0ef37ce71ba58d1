from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.config.projects import Project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A user's project in a folder of its own."""
    made = Project(tmp_path)
    yield made
    made.forget()
