"""What tells one tokenizer from another, without the library that reads them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from modlib.runtime.json_files import parse_json


def tokenizer_fingerprint(text: str) -> str:
    """SHA-256, in hex, of what a tokenizer.json means: the order of keys, spaces, truncation and padding do not count.

    Raises:
        JSONError: The text is not a JSON object.
    """
    content = parse_json(text, dict[str, Any], place="tokenizer.json")
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
