"""Training windows from all shards of a packed token file."""

from __future__ import annotations

import os
from functools import partial

from modlib.components import component
from modlib.data.datasets.combined_dataset import CombinedDataset
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed import shards


@component("dataset", "packed_shards")
class PackedShards(CombinedDataset):
    """Windows of seq_len + 1 tokens over the packed files that a pattern matches, one file after the other.

    Each file is cut into windows as by PackedDataset; no window reaches from one into the next, so up to seq_len tokens
    at the end of each are left out. Of files named as `modlib data pack --shard_tokens` and `modlib data chunk` name
    them all have to be there.

    Args:
        path: A pattern such as "books-*.packed", or one packed file or corpus. Files are ordered by path.
        seq_len: Inputs per window, at least 1.
        reuse_last_target: As for PackedDataset.
        intra_document_masking: As for PackedDataset.

    Raises:
        ConfigError: seq_len is below 1, or no file matches.
        DataError: A shard is missing, damaged, shorter than one window, or made by another tokenizer.
    """

    def __init__(
        self, *, path: str, seq_len: int, reuse_last_target: bool = True, intra_document_masking: bool = False
    ) -> None:
        found = shards.matching(path) if shards.is_pattern(path) else [path]
        make = partial(
            PackedDataset,
            seq_len=seq_len,
            reuse_last_target=reuse_last_target,
            intra_document_masking=intra_document_masking,
        )
        super().__init__(datasets=[partial(make, path=os.fspath(one)) for one in found])
        self.name = path
