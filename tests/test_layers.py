"""Layers point down: a package imports only from layers below its own, also lazily and for type checking."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "moved": -1.0, "version": -1.0, "wheel": 0.0,
    "runtime": 1.0, "components": 1.1, "config": 1.2, "migration": 1.3,
    "nn": 2, "data": 2, "optim": 2, "distributed": 2,
    "models": 3, "checkpointing": 3, "tracking": 3,
    "training": 4, "inference": 4, "launching": 4,
    "cli": 5, "door": 6, "__main__": 6, "__init__": 7,
}  # fmt: skip


def room(module: str) -> str | None:
    """`modlib.data.batches.loader` -> `data`; None for what is not ours."""
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


def test_imports_point_down() -> None:
    for path in FILES:
        imports_only_from_below(path)


def imports_only_from_below(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own is None or own in LAYERS, f"{path} is in no layer"
    own_layer = LAYERS[own or "__init__"]
    for line, module in imports(path):
        other = room(module)
        if other is None or other == own:
            continue
        assert LAYERS[other] < own_layer, f"{path.relative_to(ROOT)}:{line}: {own} (layer {own_layer}) imports {module}"


def test_every_package_has_a_layer() -> None:
    packages = {path.name for path in (ROOT / "modlib").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages <= set(LAYERS)


def test_folders_are_one_level_deep_and_two_where_a_room_is_large() -> None:
    deep = {path.relative_to(ROOT / "modlib").parts[:-1] for path in FILES}
    assert {parts[0] for parts in deep if len(parts) > 1} == {"cli", "data"}
    assert max(map(len, deep)) == 2


# Inside data/, a folder imports only from those left of it; what is directly in data/ is used by all.
DATA_FOLDERS = (
    "", "packed", "text", "corpora", "tokenizers", "datasets", "batches", "packing", "inspecting",
    "rewriting", "foreign",
)  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "modlib" / "data").rglob("*.py")), ids=lambda path: path.stem)
def test_folders_of_data_import_in_order(path: Path) -> None:
    def place(parts: tuple[str, ...]) -> int:
        return DATA_FOLDERS.index(parts[2] if len(parts) > 3 or parts[-1] in DATA_FOLDERS else "")

    own = path.relative_to(ROOT).with_suffix("").parts
    for line, module in imports(path):
        if module.startswith("modlib.data."):
            other = tuple(module.split("."))
            assert place(other) <= place(own), f"{path.relative_to(ROOT)}:{line}: imports {module}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Neither at the top nor lazily: of files in a circle, none can be understood, or moved, alone."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        arrows[own] = {module for module in imported_files(path, modules) if module != own}
    while free := {module for module, others in arrows.items() if not others & arrows.keys()}:
        arrows = {module: others for module, others in arrows.items() if module not in free}
    # what only points into a circle is no part of it
    while entries := arrows.keys() - {module for others in arrows.values() for module in others}:
        arrows = {module: others for module, others in arrows.items() if module not in entries}
    assert sorted(arrows) == []


def imported_files(path: Path, modules: set[str]) -> set[str]:
    """The modules of ours that a file imports: `from modlib.data import cache` is the file cache, not the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def test_a_file_name_stands_for_one_thing() -> None:
    """Two rooms have a file of the same name only where one is a command and the other the part that it calls."""
    places: dict[str, list[Path]] = {}
    for path in FILES:
        if path.name != "__init__.py":
            places.setdefault(path.name, []).append(path.relative_to(ROOT / "modlib"))
    twice = {name: [path for path in paths if path.parts[0] != "cli"] for name, paths in places.items()}
    assert {name: paths for name, paths in twice.items() if len(paths) > 1} == {}
