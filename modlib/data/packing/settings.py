"""What a packing is to do: every setting checked, before anything is written."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.data.packed.outputs import pack_record_beside, require_not_read, skipped_beside, tokenizer_beside
from modlib.data.packed.shards import shards_of
from modlib.data.packing.engine import SMALL_BYTES
from modlib.data.packing.journal import partial_folder
from modlib.data.text.chat import Chat
from modlib.data.text.chat_probe import probe_chat
from modlib.data.text.chat_template import find_chat_template
from modlib.data.text.fields import Field
from modlib.data.text.sources import Source, ending_of, find_sources
from modlib.data.text.tokenizer import TextTokenizer, Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.runtime.errors import ConfigError

logger = logging.getLogger("modlib")


@dataclass(frozen=True)
class PackPlan:
    """A packing; its parts are told in `modlib.data.packing.pack.pack`.

    Args:
        path: What the outputs are named after.
        sources: What is read.
        tokenizer: Turns texts into ids.
        field: Where the text is in a row.
        end_of_document_id: Ends each document.
        shares: Name of an output -> share of the documents; None -> 1 for one output.
        shard_tokens: Most tokens per shard; None makes one file per output.
        chat: How conversations become text; None for texts.
        workers: Processes.
        chat_probe: A made-up conversation with its mask, as text; None for texts, or where the template takes none.
    """

    path: Path
    sources: Sequence[Source]
    tokenizer: TextTokenizer
    field: Field
    end_of_document_id: int
    shares: Mapping[str | None, float]
    shard_tokens: int | None
    chat: Chat | None
    workers: int
    chat_probe: str | None

    @property
    def outputs(self) -> list[Path]:
        """The files to make; with shards, what they are named after."""
        path = self.path
        return [path if name is None else path.with_name(f"{path.stem}.{name}{path.suffix}") for name in self.shares]

    @property
    def existing(self) -> list[Path]:
        """The outputs, or shards of them, that are there."""
        if self.shard_tokens is not None:
            return [shard for output in self.outputs for shard in shards_of(output)]
        return [output for output in self.outputs if output.exists()]

    @property
    def folder(self) -> Path:
        """Where unfinished work lies."""
        return partial_folder(self.path)

    def decided_by(self) -> dict[str, Any]:
        """Everything that decides the bytes of the outputs: it may not change before a packing goes on."""
        template = {}
        if self.chat is not None:
            template = {"chat template": [self.chat.template.sha256, self.chat.template.variables]}
        return template | {
            "inputs": [[str(one.path), one.num_bytes, one.mtime_ns] for one in self.sources],
            "tokenizer": [self.tokenizer.fingerprint, self.tokenizer.settings],
            "field": self.field.name,
            "end of document": self.end_of_document_id,
            "split": [list(pair) for pair in self.shares.items()],
            "shard tokens": self.shard_tokens,
        }

    def told(self) -> dict[str, Any]:
        """The settings, for the record."""
        template: dict[str, Any] = {}
        if self.chat is not None:
            template = {"chat_template": self.chat.template.text, "chat_template_from": self.chat.template.name}
            template["chat_probe"] = self.chat_probe
        return {
            "field": self.field.name,
            "workers": self.workers,
            "split": None if None in self.shares else dict(self.shares),
            "shard_tokens": self.shard_tokens,
            "end_of_document_id": self.end_of_document_id,
            "tokenizer": str(self.tokenizer.path),
            "chat": self.chat is not None,
        } | template

    def tokenizer_copy(self, output: Path) -> tuple[Path, bytes | None]:
        """Where a copy of the tokenizer is kept beside an output, and the copy; None where it lies there."""
        tokenizer = self.tokenizer
        beside = tokenizer_beside(output)
        if isinstance(tokenizer, PretrainedSPTokenizer):
            beside = output.with_name(f"{output.stem}.tokenizer.model")
        elif not isinstance(tokenizer, Tokenizer):
            return beside, None
        if beside.exists() and tokenizer.path.exists() and beside.samefile(tokenizer.path):
            return beside, None
        if isinstance(tokenizer, Tokenizer) and not tokenizer.path.is_file():
            return beside, tokenizer.to_json().encode()
        return beside, tokenizer.path.read_bytes()


def planned(
    inputs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | TextTokenizer,
    field: str | None = None,
    split: Mapping[str, float] | None = None,
    shard_tokens: int | None = None,
    end_of_document: str | None = None,
    chat: bool = False,
    chat_template: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> PackPlan:
    """Check the arguments of `modlib.data.packing.pack.pack`, and find what they name.

    Raises:
        ConfigError: A setting is wrong, the chat template is, or a file to make is one of those that are read.
        DataError: An input, or the tokenizer, cannot be read.
    """
    path = Path(path)
    text_field = Field(field or ("messages" if chat else "text"), beside=("tools",) if chat else ())
    shares = _checked_split(split, shard_tokens)
    if ending_of(path):
        raise ConfigError(f"output ({path}) must not be a kind of input; name the output last")
    sources = find_sources(inputs)
    loaded = tokenizer if not isinstance(tokenizer, (str, os.PathLike)) else load_tokenizer(tokenizer)
    end_id = loaded.end_of_document_id(end_of_document)
    chats = _chat(loaded, text_field, sources, chat, chat_template)
    workers = _checked_workers(workers, sources)
    loaded = _for_processes(loaded, workers)
    probe = None if chats is None else _probed(chats, loaded, end_id)
    plan = PackPlan(path, sources, loaded, text_field, end_id, shares, shard_tokens, chats, workers, probe)
    read = [*(one.path for one in sources), loaded.path, *(() if chat_template is None else [chat_template])]
    require_not_read([*plan.existing, pack_record_beside(path), skipped_beside(path)], read)
    return plan


def _checked_split(split: Mapping[str, float] | None, shard_tokens: int | None) -> dict[str | None, float]:
    if shard_tokens is not None and shard_tokens < 1:
        raise ConfigError(f"shard_tokens ({shard_tokens}) must be at least 1; leave it out for one file")
    if split is None:
        return {None: 1.0}
    for name, share in split.items():
        if not name.isidentifier() or not 0 < share < 1:
            raise ConfigError(f"split ('{name}' = {share}) must be a name and a share between 0 and 1")
    if abs(sum(split.values()) - 1) > 1e-9:
        raise ConfigError(f"split (shares of {sum(split.values())} together) must add up to 1; correct a share")
    return {name: share for name, share in split.items()}  # noqa: C416  the keys' type is wider


def _chat(
    tokenizer: TextTokenizer, field: Field, sources: Sequence[Source], chat: bool, path: str | os.PathLike[str] | None
) -> Chat | None:
    if not chat:
        if path is not None:
            raise ConfigError(f"chat_template ({path}) must go with chat; add --chat")
        return None
    if tokenizer.settings:
        raise ConfigError(
            f"settings of the tokenizer ({tokenizer.settings}) must be none for chat: the template writes such tokens "
            "itself; leave them out"
        )
    if field.function is None and (text := next((one.path for one in sources if one.kind == "txt"), None)):
        raise ConfigError(f"input ({text}) must be .jsonl or .parquet for chat; a text file holds no messages")
    template = find_chat_template(tokenizer, None if path is None else Path(path))
    return Chat(field, template, tokenizer.special_tokens, tokenizer.added_tokens)


def _probed(chat: Chat, tokenizer: TextTokenizer, end_of_document_id: int) -> str | None:
    probe = probe_chat(chat, tokenizer, end_of_document_id)
    if probe is not None and probe.warning is not None:
        logger.warning("%s", probe.warning)
    return None if probe is None else probe.shown


def _checked_workers(workers: int | None, sources: Sequence[Source]) -> int:
    if workers is None:
        return 1 if sum(source.num_bytes for source in sources) < SMALL_BYTES else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ConfigError(f"workers ({workers}) must be at least 1; leave it out for one per core")
    return workers


def _for_processes(tokenizer: TextTokenizer, workers: int) -> TextTokenizer:
    """The tokenizer without threads of its own where there are several processes."""
    if isinstance(tokenizer, PretrainedSPTokenizer) and workers > 1:
        tokenizer = copy.copy(tokenizer)
        tokenizer.num_threads = 1
    return tokenizer
