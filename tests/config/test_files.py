"""How files are found, included, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.config import files, load
from modlib.config.files import NotFound, find, read, shown
from modlib.config.statements import Macro
from modlib.runtime.errors import ConfigError
from tests.config.projects import Project


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two packaged files, and the working directory beside it."""
    root = tmp_path / "repository"
    write(root / "gin_configs" / "gpt2.gin", "A = 1\ninclude 'models/small.gin'\n")
    write(root / "gin_configs" / "models" / "small.gin", "B = 2\n")
    write(root / "slurm" / "default.gin", "C = 3\n")
    write(root / "experiments" / "2026_x" / "table1.gin", "D = 4\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(files, "SHIPPED", root)
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def values(*names: str | Path) -> dict[str, object]:
    reading = read(names, [])
    assert not reading.problems, reading.problems
    return {one.name: one.value.value for one in reading.statements if isinstance(one, Macro)}  # type: ignore[union-attr]


def test_by_name_from_anywhere(repository: Path) -> None:
    assert find("gpt2.gin") == repository / "gin_configs" / "gpt2.gin"
    assert find("models/small.gin") == repository / "gin_configs" / "models" / "small.gin"
    assert find("default.gin") == repository / "slurm" / "default.gin"
    assert find("2026_x/table1.gin") == repository / "experiments" / "2026_x" / "table1.gin"
    assert find("experiments/2026_x/table1.gin") == repository / "experiments" / "2026_x" / "table1.gin"
    assert values("gpt2.gin") == {"A": 1, "B": 2}


def test_by_path(repository: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "here" / "mine.gin", "X = 1\n")
    deep = write(tmp_path / "here" / "sub" / "deep.gin", "X = 2\n")
    assert find("./mine.gin") == mine
    assert find(str(mine)) == mine
    assert find("../here/mine.gin") == mine
    assert find("sub/deep.gin") == deep


def test_a_stray_file_does_not_shadow_a_packaged_one(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "here" / "gpt2.gin", "X = 1\n")
    with pytest.raises(NotFound) as caught:
        find("gpt2.gin")
    assert str(caught.value) == (
        "gpt2.gin is gpt2.gin of the repository, and another file of this name is in the working directory; "
        f"write ./gpt2.gin for that one, or {repository}/gin_configs/gpt2.gin"
    )
    assert find("./gpt2.gin") == tmp_path / "here" / "gpt2.gin"


def test_a_plain_name_may_be_of_a_file_in_the_working_directory(repository: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "here" / "mine.gin", "X = 1\ninclude 'gpt2.gin'\n")
    assert find("mine.gin") == mine
    assert values("mine.gin") == {"X": 1, "A": 1, "B": 2}


def test_a_stray_file_is_not_included(repository: Path, tmp_path: Path) -> None:
    """Whatever is in the working directory: packaged files include packaged files, and a user's those beside it."""
    write(tmp_path / "here" / "models" / "small.gin", "B = 99\n")
    write(tmp_path / "here" / "mine.gin", "X = 1\n")
    assert values("gpt2.gin") == {"A": 1, "B": 2}
    elsewhere = write(tmp_path / "elsewhere" / "a.gin", "include 'mine.gin'\n")
    assert "cannot find 'mine.gin'" in str(read([elsewhere], []).problems[0])


def test_inside_the_folder_of_packaged_files(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "gin_configs")
    assert find("gpt2.gin") == repository / "gin_configs" / "gpt2.gin"


def test_includes_are_relative_to_the_including_file_first(repository: Path, tmp_path: Path) -> None:
    main = write(
        tmp_path / "else" / "main.gin", "include 'models/small.gin'\ninclude 'default.gin'\ninclude './x/y.gin'\n"
    )
    write(tmp_path / "else" / "models" / "small.gin", "B = 7\n")
    write(tmp_path / "else" / "x" / "y.gin", "include 'z.gin'\n")
    write(tmp_path / "else" / "x" / "z.gin", "Z = 1\n")
    assert values(main) == {"B": 7, "C": 3, "Z": 1}


def test_later_statements_win(repository: Path, tmp_path: Path) -> None:
    over = write(tmp_path / "over.gin", "A = 10\ninclude 'gpt2.gin'\nB = 20\n")
    assert values(over) == {"A": 1, "B": 20}


def test_not_found_says_where_and_what_is_similar(repository: Path) -> None:
    with pytest.raises(NotFound) as caught:
        find("gpt3.gin")
    assert str(caught.value) == (
        f"cannot find 'gpt3.gin'; looked in {repository}/gin_configs, {repository}/slurm, {repository}/experiments, "
        f"{Path.cwd()}; similar: gpt2.gin"
    )
    write(Path("gpt3x.gin"), "")
    with pytest.raises(NotFound, match=r"similar: gpt3x\.gin, gpt2\.gin$"):
        find("gpt3.gin")
    with pytest.raises(NotFound, match=r"similar: gpt2\.gin$"):
        find("gpt2")
    with pytest.raises(NotFound, match=r"check the name$"):
        find("qqqqqqqqqqqqqqqqq.gin")


def test_folder(repository: Path, tmp_path: Path) -> None:
    write(tmp_path / "here" / "runs" / "a" / "config.gin", "")
    with pytest.raises(NotFound, match=r"\./runs/a/ is a folder; write \./runs/a/config\.gin"):
        find("./runs/a/")
    with pytest.raises(NotFound, match=r"is a folder; write the path of a gin file in it"):
        find(str(tmp_path))


def test_name_in_two_places(repository: Path) -> None:
    write(repository / "experiments" / "default.gin", "")
    with pytest.raises(NotFound, match=r"default\.gin is in .*slurm and in .*experiments; write the path of one"):
        find("default.gin")


def test_empty_name() -> None:
    with pytest.raises(NotFound, match="the name of the gin file is empty; give a name or a path"):
        find(" ")


def test_include_cycle(repository: Path, tmp_path: Path) -> None:
    a = write(tmp_path / "here" / "a.gin", "include 'b.gin'\n")
    write(tmp_path / "here" / "b.gin", "\ninclude 'a.gin'\n")
    with pytest.raises(ConfigError) as caught:
        load([a])
    assert caught.value.problems[0] == "b.gin:2: include cycle: a.gin -> b.gin -> a.gin; remove one of the includes"


def test_missing_include_names_its_line(repository: Path, tmp_path: Path) -> None:
    a = write(tmp_path / "here" / "a.gin", "\ninclude 'gpt3.gin'\n")
    with pytest.raises(ConfigError) as caught:
        load([a])
    assert caught.value.problems == [
        f"a.gin:2: cannot find 'gpt3.gin'; looked in {tmp_path}/here, {repository}/gin_configs, {repository}/slurm, "
        f"{repository}/experiments; similar: gpt2.gin"
    ]


def test_missing_file_names_the_flag(repository: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(["gpt2.gin", "nope/x.gin"])
    assert any(text.startswith("--gin_file #2: cannot find 'nope/x.gin'") for text in caught.value.problems)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.gin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError) as caught:
        load([path])
    assert caught.value.problems == [f"{path}:1: cannot be read: it is not UTF-8 text; correct the file"]


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load([path])
    return caught.value.problems


def test_another_kind_of_file_is_one_problem(tmp_path: Path) -> None:
    """A list of users or a story: one hundred lines that are no statements are not one hundred errors."""
    path = write(tmp_path / "passwd", "root:x:0:0:root:/root:/bin/bash\n" * 25)
    assert problems_of(path) == [
        f"{path}:1: is no gin file: nothing in it can be read (25 problems, the first: after 'root:' begin a new line, "
        "and indent it; or write root.parameter = value); give a file with lines such as NAME = value"
    ]
    assert len(problems_of(write(tmp_path / "story", "It was a dark night.\n" * 100))) == 1
    wrong = write(tmp_path / "a.gin", "A = 1\n" + "B =\n" * 25)
    assert len(problems_of(wrong)) > 25, "a gin file with mistakes has each of them named"


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.gin"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole: takes no space
    assert problems_of(path) == [f"{path}:1: its size (1 TiB) must be at most 16 MiB; give a gin file"]


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("", 'is empty; give one statement in each --gin_param, as in "AdamW.lr=1e-4"'),
        ("A=1\nB=2", 'holds 2 statements; give one statement in each --gin_param, as in "AdamW.lr=1e-4"'),
    ],
)
def test_one_statement_in_a_parameter(project: Project, param: str, expected: str) -> None:
    assert f"--gin_param #1: {expected}" in project.problems("", [param])


def test_packaged_files_are_shown_by_their_names(repository: Path, tmp_path: Path) -> None:
    assert shown(repository / "gin_configs" / "models" / "small.gin") == "models/small.gin"
    assert shown(tmp_path / "here" / "a.gin") == "a.gin"
    assert shown(tmp_path / "b.gin") == str(tmp_path / "b.gin")
