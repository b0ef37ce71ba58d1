"""Which files are copied, from real repositories in every state that matters; what is left out is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.config import Config, load
from modlib.launching import code_files as module
from modlib.launching.code_files import CodeFiles, code_files
from modlib.launching.git import SOURCE
from tests.launching.projects import commit_all, git, importing, new_project, write

PROJECT = {"project/modlib/__init__.py", "project/launch.py", "project/gin_configs/a.gin"}


@pytest.fixture(scope="module")
def config() -> Config:
    return load(["debug/tiny.gin"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return new_project(tmp_path / "source")


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    return lambda: "\n".join(caplog.messages)


def texts(code: CodeFiles) -> dict[str, str]:
    return {name: path.read_text() for name, path in code.files.items()}


# -------------------------------------------------------------------------------------------------------- the project


def test_tracked_files_are_taken_as_they_lie_in_the_working_tree(config: Config, source: Path) -> None:
    write(source, {"deleted.py": "", "edited.py": "old\n"})
    commit_all(source)
    write(source, {"edited.py": "new\n", "staged.py": "staged\n", "untracked.py": "untracked\n", ".env": "SECRET=1"})
    git(source, "add", "staged.py")
    (source / "deleted.py").unlink()
    code = code_files(source, config)
    assert set(code.files) == PROJECT | {"project/edited.py", "project/staged.py"}
    assert texts(code)["project/edited.py"] == "new\n"
    assert code.commit == git(source, "rev-parse", "HEAD")
    assert code.python_paths == ("project",)
    assert code.sources == {"project": str(source)}
    assert (code.left_out, code.links) == ({}, {})


def test_what_no_run_needs_is_left_out_by_name(config: Config, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    write(source, {"tests/a.py": "", "tests/deep/b.py": "", "docs/index.md": "", "runs/x.txt": ""})
    write(source, {"look.ipynb": "{}", "big.bin": "x" * 1001, "fits.bin": "x" * 1000, "modlib/docs/kept.py": ""})
    commit_all(source)
    code = code_files(source, config)
    assert set(code.files) == PROJECT | {"project/fits.bin", "project/modlib/docs/kept.py"}
    assert code.left_out == {
        "project/tests/": "a run needs none of its files (2), unless it imports them",
        "project/docs/": "a run needs none of its files (1), unless it imports them",
        "project/runs/": "a run needs none of its files (1), unless it imports them",
        "project/look.ipynb": "a notebook",
        "project/big.bin": "larger than 1000 B",
    }


def test_links_are_kept_where_they_stay_inside(config: Config, source: Path, tmp_path: Path) -> None:
    write(tmp_path, {"outside.txt": "outside\n"})
    write(source, {"data/values.txt": "inside\n", "tests/a.py": "", "untracked.txt": ""})
    git(source, "add", "data", "tests")
    links = {
        "deep/relative.txt": "../data/values.txt",
        "absolute.txt": str(source / "data" / "values.txt"),
        "folder": "data",
        "chain.txt": "deep/relative.txt",
        "out.txt": "../outside.txt",
        "out_absolute.txt": str(tmp_path / "outside.txt"),
        "dangling.txt": "nowhere.txt",
        "loop.txt": "loop.txt",
        "to_tests": "tests/a.py",
        "to_untracked": "untracked.txt",
        "to_itself": ".",
    }
    for name, target in links.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).symlink_to(target)
        git(source, "add", name)
    git(source, "commit", "--quiet", "-m", "links")
    code = code_files(source, config)
    assert set(code.files) == PROJECT | {"project/data/values.txt"}
    assert code.links == {
        "project/deep/relative.txt": "../data/values.txt",
        "project/absolute.txt": "data/values.txt",
        "project/folder": "data",
        "project/chain.txt": "data/values.txt",
    }
    reasons = {name.removeprefix("project/"): reason for name, reason in code.left_out.items()}
    assert reasons.pop("tests/").startswith("a run needs none")
    assert reasons == {
        "out.txt": "a link to outside",
        "out_absolute.txt": "a link to outside",
        **dict.fromkeys(
            ["dangling.txt", "loop.txt", "to_tests", "to_untracked", "to_itself"],
            "a link to what is not in the snapshot",
        ),
    }


def test_submodules_are_taken_where_they_are_checked_out(config: Config, source: Path, tmp_path: Path) -> None:
    write(tmp_path, {"library/lib.py": "committed\n"})
    commit_all(tmp_path / "library")
    git(source, "submodule", "--quiet", "add", str(tmp_path / "library"), "libs/one")
    git(source, "submodule", "--quiet", "add", str(tmp_path / "library"), "libs/two")
    commit_all(source)
    write(source, {"libs/one/lib.py": "edited\n", "libs/one/untracked.py": ""})
    git(source, "submodule", "--quiet", "deinit", "libs/two")
    code = code_files(source, config)
    assert texts(code)["project/libs/one/lib.py"] == "edited\n"
    assert set(code.files) == PROJECT | {"project/.gitmodules", "project/libs/one/lib.py"}
    assert code.left_out == {"project/libs/two": "a submodule that is not checked out"}


def test_a_tracked_name_that_is_something_else_now(config: Config, source: Path) -> None:
    write(source, {"pipe.txt": "", "was_a_folder/a.py": ""})
    commit_all(source)
    (source / "pipe.txt").unlink()
    os.mkfifo(source / "pipe.txt")
    (source / "was_a_folder" / "a.py").unlink()
    (source / "was_a_folder").rmdir()
    write(source, {"was_a_folder": ""})
    code = code_files(source, config)
    assert set(code.files) == PROJECT
    assert code.left_out == {"project/pipe.txt": "not a file"}


def test_a_project_inside_a_larger_repository_is_that_project(config: Config, tmp_path: Path) -> None:
    write(tmp_path, {"work/paper.tex": "", "work/modlib_repo/modlib/a.py": ""})
    (tmp_path / "work" / "modlib_repo" / "modlib" / "__init__.py").write_text("")
    commit_all(tmp_path / "work")
    code = code_files(tmp_path / "work" / "modlib_repo", config)
    assert set(code.files) == {"project/modlib/__init__.py", "project/modlib/a.py"}


def test_without_git_the_package_and_the_gin_files_beside_it_are_taken(config: Config, tmp_path: Path) -> None:
    source = tmp_path / "site-packages"
    write(source, {"modlib/sub/a.py": "", "modlib/table.json": "{}", "modlib/.env": "SECRET=1", "other/b.py": ""})
    write(source, {"gin_configs/deep/a.gin": "", "gin_configs/notes.txt": "", "slurm/site.gin": "", "c.py": ""})
    (source / "modlib" / "__init__.py").write_text("")
    (source / "modlib" / "__pycache__").mkdir()
    (source / "modlib" / "__pycache__" / "a.pyc").write_text("")
    code = code_files(source, config)
    assert set(code.files) == {
        "project/modlib/__init__.py",
        "project/modlib/sub/a.py",
        "project/modlib/table.json",
        "project/gin_configs/deep/a.gin",
        "project/slurm/site.gin",
    }
    assert code.commit is None


def test_a_git_that_fails_in_the_middle_is_as_none(
    config: Config, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(
        '#!/bin/sh\ncase "$*" in *"ls-files -z"*) exit 1;; esac\nPATH="$REAL_PATH" exec git "$@"\n'
    )
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert set(code_files(source, config).files) == {"project/modlib/__init__.py", "project/gin_configs/a.gin"}


# ------------------------------------------------------------------------------------------------- imported modules


def test_untracked_modules_of_the_project_are_taken_if_imported(config: Config, source: Path) -> None:
    write(source, {"my_project/my_model.py": "import my_project.helper\n", "my_project/helper.py": ""})
    write(source, {"my_project/unused.py": "", "my_project/.env": "SECRET=1"})
    with importing(config, source, "my_project.my_model") as active:
        code = code_files(source, active)
    assert set(code.files) == PROJECT | {"project/my_project/my_model.py", "project/my_project/helper.py"}
    assert code.python_paths == ("project",)


def test_a_folder_of_the_project_that_modules_are_imported_from_stays_one(config: Config, source: Path) -> None:
    write(source, {"experiments/paper/model_of_paper.py": ""})
    commit_all(source)
    with importing(config, source / "experiments" / "paper", "model_of_paper") as active:
        code = code_files(source, active)
    assert "project/experiments/paper/model_of_paper.py" in code.files
    assert set(code.python_paths) == {"project", "project/experiments/paper"}
    assert code.sources == {"project": str(source)}


def test_an_imported_module_is_taken_whatever_its_folder_and_size(
    config: Config, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    write(source, {"notebooks/timed.py": "", "notebooks/other.py": "", "table_of_values.py": "#" * 200})
    commit_all(source)
    with importing(config, source, "notebooks.timed", "table_of_values") as active:
        code = code_files(source, active)
    assert set(code.files) == PROJECT | {"project/notebooks/timed.py", "project/table_of_values.py"}
    assert set(code.left_out) == {"project/notebooks/"}


def test_modules_from_outside_have_a_folder_for_each_place_in_the_order_of_sys_path(
    config: Config, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"exp/outside_model.py": "import outside_helper\n", "exp/unused.py": "", "exp/.env": "SECRET=1"})
    write(tmp_path, {"lib/outside_helper.py": "", "lib/unused.py": ""})
    monkeypatch.syspath_prepend(str(source))
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    with importing(config, tmp_path / "exp", "outside_model") as active:  # joins the end of sys.path
        code = code_files(source, active)
    assert set(code.files) == PROJECT | {"user/0/outside_helper.py", "user/1/outside_model.py"}
    assert code.python_paths == ("user/0", "project", "user/1")
    assert code.sources == {
        "project": str(source),
        "user/0": str(tmp_path / "lib"),
        "user/1": str(tmp_path / "exp"),
    }


def test_a_users_package_under_git_comes_with_its_tracked_files(config: Config, source: Path, tmp_path: Path) -> None:
    user = tmp_path / "user"
    write(user, {"pack/model.py": "", "pack/vocab.json": "{}", "pack/dynamic.py": "", "beside.txt": ""})
    commit_all(user)
    write(user, {"pack/untracked.json": "{}", "pack/new.py": "", "pack/model.py": "import pack.new\n"})
    with importing(config, user, "pack.model") as active:
        code = code_files(source, active)
    pack = {f"user/0/pack/{name}" for name in ("model.py", "vocab.json", "dynamic.py", "new.py")}
    assert set(code.files) == PROJECT | pack
    assert texts(code)["user/0/pack/model.py"] == "import pack.new\n"


def test_a_module_behind_a_link_is_there_under_its_name(config: Config, source: Path, tmp_path: Path) -> None:
    write(tmp_path, {"shared/implementation.py": "VALUE = 1\n", "shared/packed/part.py": ""})
    write(source, {"libs/within/part.py": ""})
    (source / "linked_out.py").symlink_to(tmp_path / "shared" / "implementation.py")
    (source / "packed").symlink_to(tmp_path / "shared" / "packed")
    (source / "within").symlink_to("libs/within")
    commit_all(source)
    with importing(config, source, "linked_out", "packed.part", "within.part") as active:
        code = code_files(source, active)
    assert texts(code)["project/linked_out.py"] == "VALUE = 1\n"
    assert "project/packed/part.py" in code.files
    assert code.links == {"project/within": "libs/within"}
    assert not any(name.startswith("project/within/") for name in code.files)
    assert code.left_out == {"project/packed": "a link to outside"}


def test_a_module_that_may_read_files_beside_itself_is_warned_of(
    config: Config, source: Path, tmp_path: Path, messages: Callable[[], str]
) -> None:
    write(tmp_path, {"user/reads_vocab.py": "from pathlib import Path\nVOCAB = Path(__file__).with_name('v.json')\n"})
    write(tmp_path, {"user/only_names_it.py": "'''Not __file__.'''\nNAME = '__file__'\n"})
    with importing(config, tmp_path / "user", "reads_vocab", "only_names_it") as active:
        code_files(source, active)
    assert messages() == (
        f"{tmp_path / 'user' / 'reads_vocab.py'} uses __file__: what it reads beside itself is in the snapshot that "
        "the job runs only where git tracks it; track it, or give its absolute path in the gin file"
    )


@pytest.mark.slow
def test_this_repository_is_taken_whole_but_for_what_no_run_needs(config: Config) -> None:
    code = code_files(SOURCE, config)
    names = {name.removeprefix("project/") for name in code.files}
    assert {"modlib/__init__.py", "modlib/cli/processes/worker.py", "gin_configs/quickstart.gin"} <= names
    assert code.commit is None or {"project/tests/", "project/docs/"} <= set(code.left_out)
