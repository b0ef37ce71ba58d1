"""Python values as JSON and back, exactly: the state that is not tensors.

JSON has no tuples, no integer keys and no counters; schedulers and random generators use them. They are written as
tagged objects (`{"!": "tuple", "items": [...]}`). Nothing else is accepted, so nothing else can ever be built on load.
"""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

from modlib.runtime.errors import CheckpointError

TAG = "!"


def encode(value: Any, where: str = "state") -> Any:
    """The value as something `json.dumps` can write and `decode` restores to an equal value of the same types.

    Args:
        value: None, bool, int, float, str, bytes, or list, tuple, dict, Counter of these; numpy and 0-d torch scalars
            become Python numbers.
        where: Its name, for the error.

    Raises:
        CheckpointError: The value is of another type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        # subclasses (numpy.float64 is a float, IntEnum an int) become the plain type
        for plain in (bool, int, float, str):
            if isinstance(value, plain):
                return plain(value)
        return None
    if isinstance(value, bytes):
        return {TAG: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        items = [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {TAG: "tuple", "items": items}
    if isinstance(value, dict):
        if type(value) is not Counter and TAG not in value and all(type(key) is str for key in value):
            return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
        pairs = [[encode(key, where), encode(item, f"{where}[{key!r}]")] for key, item in value.items()]
        return {TAG: "counter" if isinstance(value, Counter) else "dict", "items": pairs}
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return encode(value.item(), where)
    raise CheckpointError(
        f"{where} ({type(value).__module__}.{type(value).__qualname__}) must be one of None, bool, int, float, str, "
        "bytes, list, tuple, dict; convert it before saving"
    )


def decode(value: Any) -> Any:
    """The value that `encode` was given.

    Raises:
        ValueError: An unknown tag or a malformed tagged object.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    kind = value[TAG]
    if kind == "bytes" and isinstance(value.get("base64"), str):
        return base64.b64decode(value["base64"], validate=True)
    items = value.get("items")
    if not isinstance(items, list):
        raise ValueError(f"a tagged value ({kind!r}) has no items")
    if kind == "tuple":
        return tuple(decode(item) for item in items)
    if kind in ("dict", "counter"):
        pairs = {decode(key): decode(item) for key, item in items}
        return Counter(pairs) if kind == "counter" else pairs
    raise ValueError(f"unknown tag {kind!r}")
