"""From statements to settings: the value, origin and meaning of every parameter of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modlib.components import Component, load_component
from modlib.config import checks, precedence
from modlib.config.files import Reading
from modlib.config.hashing import canonical
from modlib.config.imports import ImportProblem, import_user_module
from modlib.config.program import Instance, Program
from modlib.config.signatures import Parameter, Signature, signature_of
from modlib.config.statements import Binding, Import, Problem
from modlib.config.values import Node, UnknownMacro, ValueProblem, format_value, plain
from modlib.runtime.errors import ConfigError
from modlib.runtime.secrets import mask, masked, why_secret

NOT_SCIENCE_TYPES = ("launch", "progress_subscriber", "results_subscriber")


@dataclass(frozen=True)
class Setting:
    """One parameter of one component of the run.

    Args:
        instance: The component, with its scope.
        parameter: The parameter's name.
        value: Its value, in the form of its type.
        node: What was written; None for a default.
        origins: Where it was set, the one that counts last; empty for a default.
        overridden: Earlier values, with their origins.
    """

    instance: Instance
    parameter: str
    value: Any
    node: Node | None = None
    origins: tuple[str, ...] = ()
    overridden: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Its dotted name."""
        return f"{self.instance}.{self.parameter}"

    @property
    def is_default(self) -> bool:
        """Whether no gin file sets it."""
        return not self.origins

    @property
    def hides(self) -> bool:
        """Whether its value is a secret: a config with one is refused, but a default in code may be one."""
        return why_secret(self.parameter, self.value) is not None

    @property
    def text(self) -> str:
        """Its value as gin text; a secret as stars."""
        return format_value(masked(self.parameter, self.value) if self.hides else self.value)


@dataclass
class Resolution:
    """A checked run.

    Args:
        settings: Every parameter, components in the order in which the run reaches them.
        science: Names of the settings that change the numbers of the run.
        program: The statements that they come from.
        components: The loaded components by name.
        imports: Modules that the files import.
        import_paths: Folders that have to be on sys.path for them.
        run_file: The gin file that the run is named after; None without one.
    """

    settings: list[Setting]
    science: set[str]
    program: Program
    components: dict[str, Component]
    imports: list[str] = field(default_factory=list)
    import_paths: list[Path] = field(default_factory=list)
    run_file: Path | None = None


def resolve(reading: Reading, folders: Sequence[Path], command: Component | None = None) -> Resolution:
    """Check everything, and give the settings.

    Args:
        reading: Statements, and the problems found so far.
        folders: Where modules are looked for after sys.path.
        command: What is configured, where it is not a run of the catalogue.

    Raises:
        ConfigError: With all problems, in the order of files and lines.
    """
    problems = list(reading.problems)
    imports, import_paths, imported = _import(reading, folders, problems)
    program = Program(reading.statements, reading.mentioned, command)
    found = list(program.problems)
    if reading.incomplete:  # the file that is missing may define it
        found = [problem for problem in found if not problem.text.startswith("no macro")]
    if not imported:  # what the module would have registered is not the user's mistake
        found = [
            problem
            for problem in found
            if not problem.text.startswith("no component") or "Did you mean" in problem.text
        ]
    problems += found
    problems += checks.secrets(program)
    effective, possible = program.reached(every=False), program.reached(every=True)
    if imported and not reading.incomplete:
        problems += checks.unused_bindings(program, effective, possible)
        problems += checks.unused_macros(program, effective)
        if not problems:
            problems += precedence.without_effect(reading, program)
    used = [one for one in effective if program.known[one.name].type != "launch" or one.name in program.bindings]
    components = _load(program, used, problems)
    settings = _settings(program, used, components, reading.incomplete or not imported, problems)
    if problems:
        raise ConfigError(_told(problems, reading))
    idle = [one for one in effective if one not in used]  # launch components at their defaults, loaded when all is well
    components |= _load(program, idle, problems)
    settings += _settings(program, idle, components, True, problems)
    if problems:
        raise ConfigError(_told(problems, reading))
    settings = _in_order(settings, program, components)
    science = _science(program, components, settings)
    run_file = precedence.run_file(reading, program, components)
    return Resolution(settings, science, program, components, imports, import_paths, run_file)


def _told(problems: Iterable[Problem], reading: Reading) -> list[str]:
    """The texts, each once, by file and line, the command line last."""
    order = {statement.origin.source: index for index, statement in reversed(list(enumerate(reading.statements)))}

    def place(problem: Problem) -> tuple[bool, int, str, int]:
        origin = problem.origin
        return origin.from_command_line, order.get(origin.source, 0), origin.source, origin.line or 0

    return list(dict.fromkeys(mask(str(problem)) for problem in sorted(problems, key=place)))


def _import(reading: Reading, folders: Sequence[Path], problems: list[Problem]) -> tuple[list[str], list[Path], bool]:
    imports: dict[str, None] = {}
    paths: dict[Path, None] = {}
    whole = True
    for statement in reading.statements:
        if isinstance(statement, Import) and statement.module not in imports:
            imports[statement.module] = None
            try:
                folder = import_user_module(statement.module, folders)
            except ImportProblem as error:
                problems.append(Problem(statement.origin, str(error)))
                whole = False
                continue
            if folder:
                paths[folder] = None
    return list(imports), list(paths), whole


