"""The tokenizer's files of an exported folder, for transformers 5 and for readers of version 4."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.data.text.boundary_tokens import BoundaryTokens
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.models.base_folder import TOKENIZER_FILES
from modlib.models.huggingface_config import transformers_module
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.runtime.json_files import JSONError, read_json

logger = logging.getLogger("modlib")

CLASS = "PreTrainedTokenizerFast"
"""What version 4 calls a tokenizer.json without a class of its own; version 5 knows the name too."""
_ONLY_VERSION_5 = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend")


@dataclass(frozen=True)
class DataTokenizer:
    """What the training data says of its tokenizer.

    Args:
        json: Its tokenizer.json; None where it is none of the tokenizers library.
        fingerprint: As in the data's header.
        boundaries: The tokens that end a document and begin a text; None where nobody said them.
        chat_template: The one that conversations were packed with, or None.
    """

    json: str | None
    fingerprint: str
    boundaries: BoundaryTokens
    chat_template: str | None = None


def is_of_base(base: Path, tokenizer: DataTokenizer | None) -> bool:
    """Whether the base's own tokenizer files are kept: unless the data was made with another tokenizer."""
    has = any((base / name).is_file() for name in TOKENIZER_FILES) or any(base.glob("*.model"))
    if not has or tokenizer is None or not tokenizer.fingerprint:
        return has
    try:
        other = load_tokenizer(base).fingerprint != tokenizer.fingerprint
    except ModlibError:  # files of another kind, such as vocab.json alone: nothing to compare
        return True
    if other and tokenizer.json is not None:
        logger.warning(
            "the tokenizer of the training data is another one than that of %s; the data's is written, without the "
            "folder's settings", base,
        )  # fmt: skip
    return not (other and tokenizer.json is not None)


def adjust_kept(folder: Path, tokenizer: DataTokenizer | None) -> None:
    """Make a base's tokenizer files, copied into the folder, readable for version 4, with the data's chat template.

    Nothing else in them is changed; where nothing is to change, they stay as they are, byte by byte.
    """
    file = folder / "tokenizer_config.json"
    try:
        told = read_json(file, dict[str, Any])
    except JSONError:
        told = {}
    changed = dict(told)
    if told.get("tokenizer_class") in _ONLY_VERSION_5 and (folder / "tokenizer.json").is_file():
        changed["tokenizer_class"] = CLASS
        changed.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(told.get("extra_special_tokens"), list):  # in version 4 a mapping of names
        changed.setdefault("additional_special_tokens", changed.pop("extra_special_tokens"))
    template = None if tokenizer is None else tokenizer.chat_template
    if template is not None and template != _template_in(folder, told):
        logger.warning("the chat template is the one that the training data was packed with, not the base folder's")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
        changed["chat_template"] = template
    if changed != told:
        file.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _template_in(folder: Path, told: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_bytes().decode(errors="replace")
    found = told.get("chat_template")
    if isinstance(found, list):
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return found if isinstance(found, str) else None


def write_tokenizer(folder: Path, tokenizer: DataTokenizer, seq_len: int | None) -> None:
    """Write the data's tokenizer as plain JSON that both versions read alike.

    Args:
        folder: Is there.
        tokenizer: With a json.
        seq_len: Longest text of the model; None where it does not say.

    Raises:
        ConfigError: transformers reads the token that ends a document as another id.
    """
    assert tokenizer.json is not None
    told: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": CLASS,
    }
    if seq_len is not None:
        told["model_max_length"] = seq_len
    end, begin = tokenizer.boundaries
    if end is not None and begin is not None:
        told |= {"bos_token": begin.text, "eos_token": end.text}
    if tokenizer.chat_template is not None:
        told["chat_template"] = tokenizer.chat_template
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8", newline="")
    (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    text = json.dumps(told, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if importlib.util.find_spec("transformers") is None:
        return  # a model of one's own needs no transformers; nothing here can read the files back
    read: Any = transformers_module().AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    for name, token, found in (("eos", end, read.eos_token_id), ("bos", begin, read.bos_token_id)):
        if token is not None and found != token.id:
            raise ConfigError(
                f"{name}_token of the exported tokenizer (id {found}) must be {token.text!r} of the training data (id "
                f"{token.id}); transformers reads its text as another token: rename the token in tokenizer.json"
            )
