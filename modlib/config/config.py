"""A checked configuration: what a run is, to the last default."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

import gin

from modlib.components import Component, load_component
from modlib.config.chosen import chosen_values
from modlib.config.files import Reading, read
from modlib.config.hashing import digest, first_digests, is_hash_of, versioned
from modlib.config.imports import import_user_module
from modlib.config.matching import native
from modlib.config.program import Program
from modlib.config.rendering import render
from modlib.config.resolving import Setting, resolve
from modlib.config.signatures import signature_of
from modlib.config.values import Constant, Reference, format_value, is_literal, plain
from modlib.runtime.durable import atomic_write_text
from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, read_json
from modlib.runtime.secrets import masked
from modlib.version import VERSION

logger = logging.getLogger("modlib")

CONFIG_FILE = "config.gin"
PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True, repr=False)
class Config:
    """Everything that was decided about a run.

    Args:
        settings: Every parameter of every component of the run, in the order in which the run reaches them.
        science: Names of the settings that change its numbers; the others are left out of the hash.
        text: The complete config.gin; a gin file that gives the same hash and the same run.
        files: The gin files that were read.
        imports: The modules that they import.
        import_paths: Folders that have to be on sys.path for these.
        program: The statements that it comes from.
        run_file: The one of the files that describes a whole run, which the run is named after; None without one.
    """

    settings: tuple[Setting, ...]
    science: frozenset[str]
    text: str
    files: tuple[Path, ...]
    imports: tuple[str, ...]
    import_paths: tuple[Path, ...]
    program: Program = field(repr=False, compare=False)
    run_file: Path | None = None

    def __repr__(self) -> str:
        name = (self.run_file or self.files[0]).stem if self.files else "config"
        return f"Config({name!r}, {len(self.settings)} settings, hash {self.hash[:8]})"

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Every value by its dotted name; components and objects by their names ("@GPT2")."""
        return {setting.name: plain(setting.value) for setting in self.settings}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that changes the numbers of the run, in hex."""
        return digest(self._hashed)

    @property
    def identity(self) -> str:
        """The hash as it is stored, with the version of the rule that it was computed by."""
        return versioned(self.hash)

    def is_of(self, stored: object) -> bool:
        """Whether a stored hash, of this or an earlier version, is that of this configuration."""
        return is_hash_of(stored, self._hashed)

    @cached_property
    def first_hashes(self) -> set[str]:
        """What the first rule may have made of it; old run folders are named after these."""
        return first_digests(self._hashed)

    @cached_property
    def _hashed(self) -> dict[str, Any]:
        return {setting.name: setting.value for setting in self.settings if setting.name in self.science}

    def with_value(self, name: str, value: Any, origin: str) -> Config:
        """The same configuration, but for one parameter that follows from where it runs.

        Args:
            name: The parameter's dotted name; it is one of the settings.
            value: A literal.
            origin: Where the value comes from, for the provenance.
        """

        def changed(setting: Setting) -> Setting:
            if setting.name != name:
                return setting
            before = (" -> ".join(setting.origins) or "default", plain(setting.value))
            overridden = (*setting.overridden, before)
            return replace(setting, value=value, node=None, origins=(*setting.origins, origin), overridden=overridden)

        settings = tuple(map(changed, self.settings))
        return replace(self, settings=settings, text=render(settings, self.program, self.imports))

    @cached_property
    def provenance(self) -> dict[str, list[str]]:
        """Where each value was set, by dotted name, what counts last; empty for a default."""
        return {setting.name: list(setting.origins) for setting in self.settings}

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """What was set for this run, the command line first; see `chosen_values`."""
        return masked("", chosen_values(self.settings, self.program))

    @cached_property
    def overridden(self) -> dict[str, list[tuple[str, Any]]]:
        """Earlier values that another binding replaced, with their origins, by dotted name."""
        return {setting.name: list(setting.overridden) for setting in self.settings if setting.overridden}

    def activate(self) -> None:
        """Give gin this configuration, in place of any other, and lock it. May be called again."""
        for module in self.imports:
            import_user_module(module, self.import_paths)
        gin.clear_config()
        for setting in self.settings:
            if is_literal(setting.value):
                component = load_component(setting.instance.name)
                annotation = signature_of(component).parameters[setting.parameter].annotation
                key = ("/".join(setting.instance.scope), component.selector, setting.parameter)
                gin.bind_parameter(key, self._for_gin(native(setting.value, annotation), setting))
        gin.finalize()

    def _for_gin(self, value: Any, setting: Setting) -> Any:
        """A value with gin's own references, each with the scope that it was checked for."""
        match value:
            case Reference():
                instance = self.program.child(value, setting.instance)
                selector = load_component(value.selector).selector
                return gin.config.parse_value(f"@{'/'.join((*instance.scope, selector))}{'()' if value.called else ''}")
            case Constant(name=name):
                return gin.config.parse_value(f"%{name}")
            case dict():
                return {self._for_gin(key, setting): self._for_gin(item, setting) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._for_gin(item, setting) for item in value)
        return value

    def explain(self, component_name: str, message: str) -> str:
        """A message with the origin of every parameter of a component that it names.

        Of one in several scopes, those whose value it names. A message that names no parameter of the component, such
        as torch's own, comes with what it seems to mean: the parameters whose value it has, here or anywhere.
        """

        def says(words: str) -> bool:
            return re.search(rf"(?<![\w.]){re.escape(words)}(?!\w|\.\d)", message) is not None

        def says_value(value: Any) -> bool:
            return says(format_value(value)) or (isinstance(value, str) and len(value) > 2 and says(value))

        own = [one for one in self.settings if one.instance.name == component_name]
        named = [one for one in own if says(one.parameter)]
        valued = {one.parameter for one in named if says_value(one.value)}
        found = [one for one in named if one.parameter not in valued or says_value(one.value)]
        found = found or [one for one in own if one.origins and says_value(one.value)]
        found = found or [one for one in self.settings if says(one.parameter) and says_value(one.value)]
        if not found and message.startswith(f"{component_name}:"):  # Python's words: the choice may be the mistake
            found = [one for one in self.settings if _chooses(one.value, component_name)]
        lines = [message]
        for setting in found:
            where = f"was set at {' -> '.join(setting.origins)}" if setting.origins else "is its default"
            lines.append(f"{setting.name} = {setting.text} {where}")
        return "\n".join(lines)

    def to_run_folder(
        self, path: str | Path, same_as: Sequence[str] = (), history: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Write config.gin and provenance.json into a folder; each appears whole or not at all.

        Args:
            path: The folder.
            same_as: Stored hashes that checkpoints may have: of the same configuration by earlier rules or code, or
                planned for another length.
            history: How the run came to this configuration, for the record.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        record = self.record() | ({"same_as": list(same_as)} if same_as else {}) | dict(history)
        atomic_write_text(folder / PROVENANCE_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        atomic_write_text(folder / CONFIG_FILE, self.text)

    def record(self) -> dict[str, Any]:
        """What provenance.json holds: every value as gin text, its origins, and how to import the user's modules."""
        return {
            "format": 1,
            "modlib": VERSION,
            "config_sha256": hashlib.sha256(self.text.encode()).hexdigest(),
            "hash": self.identity,
            "files": [str(path) for path in self.files],
            "imports": list(self.imports),
            "import_paths": [str(path) for path in self.import_paths],
            "chosen": self.chosen,
            "parameters": {
                setting.name: {
                    "value": setting.text,
                    "origins": list(setting.origins),
                    "overridden": [[origin, format_value(value)] for origin, value in setting.overridden],
                    "science": setting.name in self.science,
                }
                for setting in self.settings
            },
        }


def _chooses(value: Any, name: str) -> bool:
    if isinstance(value, list | tuple):
        return any(_chooses(item, name) for item in value)
    return isinstance(value, Reference) and value.selector == name


def load(
    gin_files: Sequence[str | Path],
    gin_params: Sequence[str] = (),
    sweep_params: Sequence[tuple[str, str]] = (),
    *,
    command: Component | None = None,
) -> Config:
    """Read gin files and parameters, check all of it, and resolve it.

    Args:
        gin_files: Names in gin_configs/, slurm/ or experiments/, or paths; later ones win.
        gin_params: Single bindings such as "AdamW.lr=1e-4"; they win over files.
        sweep_params: (origin, binding) pairs of one point of a sweep, or of a command line; they win over all others.
        command: What is configured, with its target, where it is not a run of the catalogue.

    Raises:
        ConfigError: With every problem found; nothing was changed.
    """
    if isinstance(gin_files, str | Path):
        gin_files = [gin_files]
    if not gin_files and not gin_params and command is None:
        raise ConfigError("no gin file is given; name one with --gin_file, as in --gin_file quickstart.gin")
    reading = read(gin_files, gin_params, sweep_params)
    resolution = resolve(reading, _import_folders(reading), command)
    for line in resolution.program.renamed:
        logger.warning("%s", line)
    text = render(resolution.settings, resolution.program, resolution.imports)
    return Config(
        tuple(resolution.settings),
        frozenset(resolution.science),
        text,
        tuple(reading.files),
        tuple(resolution.imports),
        tuple(resolution.import_paths),
        resolution.program,
        resolution.run_file,
    )


class ImportRecord(TypedDict):
    """What provenance.json says about importing the user's modules."""

    import_paths: list[str]


def _import_folders(reading: Reading) -> list[Path]:
    """Where users' modules are looked for after sys.path: what a run folder recorded, the files' folders, the CWD."""
    folders: list[Path] = []
    for path in reading.files:
        if path.name == CONFIG_FILE and (path.parent / PROVENANCE_FILE).is_file():
            try:
                recorded = read_json(path.parent / PROVENANCE_FILE, ImportRecord)
            except JSONError:
                continue
            folders += map(Path, recorded["import_paths"])
    return list(dict.fromkeys([*folders, *(path.parent for path in reading.files), Path.cwd()]))
