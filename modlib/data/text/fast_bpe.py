"""Byte-level BPE by tiktoken's engine, for tokenizer files whose ids it provably reproduces.

What has to hold, and why that is enough. The two engines differ in how they split text into words and in how they merge
the bytes of a word.

Words: the file must ask for one of the split patterns in PATTERNS, and nothing may change the text before. The
characters that count as letters, numbers and spaces are taken from the tokenizers library itself, so that two Unicode
versions cannot disagree.

Merges: `tokenizers` merges the adjacent pair that comes first in the file's list; tiktoken the pair whose joined bytes
are the token of lowest rank, whatever pair the list has for it. Take ranks by place in the list, and only tokens that
the list itself makes of their own bytes. Wherever two tokens x, y lie side by side and xy is such a token t, no merge
crossed their outer ends, so the merges between the ends are the ones that t's bytes alone go through. Those end in t,
and the only way from (x, y) to t is to merge them: the list has this pair. So both engines see the same pairs, in the
same order. (Where the list has several pairs for t, they must follow each other, so that the order is still one.)
Whole words are looked up first by tiktoken; for tokens that their own bytes lead to that changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from modlib.data.text.tokenizer import (
    Ids,
    Lengths,
    Spans,
    Tokenizer,
)
from modlib.runtime.json_files import parse_json

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_LLAMA3 = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
PATTERNS = {
    one: one.replace(r"[^\r\n\p{L}\p{N}]", r"[^\r\n@L@N]")
    .replace(r"[^\s\p{L}\p{N}]", "[^@S@L@N]")
    .replace(r"\p{L}", "[@L]")
    .replace(r"\p{N}", "[@N]")
    .replace(r"\S", "[^@S]")
    .replace(r"\s", "[@S]")
    for one in (_GPT2, _LLAMA3, _QWEN2)
}
"""Split patterns as tokenizer files write them, and the same for tiktoken, with @L, @N, @S for the classes."""

# Its regular expressions give up in a run of about a million spaces: texts with much shorter ones are left to the
# tokenizers library. They are found by a look at every 4,096th character.
_STRIDE = 1 << 12
_RUN = re.compile(r"\s{15}")
_LONG_TEXT = 16 * _STRIDE


class NotEquivalentError(Exception):
    """Why a tokenizer file is not run by the fast engine; the text completes "because"."""


class FastBPE:
    """Encodes as a tokenizer file does, three to seven times as fast. Survives pickling; runs in the calling thread.

    Args:
        tokenizer: The tokenizer whose ids are wanted.
        special_tokens: Whether they are wanted of texts in which special tokens are read, too.

    Raises:
        NotEquivalentError: tiktoken is not installed, or the ids are not known to be the same.
    """

    def __init__(self, tokenizer: Tokenizer, *, special_tokens: bool = False) -> None:
        self.tokenizer = tokenizer
        content = parse_json(tokenizer.to_json(), dict[str, Any], place="tokenizer")
        self.pattern = _with_classes(PATTERNS[_split_pattern(content)])
        _check_text_is_untouched(content)
        tokens, self.ids = _ranked(content)
        self.ranks = {token: rank for rank, token in enumerate(tokens)}
        self._special = _special_tokens(content) if special_tokens else {}
        # Where several begin, the longest is read, as by the tokenizers library.
        longest_first = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True)))
        self._between = re.compile(f"({longest_first})") if longest_first else None
        self._num_bytes = np.zeros(tokenizer.vocab_size, np.int64)  # of each id's text
        self._num_bytes[self.ids] = [len(token) for token in tokens]
        self._num_bytes[list(self._special.values())] = [len(token.encode()) for token in self._special]
        self._core = self._load()

    def _load(self) -> Any:
        try:
            from tiktoken._tiktoken import CoreBPE
        except ImportError as error:
            raise NotEquivalentError("tiktoken is not installed (pip install 'modlib[data]')") from error
        return CoreBPE(self.ranks, {}, self.pattern)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_core"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._core = self._load()

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; PlainTextError as of the tokenizer."""
        rows = [self._encode(text) for text in texts]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return self.tokenizer.plain_text.checked(texts, np.concatenate([*rows, np.zeros(0, np.uint32)]), lengths)

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[Ids, Spans]]:
        """Of each text its ids, special tokens read, nothing added; and where each token begins and ends in it."""
        return [self._with_spans(text) for text in texts]

    def _with_spans(self, text: str) -> tuple[Ids, Spans]:
        pieces = [text] if self._between is None else self._between.split(text)
        rows = [self._encode(piece) for piece in pieces[::2]]
        read = [np.array([self._special[piece]], np.uint32) for piece in pieces[1::2]]
        ids = np.concatenate([row for pair in zip_longest(rows, read, fillvalue=rows[0][:0]) for row in pair])
        ends = np.cumsum(self._num_bytes[ids])
        begins = ends - self._num_bytes[ids]
        if not text.isascii():
            of_byte = np.cumsum((np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80)  # its character, from 1
            begins, ends = of_byte[begins] - 1, of_byte[ends - 1]
        return ids, np.stack([begins, ends], axis=1)

    def _encode(self, text: str) -> Ids:
        if len(text) > _LONG_TEXT and _RUN.search(text[::_STRIDE]):
            return np.array(self.tokenizer.encode(text), np.uint32)
        return self.ids[self._core.encode_ordinary(text)]


def first_difference(fast: FastBPE, texts: Iterable[str]) -> str | None:
    """The beginning of the first text that the two engines encode differently; None when there is none."""
    texts = list(texts)
    ids, lengths = fast.encode_batch(texts)
    expected, expected_lengths = fast.tokenizer.encode_batch(texts)
    if np.array_equal(ids, expected) and np.array_equal(lengths, expected_lengths):
        return None
    for text in texts:
        if fast.encode_batch([text])[0].tolist() != fast.tokenizer.encode(text):
            return text[:80]
    return None


def _special_tokens(content: dict[str, Any]) -> dict[str, int]:
    """Text and id of each special token, all of which are read wherever they stand."""
    found = [added for added in content.get("added_tokens", []) if added["special"] and added["content"]]
    for added in found:
        if any(added.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            raise NotEquivalentError(f"it reads {added['content']!r} only as a word, or spaces with it")
    return {added["content"]: added["id"] for added in found}


def _split_pattern(content: dict[str, Any]) -> str:
    """The regular expression that splits text into words; the bytes of each are then mapped one to one."""
    found = content.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", []) if found.get("type") == "Sequence" else [found]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel":
        raise NotEquivalentError(f"its pre-tokenizer is {found.get('type')}, not ByteLevel")
    if last.get("add_prefix_space"):
        raise NotEquivalentError("it adds a space before the text (add_prefix_space)")
    own = bool(last.get("use_regex", True))
    if own and len(steps) == 1:
        return _GPT2
    if own or len(steps) != 2 or steps[0].get("type") != "Split":
        raise NotEquivalentError("its pre-tokenizer is not one split and then ByteLevel")
    pattern = steps[0].get("pattern", {}).get("Regex")
    if pattern not in PATTERNS or steps[0].get("behavior") != "Isolated" or steps[0].get("invert"):
        raise NotEquivalentError("its split pattern is none of the known ones")
    return str(pattern)


def _check_text_is_untouched(content: dict[str, Any]) -> None:
    if content.get("normalizer") is not None:
        raise NotEquivalentError(f"it normalizes text first ({content['normalizer'].get('type')})")
    read = [added["content"] for added in content.get("added_tokens", []) if not added["special"]]
    if read:
        raise NotEquivalentError(f"it reads added tokens out of the text ({', '.join(map(repr, read[:3]))})")
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise NotEquivalentError(f"its model is {model['type']}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise NotEquivalentError(f"its {name} is {model[name]!r}")


def _ranked(content: dict[str, Any]) -> tuple[list[bytes], npt.NDArray[np.uint32]]:
    """Tokens as bytes, in the order they are merged; and the id of each."""
    vocab: dict[str, int] = content["model"]["vocab"]
    to_byte = _bytes_of_characters()
    missing = [byte for character, byte in to_byte.items() if character not in vocab]
    if missing:
        raise NotEquivalentError(f"its vocabulary lacks {len(missing)} of the 256 bytes")
    made = ["".join(_pair(merge)) for merge in content["model"]["merges"]]
    merged = dict.fromkeys(made)  # in order, each once
    runs = sum(1 for before, after in zip([None, *made], made, strict=False) if before != after)
    if runs != len(merged):
        raise NotEquivalentError("its list of merges makes a token in two places")
    whole_words = bool(content["model"].get("ignore_merges"))
    plain = _plain_model(content)
    order = list(to_byte)
    rest = []
    for token in [*merged, *(token for token in vocab if len(token) > 1 and token not in merged)]:
        if any(character not in to_byte for character in token):
            if token in merged:
                raise NotEquivalentError(f"its token {token!r} is no sequence of bytes")
            continue
        pieces = [piece.id for piece in plain.tokenize(token)]
        if pieces == [vocab[token]]:
            order.append(token)
        elif whole_words:  # found as a whole word alone
            if len(pieces) == 2:
                raise NotEquivalentError(f"its token {token!r} is not made by its merges")
            rest.append(token)
    order += rest
    return [bytes(map(to_byte.__getitem__, token)) for token in order], np.array([vocab[t] for t in order], np.uint32)


def _plain_model(content: dict[str, Any]) -> Any:
    """The merges alone, without the look-up of whole words."""
    merges = [_pair(merge) for merge in content["model"]["merges"]]
    return tokenizers.models.BPE(vocab=content["model"]["vocab"], merges=merges)


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one, other


@cache
def _bytes_of_characters() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary -> the byte, in the order of bytes.

    Source: Radford et al., GPT-2's encoder, bytes_to_unicode.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    characters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return {characters[byte]: byte for byte in range(256)}


def _with_classes(template: str) -> str:
    for name, ranges in _classes().items():
        template = template.replace(name, ranges)
    return template


@cache
def _classes() -> dict[str, str]:
    """Letters, numbers and spaces as the tokenizers library has them, as ranges for a regular expression.

    Planes 4 to 13 hold no character in any version of Unicode, 15 and 16 none of a class.
    """
    planes = [*range(0x40000), *range(0xE0000, 0xF0000)]
    everything = "".join(chr(code) for code in planes if not 0xD800 <= code < 0xE000)
    found = {}
    for name, expression in (("@L", r"\P{L}+"), ("@N", r"\P{N}+"), ("@S", r"\S+")):
        kept = tokenizers.normalizers.Replace(tokenizers.Regex(expression), "").normalize_str(everything)
        codes = np.array([*map(ord, kept)])
        ends = np.flatnonzero(np.diff(codes) != 1)
        starts, lasts = codes[[0, *(ends + 1)]], codes[[*ends, -1]]
        found[name] = "".join(rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in zip(starts.tolist(), lasts.tolist(), strict=True))
    return found
