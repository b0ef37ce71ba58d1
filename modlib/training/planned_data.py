"""The data that a run names: is it there, and what is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modlib.components import known_components
from modlib.config import Config
from modlib.config.resolving import Setting
from modlib.config.values import MacroUse, plain
from modlib.data.corpora import corpus
from modlib.runtime.errors import ConfigError

PACKED_READERS = ("PackedDataset", "PackedDocuments", "PackedShards")  # these take corpora by name, too


def data_is_ready(config: Config) -> bool:
    """Whether every dataset of the run exists, so that building one makes nothing.

    Raises:
        ConfigError: A path is neither that of a file nor a corpus; all such paths at once.
    """
    ready, problems = [], []
    for setting in _data_settings(config):
        path, reader = str(plain(setting.value)), setting.instance.name
        try:
            if reader in PACKED_READERS or path.startswith("stdlib:"):
                ready.append(corpus.is_prepared(path))
            elif not Path(path).exists():
                knob = setting.node.name if isinstance(setting.node, MacroUse) else setting.name
                problems.append(
                    f"path ('{path}') must be the file that {reader} reads, but there is no file "
                    f"{Path(path).absolute()}; name yours with: --gin_param \"{knob}='...'\""
                )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return all(ready)


def describe_data(config: Config, dataset: Any) -> dict[str, Any]:
    """What the banner and the plan say about the training data."""
    if dataset is None:
        path = next((str(plain(one.value)) for one in _data_settings(config)), "")
        return {"path": path, "note": "made on the first run" if path.startswith("stdlib:") else "not there"}
    known = {"path": dataset.name, "num_tokens": dataset.num_tokens, "num_documents": dataset.num_documents}
    known["has_tokenizer"] = bool(getattr(dataset, "tokenizer_fingerprint", ""))
    padding = getattr(dataset, "padding", None)
    return known if padding is None else known | {"padding": padding}


def _data_settings(config: Config) -> list[Setting]:
    """Where the run names its files and corpora: `path` of a dataset, or another parameter with a corpus."""
    known = known_components()
    found = []
    for setting in config.settings:
        entry, value = known.get(setting.instance.name), plain(setting.value)
        is_corpus = isinstance(value, str) and value.startswith("stdlib:")
        if entry is not None and entry.type == "dataset" and (setting.parameter == "path" or is_corpus):
            found.append(setting)
    return found
