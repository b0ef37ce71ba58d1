"""The catalogue: every class or function that a gin file can choose.

A component is a plain class or function with keyword arguments. The decorator registers it with gin (direct Python
calls stay as they are) and adds it to the catalogue. Shipped components are known without importing their modules
(the source is searched for the decorator), and torch's optimizers, schedulers and norms by a table of names: a config
imports only what it names.
"""

from __future__ import annotations

import ast
import importlib.util  # gin's resource reader uses importlib.util without importing it
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gin

from modlib.runtime.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])
PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
"""The folder of gin_configs/, slurm/ and experiments/: the repository, or a folder that only a wheel has."""


@dataclass(frozen=True)
class Component:
    """One entry of the catalogue.

    Args:
        type: What it is, e.g. "model"; also its gin module.
        variant: Which one, e.g. "gpt2".
        name: Its gin name.
        target: The class or function; None while its module is not imported.
        runtime_args: Arguments that Python passes at run time; a gin file may not set them.
        not_science: Parameters that do not change the numbers of a run; left out of the config's hash.
        as_before: Parameters that came later -> the value at which the component does as it did without them, where
            they are left out of the config's hash.
        non_finite: Parameters that may be inf or NaN; all others must be finite.
        module: The module that defines it.
        file: The source file.
        line: The line of its definition there.
        doc: First line of its docstring.
    """

    type: str
    variant: str
    name: str
    target: Callable[..., Any] | None = None
    runtime_args: tuple[str, ...] = ()
    not_science: tuple[str, ...] = ()
    non_finite: tuple[str, ...] = ()
    module: str = ""
    file: str = ""
    line: int = 0
    doc: str = ""
    as_before: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def selector(self) -> str:
        """The full gin selector, `type.name`."""
        return f"{self.type}.{self.name}"

    @property
    def place(self) -> str:
        """Where it is defined, `file:line`; the file relative to the repository when it is in there."""
        path = Path(self.file)
        shown = path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE) else path
        return f"{shown}:{self.line}" if self.line else str(shown or self.module)


@dataclass(frozen=True)
class Rename:
    """A component or parameter that had another name.

    Args:
        old: `OldName`, or `Name.old_parameter`.
        new: What it is called now, in the same form.
        since: The version that brought the new name.
        module: That declared it; "" for this package's own.
    """

    old: str
    new: str
    since: str
    module: str = ""


SHIPPED_RENAMES: tuple[Rename, ...] = ()
"""Names that components and parameters of this package had: one row each, never removed while runs with them exist."""
_declared: dict[str, Rename] = {}

CATALOGUE: dict[str, Component] = {}
"""Components whose module is imported, by gin name."""


def component(
    type: str,
    variant: str,
    *,
    name: str | None = None,
    runtime_args: Sequence[str] = (),
    not_science: Sequence[str] = (),
    as_before: Mapping[str, Any] | None = None,
    non_finite: Sequence[str] = (),
) -> Callable[[T], T]:
    """Register a class or function for gin files, under its type and variant.

    Args:
        type: What it is, e.g. "model"; also its gin module.
        variant: Which one, in snake_case, e.g. "gpt2".
        name: The gin name; default is the class's or function's own name. Must be unique.
        runtime_args: Arguments that only the running process knows; a gin file may not set them.
        not_science: Parameters that change no number of a run (where to log, how often to save).
        as_before: Parameters added to a component that runs exist of -> the value at which it does exactly as it did
            without them. At that value a parameter is left out of the config's hash, so these runs keep their
            identity. A row stays for good, also when the default changes later.
        non_finite: Parameters for which inf or NaN has a meaning; a gin file may set no other to them.

    Raises:
        ConfigError: The gin name is taken, or an argument named here is not in the signature.
    """

    def register(target: T) -> T:
        file, line = _defined_at(target)
        _register(
            Component(
                type,
                variant,
                name or target.__name__,
                target,
                tuple(runtime_args),
                tuple(not_science),
                tuple(non_finite),
                target.__module__,
                file,
                line,
                first_line(target.__doc__),
                dict(as_before or {}),
            )
        )
        return target

    return register


def renamed(old: str, new: str, *, since: str) -> None:
    """Let gin files go on using an old name, with a warning; for components of your own, beside their definition.

    Args:
        old: `OldName` of a component, or `Name.old_parameter`.
        new: What it is called now, in the same form; the component is registered already.
        since: The version or date of the change, for the warning.

    Raises:
        ConfigError: The new name is not there, or the old one still is.
    """
    entry = Rename(old, new, since, sys._getframe(1).f_globals.get("__name__", ""))
    if problem := rename_problem(entry):
        raise ConfigError(problem)
    _declared[old] = entry


