"""A hash of a batch, to tell whether two runs saw the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from modlib.data.batches.batch import Batch


def batch_fingerprint(micro_batches: Sequence[Batch]) -> str:
    """16 hex digits that are equal for equal batches: same values, shapes and order of micro-batches."""
    digest = hashlib.sha256()
    for inputs, targets in micro_batches:
        named = inputs if isinstance(inputs, dict) else {"": inputs}
        for tensor in (*(named[name] for name in sorted(named)), targets):
            array = tensor.detach().cpu().numpy()
            array = array.astype("<f8" if tensor.is_floating_point() else "<i8", order="C")
            digest.update(f"{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]
