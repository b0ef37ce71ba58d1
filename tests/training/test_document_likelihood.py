"""Bits per byte of whole documents: lm-eval's windows, written here by hand, give the same number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packed.writer import PackedFileWriter
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from modlib.training.document_likelihood import DocumentLikelihood
from modlib.training.parts import Parts, assemble
from tests.workers import run_ranks

END, VOCAB, LENGTH = 0, 61, 8
LENGTHS = (1, 7, 8, 9, 16, 19, 3, 0, 33)
NUM_BYTES = 5 * sum(LENGTHS)


def documents() -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(1, VOCAB, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "documents.packed"
    with PackedFileWriter(path, vocab_size=VOCAB, end_of_document_id=END) as writer:
        for ids in documents():
            writer.write([*ids, END], num_bytes_of_text=5 * len(ids))
    return str(path)


def parts_of(loss: Any = None) -> Parts:
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with torch.device("meta"):
        model = GPT2(vocab_size=VOCAB, seq_len=LENGTH, num_layers=2, num_heads=2, dim=16, dropout=0.5)
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), "float32")
    model.to_empty(device="cpu")
    ComposedInitializer()(model, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return assemble(model, loss or CLMCrossEntropyLoss(), optimizer, scheduler, None, world, "float32", False)


def evaluate(path: str, micro_batch_size: int, loss: Any = None, max_length: int | None = None) -> float:
    parts = parts_of(loss)
    parts.model.train()
    dataset = lambda: PackedDocuments(path=path, seq_len=LENGTH, long_documents="cut")  # noqa: E731
    evaluator = DocumentLikelihood(dataset=dataset, every=5, max_length=max_length)
    evaluator.check_model(parts.model)
    values = evaluator.evaluate(parts, lambda rows: rows, micro_batch_size)
    assert parts.model.training
    assert list(values) == ["val/documents/lm_eval_bits_per_byte"]
    return values["val/documents/lm_eval_bits_per_byte"]


def windows_of_lm_eval(ids: list[int], prefix: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, continuation) as lm-eval 0.4's get_rolling_token_windows and make_disjoint_window give them."""
    first = min(length, len(ids))
    if not ids:
        return
    yield [prefix], ids[:first]
    done = first
    while done < len(ids):
        count = min(len(ids) - done, length)
        end = done + count
        before = ids[end - length - 1 : end - 1]
        yield before[: len(before) - (count - 1)], ids[end - count : end]
        done += count


def by_hand(length: int) -> float:
    model: Any = parts_of().model.eval()
    nats = 0.0
    for ids in documents():
        for context, continuation in windows_of_lm_eval(ids, END, length):
            inputs = (context + continuation)[-(length + 1) :][:-1]
            with torch.no_grad():
                chances = model(torch.tensor([inputs]))[0, -len(continuation) :].log_softmax(-1)
            nats -= chances[range(len(continuation)), continuation].sum().item()
    return nats / math.log(2) / NUM_BYTES


@pytest.mark.parametrize("micro_batch_size", [1, 4, 64])
@pytest.mark.parametrize("loss", [CLMCrossEntropyLoss(), ChunkedCLMCrossEntropyLoss(num_chunks=3)])
def test_equal_to_lm_evals_windows(packed: str, micro_batch_size: int, loss: Any) -> None:
    assert evaluate(packed, micro_batch_size, loss) == pytest.approx(by_hand(LENGTH), rel=1e-6)


def test_a_shorter_window_is_another_number(packed: str) -> None:
    assert evaluate(packed, 4, max_length=5) == pytest.approx(by_hand(5), rel=1e-6)
    assert abs(by_hand(5) - by_hand(LENGTH)) > 1e-4


def test_the_number_of_ranks_does_not_change_it(packed: str) -> None:
    assert run_ranks(2, evaluate, packed, 4) == pytest.approx([by_hand(LENGTH)] * 2, rel=1e-6)


def test_data_and_values_that_do_not_do_are_refused(packed: str, tmp_path: Path) -> None:
    with PackedFileWriter(tmp_path / "plain.packed", vocab_size=VOCAB) as writer:
        writer.write([1, 2, 3], num_bytes_of_text=3)
    with PackedFileWriter(tmp_path / "unknown.packed", vocab_size=VOCAB, end_of_document_id=END) as writer:
        writer.write([1, 2, END])

    def check(path: Any, **settings: Any) -> None:
        dataset = lambda: PackedDataset(path=str(path), seq_len=2)  # noqa: E731
        DocumentLikelihood(dataset=dataset, every=1, **settings).check_model(parts_of().model)

    def refusal(path: Any, **settings: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            check(path, **settings)
        return str(caught.value)

    assert refusal(tmp_path / "plain.packed") == (
        "prefix_id (None) must be given for data without an end-of-document token of its own; set it to the id of the "
        "token that begins a text"
    )
    assert refusal(tmp_path / "unknown.packed") == (
        "dataset (PackedDataset) must be made of packed files that know the bytes of their text; pack the text with "
        "modlib data pack"
    )
    assert refusal(packed, prefix_id=-1) == "prefix_id (-1) must be at least 0; it is a token's id"
    assert refusal(packed, prefix_id=61) == (
        "prefix_id (61) must be below the model's vocab_size (61); set it to the id of a token"
    )
    assert refusal(packed, max_length=9) == ("max_length (9) must be at most the model's seq_len (8); leave it out")
    assert refusal(packed, max_length=0) == "max_length (0) must be at least 1; use None for all positions"


def test_a_model_of_masked_tokens_is_refused(packed: str) -> None:
    evaluator = DocumentLikelihood(dataset=lambda: PackedDataset(path=packed, seq_len=2), every=1)
    model = parts_of().model
    model.model_type = "AutoModelForMaskedLM"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"model_type \('AutoModelForMaskedLM'\) must be 'AutoModelForCausalLM'"):
        evaluator.check_model(model)