def rename_problem(entry: Rename) -> str | None:
    """What is wrong with a row of renames; None if nothing is.

    Args:
        entry: Its new name may be an old name of another row; its component is imported if it is not yet.
    """
    word = f"renamed({entry.old!r}, {entry.new!r})"
    (old_owner, _, old_parameter), (owner, _, parameter) = entry.old.rpartition("."), entry.new.rpartition(".")
    if bool(old_owner) != bool(owner) or not entry.old or not entry.new or entry.old == entry.new:
        return f"{word} must name two components, or two parameters as in Name.parameter; correct one of them"
    known, table = known_components(), renames()
    if not owner:
        if entry.old in known:
            return f"{word}: {entry.old} must not be a component any more, but {known[entry.old].place} is; remove it"
        there = entry.new in known or entry.new in table  # a chain: its last row is checked
        return None if there else f"{word}: {entry.new} must be a component; correct the name"
    owner, old_owner = present_name(owner), present_name(old_owner)
    if owner not in known:
        return f"{word}: {owner} must be a component; correct the name"
    if owner != old_owner:
        return f"{word}: both must be parameters of one component; a parameter cannot move to another"
    target = load_component(owner).target
    assert target is not None
    parameters = inspect.signature(target).parameters
    if parameter not in parameters and parameter not in renamed_parameters(owner):
        return f"{word}: {parameter} must be a parameter of {owner} ({', '.join(parameters)}); correct the name"
    if old_parameter in parameters:
        return f"{word}: {old_parameter} must not be a parameter of {owner} any more, but is; remove it"
    return None


def present_name(component: str) -> str:
    """What a component is called now: its own name, or the end of its chain of renames."""
    table = renames()
    for _ in table:  # as many steps as there are rows, should they lead in a circle
        component = table[component].new if component in table else component
    return component


def renamed_parameters(component: str) -> dict[str, Rename]:
    """The renames of a component's parameters by their old names, under whichever name of it they were declared.

    Args:
        component: By its present name.
    """
    split = [(*old.rpartition("."), entry) for old, entry in renames().items()]
    return {parameter: entry for owner, _, parameter, entry in split if owner and present_name(owner) == component}


def renames() -> dict[str, Rename]:
    """Every rename by its old name: of this package, and of user modules that are imported."""
    alive = {old: entry for old, entry in _declared.items() if entry.module in sys.modules}
    return {entry.old: entry for entry in SHIPPED_RENAMES} | alive


def component_name(choice: Any) -> str:
    """The gin name of a configured class or function, as a gin file writes it."""
    origins = getattr(choice, "__mro__", ()) or (inspect.unwrap(choice),)  # gin makes a subclass, or wraps a function
    names = (name for origin in origins for name, entry in CATALOGUE.items() if entry.target is origin)
    return next(names, str(getattr(choice, "__name__", type(choice).__name__)))


def known_components() -> dict[str, Component]:
    """Every component by gin name: shipped (imported or not), torch's, and those of imported user modules."""
    return {**_torch_components(), **shipped_components(), **_alive()}


def load_component(name: str) -> Component:
    """The component with its target, importing the module that defines it.

    Raises:
        KeyError: No component has this name.
        ConfigError: This torch has no such class.
    """
    if (found := CATALOGUE.get(name)) and found.target is not None:
        return found
    entry = known_components()[name]
    module = importlib.import_module(entry.module)
    if name in CATALOGUE:
        return CATALOGUE[name]
    target = getattr(module, name, None)
    if target is None:
        raise ConfigError(f"{entry.module} of torch {sys.modules['torch'].__version__} has no {name}; use another one")
    file, line = _defined_at(target)
    there = inspect.signature(target).parameters  # an older torch has not all that a row names
    as_before = {parameter: value for parameter, value in entry.as_before.items() if parameter in there}
    loaded = replace(entry, target=target, file=file, line=line, doc=first_line(target.__doc__), as_before=as_before)
    _register(loaded)
    return loaded


def _register(entry: Component) -> None:
    if not entry.name.isidentifier():
        raise ConfigError(f"component name ({entry.name}) must be a Python identifier; give another name=")
    _refuse_duplicate(entry)
    assert entry.target is not None
    parameters = inspect.signature(entry.target).parameters
    for argument in (*entry.runtime_args, *entry.not_science, *entry.as_before, *entry.non_finite):
        if argument not in parameters:
            raise ConfigError(
                f"{entry.place}: component {entry.name} declares the argument {argument!r}, which is not in its "
                f"signature ({', '.join(parameters)}); correct runtime_args, not_science, as_before or non_finite"
            )
    with ExitStack() as stack:
        if gin.config_is_locked():  # a module imported in the middle of a run may bring components
            stack.callback(gin.config._set_config_is_locked, True)
            gin.config._set_config_is_locked(False)
        if entry.name in CATALOGUE:  # the same module again, after a reload: gin must take the new object
            stack.enter_context(gin.config.interactive_mode())
        CATALOGUE[entry.name] = entry
        gin.register(entry.name, module=entry.type, denylist=list(entry.runtime_args) or None)(entry.target)


