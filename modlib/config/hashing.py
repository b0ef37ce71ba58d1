"""A configuration's hash: what it is computed from, and how a hash of an earlier rule is compared.

A stored hash is `<version>:<64 hex digits>`; one without a version is of the first rule. What changes the digits of a
configuration that could be run before needs a new version, and a way to compute the old digits, so that old run folders
are compared by the rule that they were written with.

1: every setting that changes numbers, as it was written or by default.
2: the same, but train.global_batch_size is always a number: that of the world that the run was planned for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from modlib.config.values import format_value

HASH_VERSION = 2
GLOBAL_BATCH = "train.global_batch_size"


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of settings by dotted name, in hex; the order of files, and of the keys of a dict, has no part in it."""
    lines = sorted(f"{name} = {canonical(value)}" for name, value in values.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def first_digests(values: Mapping[str, Any]) -> set[str]:
    """What the first rule made of a configuration: with its global batch left open, or given as that number."""
    left_open = {GLOBAL_BATCH: None} if GLOBAL_BATCH in values else {}
    return {digest({**values, **left_open}), digest(values)}


def versioned(digits: str) -> str:
    """The hash as it is stored."""
    return f"{HASH_VERSION}:{digits}"


def digits_of(stored: str) -> str:
    """The hex digits of a stored hash, of whichever version."""
    return stored.rpartition(":")[2]


def is_hash_of(stored: object, values: Mapping[str, Any]) -> bool:
    """Whether a stored hash is that of these settings, by the rule of its version; never by a rule not known here."""
    version, _, digits = stored.rpartition(":") if isinstance(stored, str) else ("unknown", "", "")
    if version == "":
        return digits in first_digests(values)
    return version == str(HASH_VERSION) and digits == digest(values)


def canonical(value: Any) -> str:
    """A value as gin text; equal for dicts of equal items, and for a list and a tuple."""
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{format_value(key)}: {canonical(item)}' for key, item in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(canonical, value))}]"
    return format_value(value)
