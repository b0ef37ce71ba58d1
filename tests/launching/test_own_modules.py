"""Which modules are found: loaded and not yet loaded ones, from each kind of place; installed ones never."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.config import Config, load
from modlib.launching.own_modules import own_modules
from tests.launching.projects import importing, new_project, write


@pytest.fixture(scope="module")
def config() -> Config:
    return load(["debug/tiny.gin"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return new_project(tmp_path / "source")


@pytest.fixture
def found(config: Config, source: Path) -> Callable[..., dict[str, str]]:
    def find(folder: Path, *names: str) -> dict[str, str]:
        """(root/place) by name of what a config needs that imports these modules."""
        with importing(config, folder, *names) as active:
            return {module.name: str(module.root / module.place) for module in own_modules(source, active)}

    return find


def test_a_module_and_all_that_it_imports_anywhere(tmp_path: Path, found: Callable[..., dict[str, str]]) -> None:
    user = tmp_path / "user"
    lazily = """
import json, numpy, numpy.linalg, not_there_at_all
def later(x):
    try:
        match x:
            case 1:
                import lazy_one
    except KeyError:
        from lazy_package import part, name_in_init
    else:
        with open(x):
            from lazy_package.deep.deeper import something
class C:
    async def f(self):
        while True:
            import lazy_two as two
"""
    write(
        user,
        {
            "mine.py": "import loaded_one\nif False:\n" + "".join(f"    {line}\n" for line in lazily.splitlines()),
            "loaded_one.py": "",
            "lazy_one.py": "from lazy_package import cycle\n",
            "lazy_two.py": "def broken(:\n",
            "unused.py": "",
            "lazy_package/part.py": "from . import sibling\nfrom .deep import near\nfrom ..... import too_far\n",
            "lazy_package/sibling.py": "",
            "lazy_package/cycle.py": "import lazy_one\n",
            "lazy_package/unused.py": "",
            "lazy_package/deep/near.py": "",
            "lazy_package/deep/deeper.py": "something = 1\n",
        },
    )
    (user / "lazy_package" / "__init__.py").write_text("name_in_init = 1\n")
    (user / "lazy_package" / "deep" / "__init__.py").write_text("")
    modules = found(user, "mine")
    assert sorted(modules) == [
        "lazy_one",
        "lazy_package",
        "lazy_package.cycle",
        "lazy_package.deep",
        "lazy_package.deep.deeper",
        "lazy_package.deep.near",
        "lazy_package.part",
        "lazy_package.sibling",
        "lazy_two",
        "loaded_one",
        "mine",
    ]
    assert modules["lazy_package"] == str(user / "lazy_package" / "__init__.py")
    assert modules["lazy_package.deep.near"] == str(user / "lazy_package" / "deep" / "near.py")
    assert "lazy_package" not in sys.modules


def test_packages_without_init_and_shared_libraries(tmp_path: Path, found: Callable[..., dict[str, str]]) -> None:
    user, suffix = tmp_path / "user", importlib.machinery.EXTENSION_SUFFIXES[0]
    write(user, {"spread/sub/mine.py": "def f():\n    import spread.sub.fast, spread.other\n", "spread/other.py": ""})
    (user / "spread" / "sub" / f"fast{suffix}").write_bytes(b"\x7fELF")
    assert found(user, "spread.sub.mine") == {
        "spread.other": str(user / "spread" / "other.py"),
        "spread.sub.fast": str(user / "spread" / "sub" / f"fast{suffix}"),
        "spread.sub.mine": str(user / "spread" / "sub" / "mine.py"),
    }


def test_installed_modules_are_not_the_users(
    tmp_path: Path, found: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither loaded nor lazily, nor through a link, nor where the environment lies inside the folder."""
    user = tmp_path / "user"
    site = user / ".venv" / "lib" / "python3.11" / "site-packages"
    write(site, {"installed.py": "", "installed_lazily.py": ""})
    write(user, {"mine.py": "import installed, linked\ndef f():\n    import installed_lazily\n"})
    (user / "linked.py").symlink_to(site / "installed.py")
    monkeypatch.syspath_prepend(str(site))
    assert sorted(found(user, "mine")) == ["mine"]


def test_helpers_from_other_folders_on_the_path_have_their_own_root(
    tmp_path: Path, found: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"lib/helper.py": "", "lib/lazy_helper.py": "", "lib/unused.py": ""})
    write(tmp_path, {"user/mine.py": "import helper\ndef f():\n    import lazy_helper\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    modules = found(tmp_path / "user", "mine")
    assert modules["helper"] == str(tmp_path / "lib" / "helper.py")
    assert modules["lazy_helper"] == str(tmp_path / "lib" / "lazy_helper.py")
    assert sorted(modules) == ["helper", "lazy_helper", "mine"]


def test_a_package_under_another_folder_name(
    tmp_path: Path, found: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable install maps a name to a folder: what counts is where Python will look for the name."""
    write(tmp_path, {"checkout/src/part.py": "VALUE = 1\n", "user/mine.py": "import mapped.part\n"})
    (tmp_path / "checkout" / "src" / "__init__.py").write_text("")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            if name != "mapped":
                return None
            folder = tmp_path / "checkout" / "src"
            return importlib.util.spec_from_file_location(
                name, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    modules = found(tmp_path / "user", "mine")
    assert modules["mapped"] == str(tmp_path / "checkout" / "mapped" / "__init__.py")
    assert modules["mapped.part"] == str(tmp_path / "checkout" / "mapped" / "part.py")


def test_the_modlib_that_runs_is_not_taken_for_the_users(tmp_path: Path, found: Callable[..., dict[str, str]]) -> None:
    write(tmp_path, {"user/mine.py": "import modlib.components\n"})
    assert sorted(found(tmp_path / "user", "mine")) == ["mine"]


@pytest.mark.slow
def test_this_projects_own_modules_are_found_with_what_they_import_later(config: Config) -> None:
    from modlib.launching.git import SOURCE

    names = {module.name for module in own_modules(SOURCE, config)}
    assert {"modlib", "modlib.config.config", "modlib.launching.own_modules"} <= names
    assert not any(name.split(".")[0] in ("torch", "numpy", "gin", "os") for name in names)