def _load(program: Program, instances: Iterable[Instance], problems: list[Problem]) -> dict[str, Component]:
    """Import the modules of the components that are used."""
    loaded: dict[str, Component] = {}
    for instance in instances:
        if instance.name in loaded:
            continue
        try:
            own = program.command if program.command and program.command.name == instance.name else None
            loaded[instance.name] = component = own or load_component(instance.name)
            problems += checks.not_installed(component, checks.first_use(program, instance))
        except ConfigError as error:
            problems.append(Problem(checks.first_use(program, instance), str(error)))
        except Exception as error:  # a module may raise anything while it is imported
            place = program.known[instance.name].place
            text = f"cannot import {instance.name} ({place}): {type(error).__name__}: {error}"
            problems.append(Problem(checks.first_use(program, instance), text))
    return loaded


def _settings(
    program: Program,
    instances: Iterable[Instance],
    components: dict[str, Component],
    incomplete: bool,
    problems: list[Problem],
) -> list[Setting]:
    targets = _Targets(components)
    made = []
    for instance in instances:
        component = components.get(instance.name)
        if component is None:
            continue
        signature = signature_of(component)
        if signature.problem:
            text = f"the signature of {component.name} cannot be read: {signature.problem}; write it in Python"
            problems.append(Problem(checks.first_use(program, instance), text))
        problems += checks.names(program, instance, signature, component)
        if not incomplete:
            problems += checks.missing(program, instance, signature, component)
        made += _instance_settings(program, instance, signature, targets, problems)
    return made


def _instance_settings(
    program: Program, instance: Instance, signature: Signature, targets: _Targets, problems: list[Problem]
) -> list[Setting]:
    bound = program.effective(instance)
    made = []
    for name, parameter in signature.parameters.items():
        binding = bound.get(name)
        if binding is None:
            if not parameter.required:
                made.append(Setting(instance, name, checks.default_value(parameter)))
            continue
        try:
            value = program.value_of(binding.value)
        except UnknownMacro:
            continue
        except ValueProblem as error:
            problems.append(Problem(binding.origin, f"{checks.key(binding)}: {error}"))
            continue
        value = checks.fitted(program, binding, parameter, value, targets, problems)
        made.append(_setting(program, instance, binding, value))
    return made


def _in_order(settings: list[Setting], program: Program, components: dict[str, Component]) -> list[Setting]:
    """Settings by component, parents first, parameters as in the signature: however the files were written."""
    waiting = list(program.roots)
    order: dict[Instance, int] = {}
    while waiting:
        instance = waiting.pop(0)
        if instance in order:
            continue
        order[instance] = len(order)
        bound = program.effective(instance)
        for name in signature_of(components[instance.name]).parameters:
            if name in bound:
                waiting += [program.child(reference, instance) for reference in program.references(bound[name].value)]

    def place(setting: Setting) -> tuple[bool, int]:
        return program.known[setting.instance.name].type == "launch", order[setting.instance]

    return sorted(settings, key=place)


class _Targets(dict[str, Any]):
    """Classes and functions of components by name; unknown ones accept everything."""

    def __init__(self, components: dict[str, Component]) -> None:
        super().__init__({name: entry.target for name, entry in components.items()})

    def __missing__(self, name: str) -> Any:
        return lambda: None


def _setting(program: Program, instance: Instance, binding: Binding, value: Any) -> Setting:
    chain = [other for other in program.candidates(instance) if other.parameter == binding.parameter]
    origins = [str(other.origin) for other in chain]
    for macro in program.macros_in(binding.value):
        origins += [f"{macro} {definition.origin}" for definition in program.macros[macro]]
    overridden = []
    for other in chain[:-1]:
        try:
            overridden.append((str(other.origin), plain(program.value_of(other.value))))
        except ValueProblem:
            overridden.append((str(other.origin), "(cannot be computed)"))
    return Setting(instance, binding.parameter, value, binding.value, tuple(origins), tuple(overridden))


def _science(program: Program, components: dict[str, Component], settings: Iterable[Setting]) -> set[str]:
    """The settings that change numbers: reached from the run by parameters that do, through components that do.

    A parameter that came later is none while it has the value at which the component does as before.
    """
    values = {one.name: one.value for one in settings}
    found: set[str] = set()
    waiting = [root for root in program.roots if program.known[root.name].type == "run"]
    seen = set(waiting)
    while waiting:
        instance = waiting.pop()
        component = components[instance.name]
        if component.type in NOT_SCIENCE_TYPES:
            continue
        bound = program.effective(instance)
        for name, parameter in signature_of(component).parameters.items():
            setting = f"{instance}.{name}"
            if name in component.not_science or _as_before(component, parameter, values.get(setting)):
                continue
            found.add(setting)
            if name in bound:
                children = [program.child(one, instance) for one in program.references(bound[name].value)]
                waiting += [child for child in children if child not in seen]
                seen |= set(children)
    return found


def _as_before(component: Component, parameter: Parameter, value: Any) -> bool:
    if parameter.name not in component.as_before:
        return False
    before = checks.default_value(replace(parameter, default=component.as_before[parameter.name]))
    return canonical(value) == canonical(before)
