"""Which tokens end a document and begin a text, by id and by text: one choice for all that read packed data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from modlib.data.packed.header import PackedHeader
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime.errors import ConfigError


class BoundaryToken(NamedTuple):
    """A token at a border of a document; the id is what counts, the text is for people and files that name tokens."""

    id: int
    text: str


class BoundaryTokens(NamedTuple):
    """What ends a document, and what stands before its text; None where there is none."""

    end: BoundaryToken | None
    begin: BoundaryToken | None


BEGIN_OF_TEXT = "begin_of_text_id"
"""Where a packed header's info has the id that stands before every text, if packing put one there."""


def boundary_tokens(header: PackedHeader | None, tokenizer: TextTokenizer) -> BoundaryTokens:
    """The end-of-document and begin-of-text tokens of packed data: `generate` and `export` take them from here.

    The end is the id in the header, never one that is looked for anew; only where there is no header, or it names no
    end, the tokenizer chooses as `modlib data pack` would. The begin is the id that packing put before every text, or
    else the end: what ends a document is what the next one's first token is predicted from.

    Hand the ids on, not the texts: the library may read a text back as another id, or as none. A file that has to name
    the token gets `text`, which is the added token's own content (`<EOD>`, not the `<eod>` that its normalizer makes).

    Args:
        header: Of the packed data (`PackedFile(path).header`); None without any.
        tokenizer: That made the data.

    Raises:
        DataError: An id of the header is not in the tokenizer's vocabulary.
    """
    end_id = None if header is None else header.end_of_document_id
    begin_id = None if header is None else begin_of(header)
    return boundaries_of(end_id, begin_id, tokenizer)


def boundaries_of(end_id: int | None, begin_id: int | None, tokenizer: TextTokenizer) -> BoundaryTokens:
    """The same, from the two ids that a header (or a dataset's `end_of_document_id`) has."""
    if end_id is None:
        end_id = chosen_end(tokenizer)
    end = None if end_id is None else BoundaryToken(end_id, tokenizer.token_text(end_id))
    begin = end if begin_id is None else BoundaryToken(begin_id, tokenizer.token_text(begin_id))
    return BoundaryTokens(end, begin)


def begin_of(header: PackedHeader) -> int | None:
    """The id that stands before every text, as the header's info says; None where it says none that can be."""
    found = header.info.get(BEGIN_OF_TEXT)
    return found if isinstance(found, int) and 0 <= found < header.vocab_size else None


def begin_in_all(headers: Iterable[PackedHeader]) -> dict[str, int]:
    """What a header's info says of the token before every text, where all of these say the same; else nothing."""
    found = set(map(begin_of, headers))
    first = found.pop() if len(found) == 1 else None
    return {} if first is None else {BEGIN_OF_TEXT: first}


def chosen_end(tokenizer: TextTokenizer) -> int | None:
    """The id that ends a document where nothing else is said; None where the tokenizer has none to choose."""
    try:
        return tokenizer.end_of_document_id()
    except ConfigError:
        return None
