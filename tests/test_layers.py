"""Layers point down: a package imports only from layers below its own, also lazily and for type checking."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "runtime": 1.0, "components": 1.1, "config": 1.2,
    "nn": 2, "data": 2, "optim": 2, "distributed": 2,
    "models": 3, "checkpointing": 3, "tracking": 3,
    "training": 4, "inference": 4, "launching": 4,
    "cli": 5,
}  # fmt: skip


def room(module: str) -> str | None:
    """`modlib.data.loader` -> `data`; None for what is not ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "modlib" and len(parts) > 1 else None


def imports(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: write absolute imports"
            if node.module == "modlib":
                found += [(node.lineno, f"modlib.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module))
    return found


FILES = sorted((ROOT / "modlib").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None or own == "__init__":
        own_layer = 0.0
    else:
        assert own in LAYERS, f"{path} is in no layer"
        own_layer = LAYERS[own]
    for line, module in imports(path):
        other = room(module)
        if other is None or other in (own, "__version__"):
            continue
        assert LAYERS[other] < own_layer, f"{path.relative_to(ROOT)}:{line}: {own} (layer {own_layer}) imports {module}"


def test_every_package_has_a_layer() -> None:
    packages = {path.name for path in (ROOT / "modlib").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages <= set(LAYERS)


def test_packages_are_one_level_deep() -> None:
    deep = [path for path in FILES if len(path.relative_to(ROOT / "modlib").parts) > 2]
    assert deep == []
