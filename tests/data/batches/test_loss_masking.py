from __future__ import annotations

import functools
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.loss_masking import LossMaskingCollator, spans
from modlib.data.datasets.jsonl_dataset import JSONLDataset
from modlib.data.datasets.windows import padded
from modlib.data.text.tokenizer import Tokenizer
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError, DataError

B, E, X = 1, 2, 9
"""Begin, end, anything else."""


def by_hand(row: list[int], train_end: bool) -> list[bool] | None:
    """Which targets are trained, token by token; None for a bad row."""
    inside, kept = False, []
    for token in row:
        if token == B and inside:
            return None
        if token == E and not inside:
            return None
        kept.append(inside and (token != E or train_end))
        inside = token == B or (inside and token != E)
    return None if inside else kept[1:]


@given(st.lists(st.lists(st.sampled_from([B, E, X, X]), min_size=6, max_size=6), min_size=1, max_size=5), st.booleans())
@settings(max_examples=300)
def test_spans_equal_a_walk_over_the_tokens(rows: list[list[int]], train_end: bool) -> None:
    kept, problems = spans(np.array(rows), B, E, train_end)
    for number, row in enumerate(rows):
        expected = by_hand(row, train_end)
        assert (number in problems) == (expected is None)
        if expected is not None:
            assert kept[number].tolist() == expected


@pytest.fixture
def masking(tokenizer: Tokenizer) -> functools.partial[LossMaskingCollator]:
    """A collator whose spans are between "[" and "]"; its ids are what the tests call B and E."""
    return functools.partial(
        LossMaskingCollator, collate=LMCollator, tokenizer=lambda: tokenizer, begin_token="!", end_token="#"
    )


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per character; "." is the end of a document."""
    return [0 if letter == "." else tokenizer.token_id(letter) for letter in text]


def test_targets_between_markers(masking: Any, tokenizer: Tokenizer) -> None:
    a, e = ids(tokenizer, "a#")
    rows = np.array([ids(tokenizer, text) for text in ("aa!aa#a", "!a#!#aa", "aaaaaaa", "!#aaaaa", "aaaa!a#")])
    inputs, targets = masking()(rows)
    assert inputs.tolist() == rows[:, :-1].tolist()
    assert targets.tolist() == [
        [-100, -100, a, a, e, -100],
        [a, e, -100, e, -100, -100],
        [-100] * 6,
        [e, *[-100] * 5],
        [-100, -100, -100, -100, a, e],
    ]
    _, without_end = masking(train_end=False)(rows)
    assert without_end.tolist() == [[-100 if target == e else target for target in row] for row in targets.tolist()]
    _, other = masking(ignore_index=-1, collate=lambda: LMCollator(ignore_index=-1))(rows)
    assert other.tolist() == [[-1 if target == -100 else target for target in row] for row in targets.tolist()]


def test_padding_and_what_the_dataset_masked_are_no_markers(masking: Any, tokenizer: Tokenizer) -> None:
    a, e = ids(tokenizer, "a#")
    short = padded([np.array(ids(tokenizer, "!a#"))], 6, e)  # padded with the end marker
    inputs, targets = masking(collate=lambda: LMCollator(attention_mask=True))(short)
    assert targets.tolist() == [[a, e, -100, -100, -100]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


BAD_ROWS = [
    ("a!a!a#a", "'!' at token 3 stands within a span that has not ended"),
    ("aa#a!a#", "'#' at token 2 has no '!' before it"),
    ("!a#a!aa", "'!' at token 4 has no '#'"),
    ("!aaaaaa", "'!' at token 0 has no '#'"),
]


@pytest.mark.parametrize(("text", "problem"), BAD_ROWS)
def test_bad_row_is_named(masking: Any, tokenizer: Tokenizer, text: str, problem: str) -> None:
    rows = np.array([ids(tokenizer, "a!a#aaa"), ids(tokenizer, text)])
    with pytest.raises(DataError) as caught:
        masking()(rows)
    assert str(caught.value) == (
        f"row 1 of a batch: {problem}; correct the data, keep documents whole (JSONLDataset, PackedDocuments), or set "
        "LossMaskingCollator.on_bad_row = 'skip'"
    )
    with pytest.raises(DataError, match=r"^row 1 of a batch \(sample 71\): '"):
        masking()(padded(list(rows), 7, 0, [70, 71]))


def test_bad_rows_are_masked_with_one_warning_when_skipped(
    masking: Any, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = np.array([ids(tokenizer, text) for text in ("aa!a#aa", *(text for text, _ in BAD_ROWS))])
    collator = masking(on_bad_row="skip")
    with caplog.at_level(logging.WARNING, "modlib"):
        _, targets = collator(rows)
        collator(rows[1:3])
    assert (targets[0] != -100).sum() == 2
    assert (targets[1:] == -100).all()
    assert collator.num_bad_rows == 6
    assert caplog.messages == [
        f"row 1 of a batch: {BAD_ROWS[0][1]}; such rows are masked whole, and counted without another warning"
    ]


def test_batch_without_markers_has_loss_zero(masking: Any, tokenizer: Tokenizer) -> None:
    _, targets = masking()(np.array([ids(tokenizer, "aaaa")]))
    loss = CLMCrossEntropyLoss()(torch.randn(1, 3, tokenizer.vocab_size), targets)
    assert loss.item() == 0.0


def test_wrong_markers_are_refused(masking: Any) -> None:
    with pytest.raises(ConfigError, match=r"begin_token \('!'\) must differ from end_token \('!'\)"):
        masking(end_token="!")
    with pytest.raises(ConfigError, match=r"token \('<\|endoftexts\|>'\) must be one token of .*'<\|endoftext\|>'"):
        masking(begin_token="<|endoftexts|>")
    with pytest.raises(ConfigError, match=r"\(images\) must be one tensor or have 'input_ids'; use another collator"):
        masking(collate=lambda: lambda samples: ({"images": samples}, samples))(torch.zeros(1, 3, dtype=torch.long))


def test_it_survives_pickling(tokenizer: Tokenizer) -> None:
    load = functools.partial(Tokenizer, tokenizer.path)
    collator = LossMaskingCollator(collate=LMCollator, tokenizer=load, begin_token="!", end_token="#")
    rows = np.array([ids(tokenizer, "a!a#")])
    assert torch.equal(pickle.loads(pickle.dumps(collator))(rows)[1], collator(rows)[1])


def test_answers_of_a_chat(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path))
    chats = ["ask!answer#ask!again#", "ask only", "ask!cut off"]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"text": chat}) + "\n" for chat in chats))
    load = functools.partial(Tokenizer, tokenizer.path)
    dataset = JSONLDataset(jsonl_path=str(path), tokenizer=load, seq_len=40)
    collator = LossMaskingCollator(collate=LMCollator, tokenizer=load, begin_token="!", end_token="#")
    _, targets = collator(dataset.__getitems__([0, 1]))
    assert [tokenizer.decode(row[row != -100].numpy()) for row in targets] == ["answer#again#", ""]
    with pytest.raises(DataError, match=r"^row 1 of a batch \(sample 2\): '!' at token \d has no '#'; correct"):
        collator(dataset.__getitems__([0, 2]))
