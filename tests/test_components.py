"""The catalogue: what is shipped is known without an import, and every name has one place."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gin
import pytest

from modlib import components
from modlib.components import CATALOGUE, Component, component, known_components, load_component, shipped_components
from modlib.runtime.errors import ConfigError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An imported module of a user with one component."""
    source = """
from modlib.components import component

@component("thing", "my_thing", runtime_args=("device",), not_science=("every",))
class MyThing:
    '''Does a thing.

    And more.
    '''

    def __init__(self, size=1, *, every=2, device=None):
        self.size, self.every, self.device = size, every, device
"""
    (tmp_path / "my_things.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_things")
    del sys.modules["my_things"]  # its name is free again


def test_an_entry(module: ModuleType) -> None:
    entry = CATALOGUE["MyThing"]
    assert entry.target is module.MyThing
    assert (entry.type, entry.variant, entry.name, entry.selector) == ("thing", "my_thing", "MyThing", "thing.MyThing")
    assert (entry.runtime_args, entry.not_science) == (("device",), ("every",))
    assert entry.doc == "Does a thing."
    assert entry.place == f"{module.__file__}:5"
    assert known_components()["MyThing"] == entry


def test_direct_calls_stay_as_they_are(module: ModuleType) -> None:
    gin.parse_config("MyThing.size = 7")
    assert module.MyThing().size == 1
    assert gin.get_configurable("thing.MyThing")().size == 7


def test_runtime_args_cannot_be_bound(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="device"):
        gin.parse_config("MyThing.device = 'cpu'")


def test_importing_again_replaces_the_entry(module: ModuleType) -> None:
    again = importlib.reload(module)
    assert CATALOGUE["MyThing"].target is again.MyThing
    assert type(gin.get_configurable("MyThing")()) is again.MyThing


def test_registering_while_gin_is_locked(module: ModuleType) -> None:
    gin.finalize()
    again = importlib.reload(module)
    assert gin.config_is_locked()
    assert CATALOGUE["MyThing"].target is again.MyThing


def test_duplicate_name_names_both_places(module: ModuleType) -> None:
    with pytest.raises(ConfigError) as caught:

        @component("thing", "other", name="MyThing")
        def other() -> None: ...

    text = str(caught.value)
    assert text.startswith(f"component name MyThing ({Path(__file__)}:")
    assert f"is taken by {module.__file__}:5; give one of them another" in text
    assert text.endswith('@component("thing", "other", name=...)')
    assert CATALOGUE["MyThing"].target is module.MyThing


def test_duplicate_name_in_one_module() -> None:
    @component("thing", "first", name="OnlyOnce")
    def first() -> None: ...

    try:
        with pytest.raises(ConfigError, match="component name OnlyOnce"):

            @component("thing", "second", name="OnlyOnce")
            def second() -> None: ...
    finally:
        CATALOGUE.pop("OnlyOnce")


def test_names_of_the_package_are_taken_before_they_are_imported() -> None:
    with pytest.raises(ConfigError, match=r"component name GPT2 .* is taken by modlib/models/gpt2\.py:\d+"):

        @component("model", "mine", name="GPT2")
        def mine() -> None: ...


def test_name_that_is_no_identifier() -> None:
    with pytest.raises(
        ConfigError, match=r"component name \(my-model\) must be a Python identifier; give another name="
    ):
        component("model", "mine", name="my-model")(lambda: None)


def test_declared_argument_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as caught:

        @component("thing", "declares", runtime_args=("devcie",))
        def declares(device: str) -> None: ...

    assert "component declares declares the argument 'devcie', which is not in its signature (device)" in str(
        caught.value
    )
    assert "declares" not in CATALOGUE


SHIPPED = sorted(shipped_components())


@pytest.mark.parametrize("name", SHIPPED)
def test_what_the_source_says_is_what_importing_gives(name: str) -> None:
    found = shipped_components()[name]
    loaded = load_component(name)
    assert loaded.target is not None
    fields = ("type", "variant", "name", "runtime_args", "not_science", "module", "file", "line", "doc")
    assert {field: getattr(loaded, field) for field in fields} == {field: getattr(found, field) for field in fields}
    assert loaded.doc, f"{name} needs a docstring"


def test_names_and_variants_are_unique() -> None:
    entries = list(known_components().values())
    kinds = [(entry.type, entry.variant) for entry in entries if entry.module.startswith(("modlib", "torch"))]
    assert len(kinds) == len(set(kinds))


TABLES = {**components.OPTIMIZERS, **components.SCHEDULERS, **components.NORMS}


@pytest.mark.parametrize("name", TABLES)
def test_torchs_own_classes(name: str) -> None:
    entry = load_component(name)
    assert entry.target is not None
    assert entry.target.__module__.startswith("torch.")
    assert entry.variant == TABLES[name]
    assert entry.target is getattr(sys.modules[known_module(entry)], name)


def known_module(entry: Component) -> str:
    return {"optimizer": "torch.optim", "scheduler": "torch.optim.lr_scheduler", "layer_norm": "torch.nn"}[entry.type]


# Not usable by training as they are; some have a component of this package in their place.
LEFT_OUT = {
    "LBFGS": None,
    "SparseAdam": None,
    "ReduceLROnPlateau": None,
    "Adafactor": "Adafactor",
    "Rprop": "Rprop",
    "OneCycleLR": "OneCycleLR",
    "SequentialLR": "SequentialSchedules",
    "ChainedScheduler": "ChainedSchedules",
}


def test_the_tables_name_everything_that_torch_has() -> None:
    import torch

    def public(module: ModuleType, kind: type) -> set[str]:
        found = {name: value for name, value in vars(module).items() if isinstance(value, type)}
        return {
            name for name, value in found.items() if issubclass(value, kind) and value is not kind and name[0] != "_"
        }

    schedulers = torch.optim.lr_scheduler
    assert public(torch.optim, torch.optim.Optimizer) - LEFT_OUT.keys() == set(components.OPTIMIZERS)
    assert public(schedulers, schedulers.LRScheduler) - LEFT_OUT.keys() == set(components.SCHEDULERS)
    for name, replacement in LEFT_OUT.items():
        if replacement is None:
            assert name not in known_components()
        else:
            ours = load_component(replacement).target
            assert issubclass(ours, getattr(torch.optim, name, None) or getattr(schedulers, name))  # type: ignore[arg-type]


def test_a_torch_that_lacks_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delitem(CATALOGUE, "Muon", raising=False)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"torch\.optim of torch \S+ has no Muon; use another one"):
        load_component("Muon")
    assert load_component("AdamW").target is torch.optim.AdamW


def test_torchs_classes_are_not_wrapped() -> None:
    import torch

    load_component("AdamW")
    gin.parse_config("optimizer.AdamW.lr = 0.5")
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    assert torch.optim.AdamW(parameters).defaults["lr"] == 1e-3
    made = gin.get_configurable("AdamW")(parameters)
    assert type(made) is torch.optim.AdamW
    assert made.defaults["lr"] == 0.5


def test_the_catalogue_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom modlib.components import known_components\nassert 'AdamW' in known_components()\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
