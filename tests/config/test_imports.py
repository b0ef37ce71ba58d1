"""A user's own module: where it is found, and what is said when it cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modlib.config import load
from modlib.runtime.errors import ConfigError
from tests.config.projects import COMPONENTS, Project


def problems(folder: Path, text: str) -> list[str]:
    (folder / "a.gin").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([folder / "a.gin"])
    return [one.replace(f"{folder}/", "") for one in caught.value.problems]


@pytest.mark.parametrize("place", ["beside the gin file", "working directory", "sys.path"])
def test_found(tmp_path: Path, place: str) -> None:
    folders = {
        name: tmp_path / name.replace(" ", "_") for name in ("beside the gin file", "working directory", "sys.path")
    }
    for folder in folders.values():
        folder.mkdir()
    package = folders[place] / "my_project"
    package.mkdir()
    (package / "my_model.py").write_text(COMPONENTS.replace("{{", "{").replace("}}", "}").replace("{m}", "mine"))
    gin_file = folders["beside the gin file"] / "a.gin"
    gin_file.write_text("import my_project.my_model\nmine_run.model = @Model\nModel.dim = 3\n")
    code = "import sys; from modlib.config import load; print(load([sys.argv[1]]).resolved['Model.dim'])"
    path = os.pathsep.join([str(folders["sys.path"]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code, str(gin_file)],
        cwd=folders["working directory"], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "3", done.stderr


def test_not_found(tmp_path: Path) -> None:
    texts = problems(tmp_path, "import no_such_project.my_model\nX = 1")
    assert texts[0] == (
        f"a.gin:1: cannot find the module no_such_project (import no_such_project.my_model); looked on sys.path and in "
        f"{tmp_path}, {Path.cwd()}; put it in one of these, or its folder on PYTHONPATH"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\nprint(undefined)", "NameError: name 'undefined' is not defined ({m}.py:2)"),
        ("def f(:\n  pass", "SyntaxError: invalid syntax ({m}.py:1)"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library' ({m}.py:1)"),
        ("raise SystemExit(3)", "SystemExit: 3 ({m}.py:1)"),
    ],
)
def test_a_module_that_raises(tmp_path: Path, source: str, expected: str, request: pytest.FixtureRequest) -> None:
    module = f"raises_{abs(hash(source))}"
    (tmp_path / f"{module}.py").write_text(source)
    texts = problems(tmp_path, f"\nimport {module}\nMyThing.x = 1")
    # what the module would have registered is not reported as unknown
    assert texts == [f"a.gin:2: cannot import {module}: {expected.replace('{m}', module)}"]


def test_a_name_that_is_taken(project: Project, tmp_path: Path) -> None:
    project.load()
    other = tmp_path / f"{project.module}_copy.py"
    other.write_text(
        "from modlib.components import component\n\n\n"
        '@component("model", "other", name="Model")\nclass Other:\n    pass\n'
    )
    texts = project.problems(f"import {other.stem}")
    assert texts[0].startswith(
        f"a.gin:4: cannot import {other.stem}: component name Model ({other.stem}.py:5) is taken by "
        f"{project.module}.py:"
    )
    assert texts[0].endswith('give one of them another: @component("model", "other", name=...)')


def test_a_name_of_the_package_is_taken(tmp_path: Path) -> None:
    (tmp_path / "takes_adamw.py").write_text(
        'from modlib.components import component\n\n@component("model", "mine")\nclass AdamW:\n    pass\n'
    )
    (text,) = problems(tmp_path, "import takes_adamw")
    assert "component name AdamW (takes_adamw.py:4) is taken by " in text
    assert "; give one of them another: @component(" in text


def test_wrong_parameter_of_a_users_component_is_caught_before_anything_runs(project: Project) -> None:
    marker = project.folder / "built"
    path = project.folder / f"{project.module}.py"
    path.write_text(
        path.read_text().replace("self.__dict__.update", f"open({str(marker)!r}, 'w'); self.__dict__.update")
    )
    assert project.problems("Model.dropuot = 0.1") == [
        "a.gin:4: Model has no parameter 'dropuot'. Did you mean 'dropout' (float, default 0.0)?"
    ]
    assert not marker.exists()
