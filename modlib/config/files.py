"""Finds gin files by name or path, and flattens a run's files and parameters into one list of statements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modlib.components import PACKAGE
from modlib.config.statements import Include, Origin, Problem, Statement
from modlib.config.suggestions import similar
from modlib.config.syntax import parse

REPOSITORY = PACKAGE.parent
ROOTS = ("gin_configs", "slurm", "experiments")


class NotFound(Exception):
    """A gin file that cannot be found, or is not clear; the text is for the user."""


@dataclass
class Reading:
    """What was read so far.

    Args:
        statements: All statements in the order in which they apply.
        problems: What is wrong with the texts.
        files: Every file read, in order of first reading.
        mentioned: Names in lines that could not be read.
        incomplete: Whether a whole file is missing, so that what seems absent may be in there.
    """

    statements: list[Statement] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)
    incomplete: bool = False


def read(
    gin_files: Sequence[str | Path], gin_params: Sequence[str], sweep_params: Sequence[tuple[str, str]] = ()
) -> Reading:
    """Read files and their includes, then parameters, then those of a sweep's point; later statements win."""
    reading = Reading()
    for number, name in enumerate(gin_files, 1):
        try:
            path = find(str(name))
        except NotFound as error:
            reading.problems.append(Problem(Origin(f"--gin_file #{number}"), str(error)))
            reading.incomplete = True
        else:
            _read_file(path, reading, ())
    for number, text in enumerate(gin_params, 1):
        _read_parameter(text, f"--gin_param #{number}", reading)
    for source, text in sweep_params:
        _read_parameter(text, source, reading)
    reading.statements = [
        replace(statement, origin=replace(statement.origin, order=order))
        for order, statement in enumerate(reading.statements)
    ]
    return reading


def _read_file(path: Path, reading: Reading, chain: tuple[Path, ...]) -> None:
    if path not in reading.files:
        reading.files.append(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        reading.problems.append(Problem(Origin(shown(path), 1), f"cannot be read: {reason}; correct the file"))
        reading.incomplete = True
        return
    statements, problems = parse(text, shown(path))
    _note(problems, text, reading)
    for statement in statements:
        if not isinstance(statement, Include):
            reading.statements.append(statement)
            continue
        try:
            included = find(statement.name, included_from=path)
        except NotFound as error:
            reading.problems.append(Problem(statement.origin, str(error)))
            reading.incomplete = True
            continue
        whole = (*chain, path)
        if included in whole:
            names = " -> ".join(shown(step) for step in (*whole[whole.index(included) :], included))
            reading.incomplete = True
            reading.problems.append(Problem(statement.origin, f"include cycle: {names}; remove one of the includes"))
            continue
        _read_file(included, reading, whole)


def _read_parameter(text: str, source: str, reading: Reading) -> None:
    statements, problems = parse(text, source, is_file=False)
    if not problems and len(statements) != 1:
        what = "is empty" if not statements else f"holds {len(statements)} statements"
        problems = [Problem(Origin(source), f'{what}; give one statement in each --gin_param, as in "AdamW.lr=1e-4"')]
    reading.statements += statements
    _note(problems, text, reading)


def _note(problems: list[Problem], text: str, reading: Reading) -> None:
    """Keep the problems, and the names in their lines: what those meant must not be called unused or missing."""
    reading.problems += problems
    lines = text.splitlines()
    for problem in problems:
        number = problem.origin.line or 1
        reading.mentioned |= set(re.findall(r"[A-Za-z_][\w.]*", lines[number - 1] if number <= len(lines) else ""))
        reading.mentioned.add(problem.key.rpartition("/")[2])
        reading.incomplete |= "is never closed" in problem.text or "indentation" in problem.text


def find(name: str, included_from: Path | None = None) -> Path:
    """The file that a name or path means.

    A path that starts with `/`, `./`, `../` or `~` is taken as it is; relative to the working directory, or to the
    including file. Any other name is looked up beside the including file, then in gin_configs/, slurm/ and
    experiments/ of the repository. A path with a folder that exists in the working directory is found there too; a
    bare name never is, so that no stray file can stand in for a packaged one.

    Raises:
        NotFound: Nothing found, or two different files.
    """
    if not name.strip():
        raise NotFound("the name of the gin file is empty; give a name or a path")
    path = Path(name).expanduser()
    explicit = path.is_absolute() or name.startswith(("./", "../"))
    here = included_from.parent if included_from else Path.cwd()
    if explicit:
        return _existing(name, [(here / path).resolve()])
    packaged = [REPOSITORY / root / path for root in ROOTS]
    if path.parts[0] in ROOTS:
        packaged.insert(0, REPOSITORY / path)
    if included_from:
        beside = (here / path).resolve()
        return beside if beside.is_file() else _existing(name, [beside, *packaged])
    found = list(dict.fromkeys(candidate.resolve() for candidate in packaged if candidate.is_file()))
    stray = (here / path).resolve()
    if stray.is_file() and stray not in found:
        if found:
            raise NotFound(
                f"{name} is {shown(found[0])} of the repository, and another file of this name is in the working "
                f"directory; write ./{name} for that one, or {found[0]}"
            )
        if len(path.parts) == 1:
            raise NotFound(
                f"{_looked(name, packaged)}; a file of this name is in the working directory: write ./{name}"
            )
        return stray
    if len(found) > 1:
        raise NotFound(f"{name} is in {' and in '.join(str(path.parent) for path in found)}; write the path of one")
    return _existing(name, [*packaged, stray] if len(path.parts) > 1 else packaged)


def _existing(name: str, candidates: list[Path]) -> Path:
    for path in candidates:
        if path.is_file():
            return path.resolve()
    if any(path.is_dir() for path in candidates):
        folder = next(path for path in candidates if path.is_dir())
        if (folder / "config.gin").is_file():
            raise NotFound(f"{name} is a folder; write {name.rstrip('/')}/config.gin")
        raise NotFound(f"{name} is a folder; write the path of a gin file in it")
    there = {str(path.relative_to(root)) for root in _roots() for path in root.rglob("*.gin")}
    there |= {path.name for path in candidates[0].parent.glob("*.gin")}
    close = similar(name, there) or similar(name + ".gin", there)
    close = close or [other for other in sorted(there) if Path(other).stem == Path(name).stem][:3]
    raise NotFound(_looked(name, candidates) + (f"; similar: {', '.join(close)}" if close else "; check the name"))


def _looked(name: str, candidates: list[Path]) -> str:
    return f"cannot find {name!r}; looked in {', '.join(dict.fromkeys(str(path.parent) for path in candidates))}"


def _roots() -> list[Path]:
    return [REPOSITORY / root for root in ROOTS if (REPOSITORY / root).is_dir()]


def shown(path: Path) -> str:
    """A file as the user knows it: by its name in gin_configs/, slurm/ or experiments/, else by its path."""
    for root in _roots():
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
