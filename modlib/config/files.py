"""Finds gin files by name or path, and flattens a run's files and parameters into one list of statements."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modlib.components import SHIPPED
from modlib.config.statements import Include, Origin, Problem, Statement
from modlib.config.suggestions import similar
from modlib.config.syntax import parse
from modlib.runtime.units import format_bytes

logger = logging.getLogger("modlib")

ROOTS = ("gin_configs", "slurm", "experiments")
MOST_BYTES = 16 << 20  # of a gin file; the config.gin of a run has some 20 KiB
NO_GIN_FILE = 4  # problems in a file of which nothing can be read, from which on it is another kind of file
MOVED = {
    "train.gin": "training/causal_lm.gin",
    "data/commands/pack_stdlib.gin": "commands/pack_stdlib.gin",
    "data/steps_from_epochs.gin": "training/steps_from_epochs.gin",
    "data/steps_from_tokens.gin": "training/steps_from_tokens.gin",
    "losses/chunked.gin": "training/chunked_loss.gin",
    "models/coca.gin": "models/coca_base.gin",
    "optim/warm_start.gin": "optim/warm_start_moments.gin",
}
"""Packaged files that had another name before version 0.2; to be removed with the next release."""


class NotFound(Exception):
    """A gin file that cannot be found or read, or is not clear; the text is for the user."""


@dataclass
class Reading:
    """What was read so far.

    Args:
        statements: All statements in the order in which they apply.
        problems: What is wrong with the texts.
        files: Every file read, in order of first reading.
        mentioned: Names in lines that could not be read.
        incomplete: Whether a whole file is missing, so that what seems absent may be in there.
        given: The files of --gin_file as they were given, each with its statements and those of its includes.
    """

    statements: list[Statement] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    mentioned: set[str] = field(default_factory=set)
    incomplete: bool = False
    given: list[GivenFile] = field(default_factory=list)


@dataclass(frozen=True)
class GivenFile:
    """One --gin_file.

    Args:
        number: From 1.
        path: The file.
        statements: Places of its statements, includes and all, among those of the reading.
    """

    number: int
    path: Path
    statements: range


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
            begin = len(reading.statements)
            _read_file(path, reading, ())
            reading.given.append(GivenFile(number, path, range(begin, len(reading.statements))))
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
        text = _text(path)
        statements, problems = parse(text, shown(path))
        if len(problems) >= NO_GIN_FILE and not statements:
            raise NotFound(
                f"is no gin file: nothing in it can be read ({len(problems)} problems, the first: {problems[0].text}); "
                "give a file with lines such as NAME = value"
            )
    except NotFound as error:
        reading.problems.append(Problem(Origin(shown(path), 1), str(error)))
        reading.incomplete = True
        return
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


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            size, most = format_bytes(path.stat().st_size), format_bytes(MOST_BYTES)
            raise NotFound(f"its size ({size}) must be at most {most}; give a gin file")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except OSError as error:
        raise NotFound(f"cannot be read: {error.strerror}; correct the file") from None
    except UnicodeDecodeError:
        raise NotFound("cannot be read: it is not UTF-8 text; correct the file") from None


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
    experiments/ of the repository. A name on the command line may also be that of a file in the working directory, as
    for gin itself. Where both exist the name is refused, so that no stray file can stand in for a packaged one; and a
    file that includes another never takes it from the working directory.

    Raises:
        NotFound: Nothing found, or two different files.
    """
    try:
        return _find(name, included_from)
    except NotFound:
        new = MOVED.get(name.removeprefix("gin_configs/"))
        if new is None:
            raise
        logger.warning("%s is now %s; use the new name", name, new)
        return SHIPPED / "gin_configs" / new


def _find(name: str, included_from: Path | None) -> Path:
    if not name.strip():
        raise NotFound("the name of the gin file is empty; give a name or a path")
    path = Path(name).expanduser()
    explicit = path.is_absolute() or name.startswith(("./", "../"))
    here = included_from.parent if included_from else Path.cwd()
    if explicit:
        return _existing(name, [(here / path).resolve()])
    packaged = [SHIPPED / root / path for root in ROOTS]
    if path.parts[0] in ROOTS:
        packaged.insert(0, SHIPPED / path)
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
        return stray
    if len(found) > 1:
        raise NotFound(f"{name} is in {' and in '.join(str(path.parent) for path in found)}; write the path of one")
    return _existing(name, [*packaged, stray])


def _existing(name: str, candidates: list[Path]) -> Path:
    for path in candidates:
        if path.is_file():
            return path.resolve()
    if any(path.is_dir() for path in candidates):
        folder = next(path for path in candidates if path.is_dir())
        if (folder / "config.gin").is_file():
            raise NotFound(f"{name} is a folder; write {name.rstrip('/')}/config.gin")
        raise NotFound(f"{name} is a folder; write the path of a gin file in it")
    there = set(packaged_names()) | {
        path.name for one in (candidates[0], candidates[-1]) for path in one.parent.glob("*.gin")
    }
    close = similar(name, there) or similar(name + ".gin", there)
    close = close or [other for other in sorted(there) if Path(other).stem == Path(name).stem][:3]
    raise NotFound(_looked(name, candidates) + (f"; similar: {', '.join(close)}" if close else "; check the name"))


def _looked(name: str, candidates: list[Path]) -> str:
    return f"cannot find {name!r}; looked in {', '.join(dict.fromkeys(str(path.parent) for path in candidates))}"


def packaged_names() -> list[str]:
    """The gin files of the repository, by the names that find them."""
    return sorted(str(path.relative_to(root)) for root in _roots() for path in root.rglob("*.gin"))


def _roots() -> list[Path]:
    return [SHIPPED / root for root in ROOTS if (SHIPPED / root).is_dir()]


def shown(path: Path) -> str:
    """A file as the user knows it: by its name in gin_configs/, slurm/ or experiments/, else by its path."""
    for root in _roots():
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
