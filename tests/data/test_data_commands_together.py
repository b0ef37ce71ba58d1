"""Any documents through pack, and what makes packed files of packed files: complete, in the promised order."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed.file import PackedFile
from modlib.data.packing import pack as packing
from modlib.data.packing.pack import PackProgress, pack
from modlib.data.rewriting.chunks import chunk
from modlib.data.rewriting.filter import filter_documents
from modlib.data.rewriting.merge import merge
from modlib.data.rewriting.mix import mix
from modlib.data.rewriting.shuffle import shuffle
from modlib.data.text import sources
from modlib.data.text.tokenizer import Tokenizer
from tests.data.packing.test_pack import BAD, SOME_TEXT, texts_of

BAD_ROWS = [*(row for row, _ in BAD.values()), b'{"text": "\\ud800"}', b"[]", b"null", b'{"text": null}', b"\xff"]
ROWS = st.lists(st.one_of(SOME_TEXT, SOME_TEXT, st.sampled_from(BAD_ROWS)), min_size=1, max_size=25)


class CutOff(Exception):
    pass


@pytest.mark.slow
@given(ROWS, st.integers(1, 200), st.integers(1, 8), st.one_of(st.none(), st.integers(1, 60)), st.integers(0, 3))
@settings(max_examples=40)
def test_nothing_is_lost_and_all_is_in_order(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[str | bytes],
    block_bytes: int,
    cut_after: int,
    shard_tokens: int | None,
    seed: int,
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(packing, "JOURNAL_S", 0)
    texts = [row for row in rows if isinstance(row, str)]
    if not texts:
        return
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(json.dumps({"text": r}).encode() if isinstance(r, str) else r for r in rows))
    made: dict[str, Any] = {"on_error": "skip", "shard_tokens": shard_tokens, "overwrite": True}
    summary = pack([source], tmp_path / "a.packed", tokenizer, **made)
    bad = [number for number, row in enumerate(rows, 1) if isinstance(row, bytes)]
    assert summary.num_skipped == len(bad)
    if summary.skipped is not None:
        assert [json.loads(line)["line"] for line in summary.skipped.read_text().splitlines()] == bad
    assert [text for path in summary.outputs for text in texts_of(path, tokenizer)] == texts
    once = {path.name: path.read_bytes() for path in summary.outputs}

    blocks = 0

    def cut(progress: PackProgress) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == cut_after:
            raise CutOff

    try:
        pack([source], tmp_path / "a.packed", tokenizer, **made, progress=cut)
    except CutOff:
        pack([source], tmp_path / "a.packed", tokenizer, **made, resume=True)
    assert {path.name: path.read_bytes() for path in summary.outputs} == once

    parts = list(summary.outputs)
    merged, out = tmp_path / "merged.packed", tmp_path / "out.packed"
    header = merge(parts, merged, overwrite=True)
    assert texts_of(merged, tokenizer) == texts
    again = shuffle(merged, out, seed=seed, overwrite=True)
    shuffled = texts_of(out, tokenizer)
    assert sorted(shuffled) == sorted(texts)
    assert shuffle(merged, out, seed=seed, memory_mib=1, overwrite=True).sha256 == again.sha256
    _, mixed = mix([merged, *parts], out, weights=[2, *[1] * len(parts)], seed=seed, overwrite=True)
    found = Counter(texts_of(out, tokenizer))
    assert sum(found.values()) == sum(one.documents for one in mixed)
    for text, count in Counter(texts).items():
        assert found[text] >= 2 * count  # once from the merged file, once from its part
    for old in tmp_path.glob("part-*"):
        old.unlink()
    chunks = [path for path, _ in chunk(merged, tmp_path / "part", num_chunks=min(3, len(texts)))]
    assert [text for path in chunks for text in texts_of(path, tokenizer)] == texts
    assert merge(chunks, out, overwrite=True).sha256 == header.sha256
    filter_documents(merged, out, lambda document: document.number % 2 == 0, overwrite=True)
    assert texts_of(out, tokenizer) == texts[::2]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".") or name.endswith(".partial")]


def test_of_twenty_documents_with_bad_rows_every_good_one_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Where Modalities' packer meets one empty document, it loses 14 of 20."""
    texts = [f"document {number}" for number in range(20)]
    bad = {
        0: (b'{"text": "caf\xe9"}', "must be UTF-8; byte 13 is not"),
        5: (b'{"text": ""}', "has an empty text at 'text'"),
        6: (b'{"text": "cut o', "must be JSON: unterminated string starting at (line 1, column 10)"),
        11: (b'{"body": "x"}', "has no 'text' (there is body)"),
        14: (b'{"text": 5}', "has no text at 'text' but int"),
        19: (b'{"text": null}', "has no text at 'text' but null"),
    }
    rows = [
        bad[number][0] if number in bad else json.dumps({"text": text}).encode() for number, text in enumerate(texts)
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(rows))
    summary = pack([tmp_path / "in.jsonl"], tmp_path / "a.packed", tokenizer, on_error="skip")
    assert texts_of(tmp_path / "a.packed", tokenizer) == [text for n, text in enumerate(texts) if n not in bad]
    assert PackedFile(tmp_path / "a.packed").num_documents == 14
    assert summary.num_skipped == 6
    assert summary.skipped is not None
    told = [json.loads(line) for line in summary.skipped.read_text().splitlines()]
    assert [(one["line"], one["reason"]) for one in told] == [
        (number + 1, reason) for number, (_, reason) in bad.items()
    ]
