"""What holds for every dataset: the Protocol, samples that a collator takes, workers, and whole runs that stop."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modlib.components import known_components
from modlib.data.batches.coca_collate import CoCaCollator
from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader
from modlib.data.batches.loss_masking import LossMaskingCollator
from modlib.data.batches.masked_lm import MaskedLMCollator
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.corpora.packing import pack_documents
from modlib.data.datasets.captioned_shapes import CaptionedShapes
from modlib.data.datasets.combined_dataset import CombinedDataset
from modlib.data.datasets.dataset import Dataset
from modlib.data.datasets.dummy_dataset import DummyDataset
from modlib.data.datasets.jsonl_dataset import JSONLDataset
from modlib.data.datasets.mixture_dataset import MixtureDataset
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.datasets.packed_shards import PackedShards
from modlib.data.packed.header import HEADER_BYTES
from modlib.data.text.tokenizer import Tokenizer
from modlib.distributed.clipping import GradientClipper
from modlib.distributed.process_group import World
from modlib.models.coca import CoCa
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.initialization import ComposedInitializer
from modlib.nn.contrastive import ContrastiveLoss, WeightedLosses
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.optim.schedules import DummyLR
from modlib.runtime.errors import DataError
from modlib.training.parts import assemble
from modlib.training.step import update
from tests.data.conftest import SENTENCES

SEQ_LEN = 12
NAMES = ["packed", "packed_documents", "jsonl", "dummy", "combined", "mixture"]
Make = Callable[[str], Any]


@pytest.fixture
def make(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(name): one dataset of each kind, of the same texts."""
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    texts = [*SENTENCES, "short", "", "[answer]"] * 4
    packed, lines = tmp_path / "data.packed", tmp_path / "data.jsonl"
    pack_documents(texts, packed, tokenizer)
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    load = functools.partial(Tokenizer, tokenizer.path)
    choices: dict[str, Callable[[], Any]] = {
        "packed": functools.partial(PackedDataset, path=str(packed), seq_len=SEQ_LEN),
        "packed_documents": functools.partial(
            PackedDocuments, path=str(packed), seq_len=SEQ_LEN, long_documents="cut", packing="best_fit"
        ),
        "jsonl": functools.partial(JSONLDataset, jsonl_path=str(lines), tokenizer=load, seq_len=SEQ_LEN),
        "dummy": functools.partial(DummyDataset, num_samples=40, seq_len=SEQ_LEN, vocab_size=300),
    }
    sources = list(choices.values())
    choices["packed_shards"] = functools.partial(PackedShards, path=str(tmp_path / "*.packed"), seq_len=SEQ_LEN)
    choices["combined"] = functools.partial(CombinedDataset, datasets=sources)
    choices["mixture"] = functools.partial(MixtureDataset, datasets=sources, weights=[4, 3, 2, 1])
    return lambda name: choices[name]()


@pytest.mark.parametrize("name", ["packed", "packed_shards", "packed_documents", "combined", "mixture"])
def test_an_id_that_the_header_does_not_promise_is_named_with_its_place(make: Make, tmp_path: Path, name: str) -> None:
    dataset = make(name)
    with open(tmp_path / "data.packed", "r+b") as file:
        file.seek(HEADER_BYTES + 2 * 7)
        file.write(b"\xff\xff")
    with pytest.raises(DataError, match=r"token id \(65535\) at token 7, byte 4110, document 0 of .*data\.packed must"):
        dataset.__getitems__(range(len(dataset)))
    with pytest.raises(DataError, match=r"SHA-256 of the contents of .*data\.packed"):
        dataset.check_unchanged()


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_protocol(make: Make, name: str) -> None:
    dataset: Dataset = make(name)
    assert dataset.seq_len == SEQ_LEN
    assert dataset.fingerprint == make(name).fingerprint
    assert 0 < dataset.num_tokens <= len(dataset) * SEQ_LEN
    assert dataset.num_documents
    assert dataset.bytes_per_token > 0
    dataset.check_vocabulary(320)
    with pytest.raises(DataError, match="vocab_size"):
        dataset.check_vocabulary(50)


@pytest.mark.parametrize("name", NAMES)
def test_samples_alone_and_together_are_the_same(make: Make, name: str) -> None:
    dataset = make(name)
    count = len(dataset)
    inputs, targets = LMCollator()(dataset.__getitems__(np.arange(count)))
    assert inputs.shape == targets.shape == (count, SEQ_LEN)
    alone = LMCollator()([dataset[index] for index in range(count)])
    backwards = LMCollator()([dataset[index - count] for index in range(count)])
    assert same(alone, (inputs, targets))
    assert same(backwards, (inputs, targets))
    assert same(LMCollator()(pickle.loads(pickle.dumps(dataset)).__getitems__(range(count))), (inputs, targets))
    if name != "mixture":
        assert int((targets != -100).sum()) == dataset.num_tokens


@pytest.mark.parametrize("name", NAMES)
def test_loader_stops_and_goes_on(make: Make, name: str) -> None:
    """Batches from a later step, loaded by forked workers, are those of one that never stopped."""

    def loader(num_workers: int) -> DataLoader:
        dataset = make(name)
        sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
        return DataLoader(
            dataset=dataset, sampler=sampler, collate=LMCollator(), layout=BatchLayout(8), num_workers=num_workers
        )

    with loader(0) as whole, loader(1) as resumed:
        batches = whole.iterate()
        steps = [next(batches)[0] for _ in range(8)]  # across epochs
        again = resumed.iterate(5)
        for step in (5, 6, 7):
            assert same(next(again)[0], steps[step])


# ------------------------------------------------------------------------------------ every dataset, every collator


