"""What a transformers model is built from: the config in a folder, or one written down in a gin file."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modlib.runtime.errors import ConfigError
from modlib.runtime.hub_names import hub_hint
from modlib.runtime.json_files import JSONError, read_json

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Read by transformers for every architecture, beside the fields that a config class declares.
_ACCEPTED = {"model_type", "torch_dtype", "rope_theta", "rope_scaling", "partial_rotary_factor", "_name_or_path"}
_FLOAT, _NO_JSON = "__float__", ("Infinity", "-Infinity", "NaN")
_READ_BY_GETATTR = re.compile(r"""getattr\(\s*(?:self\.)?\w*config\s*,\s*["'](\w+)["']""")
_SURELY_MISSPELT = 0.9  # likeness of two names; published files have fields of their own, such as bos_token


def transformers_module() -> Any:
    """The transformers library, without its progress bars, which every rank would draw.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "HuggingFacePretrainedModel needs the transformers library; pip install 'modlib[huggingface]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def read_config(
    path: str | None, config: Mapping[str, Any] | str | None, overrides: Mapping[str, Any], attn_implementation: str
) -> Any:
    """The transformers config of a model, with the overrides in it and float32 as its dtype.

    Args:
        path: Folder with config.json and weights, or None.
        config: Fields with `model_type` among them, or a folder or file with them, or None.
        overrides: Fields to replace.
        attn_implementation: Written into the config; "sdpa" becomes "eager" for an architecture without it.

    Raises:
        ConfigError: Not exactly one of path and config, no such folder, an unknown model_type or field.
    """
    if (path is None) == (config is None):
        raise ConfigError(
            f"path ({path!r}) and config ({_short(config)}) must be exactly one; "
            "path loads weights from a folder, config builds the same architecture with random ones"
        )
    if isinstance(config, Mapping):
        where, given = "config", dict(config)
        _refuse_unknown(config, where)
    elif config is not None:
        where, given = f"config ('{config}')", _read_json("config", config)
        _refuse_misspelt(given, where)
    else:
        assert path is not None
        where, given = f"path ('{path}')", _read_json("path", path)
        _require_weights(path)
    if overrides:
        _refuse_unknown({"model_type": given.get("model_type"), **overrides}, "overrides")
    built = _build({**_without_dtype(given), **overrides}, where)
    if getattr(built, "quantization_config", None) is not None:
        raise ConfigError(f"{where} must not be quantized (quantization_config); use the plain weights")
    built.dtype = "float32"
    built._attn_implementation = attn_implementation
    return built


def _short(config: Any) -> str:
    return "a mapping" if isinstance(config, Mapping) else repr(config)


def _without_dtype(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in ("dtype", "torch_dtype")}


def _read_json(argument: str, place: str) -> dict[str, Any]:
    """The config.json in a folder, or the file itself."""
    path = Path(place).expanduser()
    if argument == "config" and path.is_file():
        file = path
    elif path.is_dir():
        file = path / "config.json"
    else:
        raise ConfigError(
            f"{argument} ('{place}') must be an existing local folder; there is no {path.absolute()}{hub_hint(place)}"
        )
    try:
        content: dict[str, Any] = _numbers(read_json(file, dict[str, Any]))
    except JSONError as error:
        raise ConfigError(f"{argument} ('{place}') must have a config.json of transformers: {error}") from error
    if "model_type" not in content:
        raise ConfigError(f"{argument} ('{place}') must have a config.json with a model_type")
    return content


def _numbers(content: Any) -> Any:
    """The content with the numbers that transformers 5 writes as objects, since JSON has none: infinity, NaN."""
    if isinstance(content, dict):
        if content.keys() == {_FLOAT} and content[_FLOAT] in _NO_JSON:
            return float(content[_FLOAT])
        return {name: _numbers(value) for name, value in content.items()}
    return [_numbers(value) for value in content] if isinstance(content, list) else content


def _require_weights(path: str) -> None:
    folder = Path(path).expanduser()
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ConfigError(
            f"path ('{path}') must hold weights ({', '.join(WEIGHT_FILES)}); "
            f"config = '{path}' builds the model with random ones"
        )


def _config_class(model_type: Any, where: str) -> Any:
    known = transformers_module().CONFIG_MAPPING
    if model_type not in known:
        close = difflib.get_close_matches(str(model_type), list(known.keys()), n=1)
        raise ConfigError(
            f"{where}: model_type ({model_type!r}) must be an architecture of transformers; "
            + (
                f"did you mean '{close[0]}'?"
                if close
                else "such as 'llama', 'gpt2' or 'bert'; code of a hub is not run"
            )
        )
    return known[model_type]


def _refuse_unknown(given: Mapping[str, Any], where: str) -> None:
    """transformers takes any name as a field and ignores it; a misspelt one must not pass."""
    if "model_type" not in given:
        raise ConfigError(f"{where} must have a model_type, such as 'llama', 'gpt2' or 'bert'")
    kind = _config_class(given["model_type"], where)
    declared = _declared(kind)
    known = declared | set(kind.attribute_map) | _ACCEPTED | _read_by_modeling(kind)
    problems = []
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(sorted(declared))}"
            problems.append(f"{where}: '{name}' must be a field of {kind.__name__}{hint}")
    if problems:
        raise ConfigError(problems)


def _refuse_misspelt(given: Mapping[str, Any], where: str) -> None:
    """Of a file, whose other unknown fields are its own affair, as those of published ones are."""
    kind = _config_class(given["model_type"], where)
    known = _declared(kind) | set(kind.attribute_map) | _ACCEPTED | _read_by_modeling(kind)
    problems = []
    for name in given.keys() - known:
        close = difflib.get_close_matches(name, sorted(known - given.keys()), n=1, cutoff=_SURELY_MISSPELT)
        if close:
            problems.append(f"{where}: '{name}' must be a field of {kind.__name__}; did you mean '{close[0]}'?")
    if problems:
        raise ConfigError(sorted(problems))


def _declared(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind().to_dict())


@cache
def _read_by_modeling(kind: Any) -> set[str]:
    """Fields that the architecture's own code reads where they are there, though its config class does not name them.

    The head_dim of many architectures is one. The code is read as text; nothing of it is imported.
    """
    folder = Path(inspect.getfile(kind)).parent
    files = sorted(folder.glob("modeling_*.py"))
    return {name for file in files for name in _READ_BY_GETATTR.findall(file.read_text(encoding="utf-8"))}


def _build(given: Mapping[str, Any], where: str) -> Any:
    values = dict(given)
    kind = _config_class(values.pop("model_type", None), where)
    try:
        return kind.from_dict(values)
    except Exception as error:  # each config class checks in its own way
        text = " ".join(str(error).split())
        raise ConfigError(f"{where} must be a valid {kind.__name__}: {text}") from error
