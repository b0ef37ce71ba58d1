"""A checked configuration: complete, with its hash, its text and where each value was set."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gin

from modlib.config.files import read, shown
from modlib.config.resolving import Resolution, Setting, resolve, science_lines
from modlib.config.values import MacroUse, format_value, is_literal, plain
from modlib.runtime import durable

WIDTH = 120


@dataclass(frozen=True)
class Config:
    """One run's configuration, every check passed.

    Args:
        resolution: The settings and what they come from.
        files: The gin files that were read, in order.
    """

    resolution: Resolution
    files: tuple[str, ...]

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Every parameter of every component of the run: "AdamW.lr" -> 0.0003, "train.model" -> "@GPT2"."""
        return {one.name: plain(one.value) for one in self.resolution.settings}

    @cached_property
    def hash(self) -> str:
        """SHA-256, in hex, of everything that changes the numbers of the run."""
        lines = science_lines(self.resolution.settings, self.resolution.science)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def provenance(self) -> dict[str, list[str]]:
        """Dotted name -> where it was set, the place that counts last; empty for defaults."""
        return {one.name: list(one.origins) for one in self.resolution.settings}

    @cached_property
    def overridden(self) -> dict[str, list[tuple[str, Any]]]:
        """Dotted name -> (place, value) of what did not count."""
        return {one.name: list(one.overridden) for one in self.resolution.settings if one.overridden}

    @property
    def imports(self) -> list[str]:
        """Modules that the files import."""
        return self.resolution.imports

    @cached_property
    def text(self) -> str:
        """The complete configuration as a gin file; fed back to launch.py it is the same run."""
        return "\n".join(self._lines()) + "\n"

    def activate(self) -> None:
        """Make gin build this configuration's components; replaces what gin held before."""
        for folder in self.resolution.import_paths:
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        gin.clear_config()
        gin.parse_config(self.text)
        gin.finalize()

    def explain(self, component_name: str, message: str) -> str:
        """The message, with where each of the component's parameters that it names was set."""
        words = set(re.findall(r"\w+", message))
        places = [
            f"{one.name} = {format_value(one.value)} was set at {one.origins[-1]}"
            for one in self.resolution.settings
            if one.instance.name == component_name and one.parameter in words and one.origins
        ]
        return f"{message} ({'; '.join(places)})" if places else message

    def to_run_folder(self, path: Path) -> None:
        """Write config.gin and provenance.json."""
        durable.atomic_write_text(path / "config.gin", self.text)
        record = {
            "hash": self.hash,
            "files": list(self.files),
            "import_paths": [str(folder) for folder in self.resolution.import_paths],
            "provenance": {name: origins for name, origins in self.provenance.items() if origins},
            "overridden": {name: [[place, repr(value)] for place, value in values] for name, values in self.overridden.items()},
        }
        durable.atomic_write_text(path / "provenance.json", json.dumps(record, indent=1) + "\n")

    def _lines(self) -> Iterator[str]:
        yield f"# The complete configuration. Science hash {self.hash}"
        yield from (f"import {module}" for module in self.imports)
        macros = self._macros()
        if macros:
            yield ""
            yield from (f"{name} = {format_value(value)}" for name, value in macros.items())
        instance = None
        for setting in self.resolution.settings:
            if setting.instance != instance:
                instance = setting.instance
                yield ""
                yield f"# {self.resolution.components[instance.name].selector}"
            yield _line(setting, macros)

    def _macros(self) -> dict[str, Any]:
        """The macros that a parameter takes as they are: the knobs that still work on this text."""
        program = self.resolution.program
        used = {one.node.name for one in self.resolution.settings if isinstance(one.node, MacroUse)}
        values = {name: program.value_of_macro(name) for name in program.macros if name in used}
        return {name: value for name, value in values.items() if is_literal(value)}


def load(gin_files: Sequence[str | Path], gin_params: Sequence[str] = ()) -> Config:
    """Read and check gin files and parameters; builds nothing.

    Args:
        gin_files: By name (in gin_configs/, slurm/, experiments/) or by path; later ones win.
        gin_params: Bindings such as "AdamW.lr=1e-4"; they win over files.

    Raises:
        ConfigError: With every problem that was found.
    """
    reading = read(gin_files, gin_params)
    folders = list(dict.fromkeys([*(path.parent for path in reading.files), *_remembered(reading.files), Path.cwd()]))
    resolution = resolve(reading, folders)
    return Config(resolution, tuple(shown(path) for path in reading.files))


def _remembered(files: Sequence[Path]) -> list[Path]:
    """Folders of user modules that a run folder's config was made with."""
    found = []
    for path in files:
        try:
            found += [Path(folder) for folder in json.loads((path.parent / "provenance.json").read_text())["import_paths"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _line(setting: Setting, macros: dict[str, Any]) -> str:
    if isinstance(setting.node, MacroUse) and setting.node.name in macros:
        # the value in the form of its parameter's type must come out again, so a macro is kept only where it does
        if format_value(macros[setting.node.name]) == format_value(setting.value):
            return f"{setting.name} = %{setting.node.name}"
    if is_literal(setting.value):
        return f"{setting.name} = {format_value(setting.value)}"
    return f"# {setting.name} = {format_value(setting.value)}  (default)"
