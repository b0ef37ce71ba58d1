"""What tokenizes when text is packed: the fast engine where it makes the same ids as the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modlib.data.packing.block_encoder import BlockEncoder
from modlib.data.text.chat import Chat
from modlib.data.text.fast_bpe import FastBPE, NotEquivalentError
from modlib.data.text.fields import Field
from modlib.data.text.sources import Source, read_blocks
from modlib.data.text.tokenizer import TextTokenizer, Tokenizer
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.runtime.errors import ConfigError

SMALL_BYTES = 1 << 20
"""Less text is packed by one process with the tokenizer itself: starting anything else would take longer."""
_SAMPLE_BYTES = 1 << 17  # of a few files, to compare the engines with


def choose_engine(
    wanted: str, tokenizer: TextTokenizer, sources: Sequence[Source], text_field: Field, chat: Chat | None = None
) -> tuple[FastBPE | None, str]:
    """The fast engine where it can be used, and a line that says what tokenizes, and why."""
    own = "sentencepiece" if isinstance(tokenizer, PretrainedSPTokenizer) else "tokenizers"
    if wanted == "tokenizer":
        return None, f"{own}, as asked for"
    if not isinstance(tokenizer, Tokenizer) or tokenizer.settings:
        why = f"the fast engine knows byte-level BPE alone, not {type(tokenizer).__name__}"
    elif wanted == "auto" and sum(source.num_bytes for source in sources) < SMALL_BYTES:
        return None, f"{own}: it is little text"
    else:
        try:
            fast = FastBPE(tokenizer, special_tokens=chat is not None)
            _compare(fast, sources, text_field, chat)
            return fast, "tiktoken, with the same ids: pre-tokenizer, merges and a sample were compared"
        except NotEquivalentError as error:
            why = f"{tokenizer.path} is not run by the fast engine, because {error}"
    if wanted == "fast":
        raise ConfigError(f"engine ('fast') must be able to run the tokenizer; {why}")
    return None, f"{own}: {why}"


def _compare(fast: FastBPE, sources: Sequence[Source], text_field: Field, chat: Chat | None) -> None:
    """Encode the beginnings of the first, middle and last file both ways."""
    dtype = np.dtype("<u4")
    kinds = [BlockEncoder(sources, text_field, fast.tokenizer, one, 0, dtype, chat=chat) for one in (fast, None)]
    for number in sorted({0, len(sources) // 2, len(sources) - 1}):
        block = next(read_blocks(sources[number : number + 1], text_field), None)
        if block is None:
            continue
        block = replace(block, start=replace(block.start, source=number), data=_beginning(block.data))
        one, other = (kind(block).parts[0] for kind in kinds)
        if not all(np.array_equal(getattr(one, what), getattr(other, what)) for what in ("tokens", "trained")):
            raise NotEquivalentError(f"its ids differ at the beginning of {sources[number].path}")


def _beginning(data: Any) -> Any:
    if isinstance(data, bytes):
        return data[: data.rfind(b"\n", 0, _SAMPLE_BYTES) + 1] or data
    if isinstance(data[0], bytes):
        return [data[0][:_SAMPLE_BYTES].decode("utf-8", "ignore").encode()]
    return data[:64]