def gpt2() -> GPT2:
    model = GPT2(vocab_size=320, seq_len=SEQ_LEN, num_layers=1, num_heads=2, dim=16)
    ComposedInitializer()(model, 0)
    return model


def bert() -> nn.Module:
    pytest.importorskip("transformers")
    sizes = {"vocab_size": 321, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": SEQ_LEN, "attention_probs_dropout_prob": 0.0}
    config = {"model_type": "bert", **sizes, "hidden_dropout_prob": 0.0}
    return HuggingFacePretrainedModel(config=config, model_type="AutoModelForMaskedLM")


def coca() -> CoCa:
    model = CoCa(
        image_size=16, patch_size=8, vision_layers=1, vision_dim=8, vision_heads=2, vocab_size=19, seq_len=SEQ_LEN,
        text_layers=1, multimodal_layers=1, dim=8, num_heads=2, num_vision_queries=2,
    )  # fmt: skip
    ComposedInitializer("plain", std=0.1)(model, 0)
    return model


def masking(tokenizer: Tokenizer) -> LossMaskingCollator:
    return LossMaskingCollator(
        collate=LMCollator, tokenizer=lambda: tokenizer, begin_token="[", end_token="]", on_bad_row="skip"
    )


# collator -> (it, the model that takes what it gives)
COLLATORS: dict[str, tuple[Callable[[Tokenizer], Any], Callable[[], nn.Module]]] = {
    "LMCollator": (lambda tokenizer: LMCollator(), gpt2),
    "LossMaskingCollator": (masking, gpt2),
    "MaskedLMCollator": (lambda tokenizer: MaskedLMCollator(mask_id=320, vocab_size=320, attention_mask=True), bert),
    "CoCaCollator": (lambda tokenizer: CoCaCollator(seq_len=SEQ_LEN), coca),
}
SHAPES = functools.partial(CaptionedShapes, num_samples=24, image_size=16, seq_len=SEQ_LEN)
NOISE = functools.partial(
    DummyDataset,
    num_samples=24,
    seq_len=SEQ_LEN,
    samples={
        "image": {"shape": (3, 16, 16), "dtype": "uint8", "high": 256},
        "tokens": {"shape": (9,), "dtype": "int64", "high": 19},
    },
)
PAIRS: dict[str, Callable[[], Any]] = {
    "shapes": SHAPES,
    "noise": NOISE,
    "combined": functools.partial(CombinedDataset, datasets=[SHAPES, NOISE]),
    "mixture": functools.partial(MixtureDataset, datasets=[SHAPES, NOISE], weights=[2, 1]),
}


def test_every_dataset_and_collator_of_the_catalogue_is_here() -> None:
    def names(kind: str) -> set[str]:
        return {
            name
            for name, entry in known_components().items()
            if entry.type == kind and entry.module.startswith("modlib")
        }

    assert names("collate_fn") == set(COLLATORS)
    kinds = {
        PackedDataset,
        PackedDocuments,
        PackedShards,
        JSONLDataset,
        DummyDataset,
        CombinedDataset,
        MixtureDataset,
        CaptionedShapes,
    }
    of_one_recipe = {"CharacterDataset", "ModularArithmetic"}  # their own tests put them through a collator
    assert names("dataset") == {kind.__name__ for kind in kinds} | of_one_recipe


def train_two_steps(
    dataset: Any, collator: str, tokenizer: Tokenizer, model: Callable[[], nn.Module] | None = None
) -> None:
    """Two steps as a run takes them, and the loss of the first one's batch after them."""
    make_collate, make_model = COLLATORS[collator]
    torch.manual_seed(0)
    model = (model or make_model)()
    loss = WeightedLosses(losses=(CLMCrossEntropyLoss, ContrastiveLoss)) if collator == "CoCaCollator" else None
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=1e-2)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    parts = assemble(
        model, loss or CLMCrossEntropyLoss(), optimizer, DummyLR(optimizer), GradientClipper, world, "float32", False
    )
    sampler = ShuffledSampler(seed=0, shuffle=False, num_samples=len(dataset))
    layout, collate = BatchLayout(len(dataset) // 4, 2), make_collate(tokenizer)
    with DataLoader(dataset=dataset, sampler=sampler, collate=collate, prefetch=0, layout=layout) as loader:
        losses = [update(parts, loader.batch(step), number).mean_loss() for number, step in enumerate((0, 1, 0), 1)]
        trained = sum(int((targets != -100).sum()) for _, targets in loader.batch(0))
    assert losses[2] < losses[0] or trained == losses[0] == 0
    assert trained or collator == "LossMaskingCollator"


@pytest.mark.parametrize("collator", [name for name in COLLATORS if name != "CoCaCollator"])
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_on_text(make: Make, tokenizer: Tokenizer, name: str, collator: str) -> None:
    train_two_steps(make(name), collator, tokenizer)


@pytest.mark.parametrize("name", PAIRS)
def test_two_steps_on_images_with_captions(tokenizer: Tokenizer, name: str) -> None:
    train_two_steps(PAIRS[name](), "CoCaCollator", tokenizer)


def test_a_collator_of_other_samples_says_so(make: Make, tokenizer: Tokenizer) -> None:
    for name in NAMES:
        with pytest.raises(DataError, match=r"what it has \(\w+\) must include image and tokens; use a dataset of"):
            COLLATORS["CoCaCollator"][0](tokenizer)(make(name).__getitems__([0, 1]))
    for collator in ("LMCollator", "LossMaskingCollator", "MaskedLMCollator"):
        for pairs in PAIRS.values():
            with pytest.raises(DataError, match=r"shape of the windows \(2,\) must be \(B, T \+ 1\)"):
                COLLATORS[collator][0](tokenizer)(pairs().__getitems__([0, 1]))