def _refuse_duplicate(entry: Component) -> None:
    known = _alive().get(entry.name) or shipped_components().get(entry.name) or _torch_components().get(entry.name)
    if known is None:
        return
    if known.module == entry.module and (known.target is None or _qualname(known) == _qualname(entry)):
        return  # the same one: a module that was only searched is imported now, or one is imported again
    raise ConfigError(
        f"component name {entry.name} ({entry.place}) is taken by {known.place}; "
        f'give one of them another: @component("{entry.type}", "{entry.variant}", name=...)'
    )


def _qualname(entry: Component) -> str:
    return getattr(entry.target, "__qualname__", "")


def _alive() -> dict[str, Component]:
    """Registered components whose module is still the imported one."""
    return {name: entry for name, entry in CATALOGUE.items() if entry.module in sys.modules}


def _defined_at(target: Any) -> tuple[str, int]:
    """The file of a class or function, and the line of its `class` or `def`; 0 where there is no source."""
    try:
        file = inspect.getsourcefile(target) or ""
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, TypeError):
        return getattr(sys.modules.get(target.__module__), "__file__", None) or "", 0
    # inspect.getsourcelines would parse the whole module for a class; code objects already know a line near it
    code = getattr(target, "__code__", None) or getattr(target.__dict__.get("__init__"), "__code__", None)
    start = min(code.co_firstlineno, len(lines)) if code and code.co_filename == file else 0
    nearest = (*range(start, 0, -1), *range(start + 1, len(lines) + 1))
    if not inspect.isclass(target):  # a function's code begins at its decorators
        nearest = tuple(range(max(start, 1), len(lines) + 1))
    words = (f"class {target.__name__}", f"def {target.__name__}(", f"async def {target.__name__}(")
    return file, next((number for number in nearest if lines[number - 1].lstrip().startswith(words)), 0)


def first_line(doc: str | None) -> str:
    """The first line of a docstring that has words."""
    return next((line.strip() for line in (doc or "").splitlines() if line.strip()), "")


@cache
def shipped_components() -> dict[str, Component]:
    """The components of this package, found in its source without importing it."""
    found: dict[str, Component] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\n@component(" in text:
            module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            for entry in _decorated(ast.parse(text), module, str(path)):
                found.setdefault(entry.name, entry)
    return found


def _decorated(tree: ast.Module, module: str, file: str) -> Iterator[Component]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "component":
                given = dict(zip(("type", "variant"), map(ast.literal_eval, call.args)))
                given |= {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
                yield Component(
                    given["type"],
                    given["variant"],
                    given.get("name") or node.name,
                    None,
                    tuple(given.get("runtime_args", ())),
                    tuple(given.get("not_science", ())),
                    tuple(given.get("non_finite", ())),
                    module,
                    file,
                    node.lineno,
                    first_line(ast.get_docstring(node)),
                    dict(given.get("as_before", {})),
                )


# What training can drive as it is. Not LBFGS (needs a closure), SparseAdam (only sparse gradients), ReduceLROnPlateau
# (a metric in each step). SequentialLR and ChainedScheduler take built schedulers; modlib.optim.combined takes
# references. modlib.optim.unsharded has Adafactor and Rprop, which cannot work on shards; modlib.optim.schedules has
# OneCycleLR, which has an end.
OPTIMIZERS = {
    "Adadelta": "adadelta",
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamW": "adam_w",
    "Adamax": "adamax",
    "ASGD": "asgd",
    "Muon": "muon",
    "NAdam": "nadam",
    "RAdam": "radam",
    "RMSprop": "rmsprop",
    "SGD": "sgd",
}
SCHEDULERS = {
    "ConstantLR": "constant_lr",
    "CosineAnnealingLR": "cosine_annealing_lr",
    "CosineAnnealingWarmRestarts": "cosine_annealing_warm_restarts",
    "CyclicLR": "cyclic_lr",
    "ExponentialLR": "exponential_lr",
    "LambdaLR": "lambda_lr",
    "LinearLR": "linear_lr",
    "MultiStepLR": "multi_step_lr",
    "MultiplicativeLR": "multiplicative_lr",
    "PolynomialLR": "polynomial_lr",
    "StepLR": "step_lr",
}
NORMS = {"LayerNorm": "layer_norm", "RMSNorm": "rms_norm"}
TORCH_AS_BEFORE: dict[str, dict[str, Any]] = {}
"""`as_before` of torch's classes, by gin name: one row for each parameter that a newer torch adds to one of them."""


@cache
def _torch_components() -> dict[str, Component]:
    """torch's own classes under their torch names; not wrapped, not imported yet."""
    tables: tuple[tuple[str, str, dict[str, str], tuple[str, ...]], ...] = (
        ("optimizer", "torch.optim", OPTIMIZERS, ("params",)),
        ("scheduler", "torch.optim.lr_scheduler", SCHEDULERS, ("optimizer",)),
        ("layer_norm", "torch.nn", NORMS, ("normalized_shape", "device", "dtype")),
    )
    return {
        name: Component(
            type,
            variant,
            name,
            None,
            runtime_args,
            module=module,
            file=f"{module}.{name}",
            as_before=TORCH_AS_BEFORE.get(name, {}),
        )
        for type, module, names, runtime_args in tables
        for name, variant in names.items()
    }
