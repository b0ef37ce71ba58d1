"""Random windows by other projects' own datasets, samplers and loaders.

    pip install --no-deps litdata mosaicml-streaming datatrove modalities ai2-olmo-core megatron-core datasets
    python benchmarks/data_peers.py      # 2.5 GB in the folder for temporary files
    python benchmarks/data_peers.py --tokens 5_000_000 --rounds 3 --only modlib litdata

Best into an environment of their own that sees torch and modlib: with --no-deps, so that none of them replaces torch or
numpy, and then, likewise with --no-deps, what their imports need: lightning-utilities obstore tifffile boto3 botocore
s3transfer jmespath (litdata), brotli zstd python-snappy cramjam catalogue (mosaicml-streaming), loguru humanize orjson
dill multiprocess (datatrove, datasets), jq omegaconf antlr4-python3-runtime==4.9.3 class_resolver click_pathlib einops
debugpy pandas (Modalities), cached-path dataclass-extensions importlib_resources bettermap google-cloud-storage
google-cloud-core google-api-core google-auth google-resumable-media google-crc32c (OLMo-core). A peer that cannot be
imported is named as not installed. mosaicml-streaming's image classes, which need torchvision, are left out.

Batches of inputs, and targets where the peer makes them, in int64, in one process (no worker processes), from
the page cache, each variant from its own format of the same tokens, shuffled and collated by the peer's own code in
the setting its documentation gives. The ids are random, in documents of 1,000 tokens; modlib, Modalities (.pbin) and
Megatron (.bin and .idx) have these documents, litdata has them in chunks of 8,012 windows as its README says, OLMo-core
the bare ids, and mosaicml-streaming's MDS one sample per window, cut while writing. Before anything is timed, the
first and the last window of a batch are looked up in the tokens. OLMo-core makes its targets later, in the training
step. What Megatron's training loop has for a sampler counts upwards (its dataset is shuffled): so does torch's here.
Each variant has a process of its own, which is stopped between its turns.
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from apart import Apart
from data import endless, nanogpt, write_tokens
from interleave import interleave, report
from pack_peers import installed
from torch import Tensor

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.foreign.convert import convert_to
from modlib.data.packed.file import PackedFile

DOCUMENT = 1000
Batches = Iterator[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Laid:
    """The tokens, and the shape of a batch."""

    packed: Path
    folder: Path
    batch_size: int
    seq_len: int

    @property
    def tokens(self) -> np.ndarray:
        return PackedFile(self.packed).tokens


def modlib_parts(laid: Laid) -> Batches:
    dataset = PackedDataset(path=str(laid.packed), seq_len=laid.seq_len)
    sampler, collate = ShuffledSampler(seed=0, num_samples=len(dataset)), LMCollator()
    for step in count():
        yield collate(dataset.__getitems__(sampler.indices(step * laid.batch_size, laid.batch_size)))  # type: ignore[misc]


def modlib_loader(laid: Laid, **settings: int) -> Batches:
    dataset = PackedDataset(path=str(laid.packed), seq_len=laid.seq_len)
    sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
    layout = BatchLayout(laid.batch_size)
    with DataLoader(dataset=dataset, sampler=sampler, collate=LMCollator(), layout=layout, **settings) as loader:  # type: ignore[arg-type]
        for (batch,) in loader.iterate():  # one micro-batch per step
            yield batch  # type: ignore[misc]


def documents_of(packed: str) -> Iterator[np.ndarray]:
    """The documents of a packed file, for litdata's optimize."""
    tokens = PackedFile(Path(packed)).tokens
    for start in range(0, len(tokens), DOCUMENT):
        yield np.array(tokens[start : start + DOCUMENT])


def litdata_windows(laid: Laid) -> Batches:
    """Batches made into inputs and targets as litgpt does."""
    litdata = importlib.import_module("litdata")
    folder, window = laid.folder / "litdata", laid.seq_len + 1
    litdata.optimize(
        fn=documents_of,
        inputs=[str(laid.packed)],
        output_dir=str(folder),
        chunk_size=window * 8012,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
        verbose=False,
    )
    loader = litdata.TokensLoader(block_size=window)
    dataset = litdata.StreamingDataset(input_dir=str(folder), item_loader=loader, shuffle=True, drop_last=True)
    batches = litdata.StreamingDataLoader(dataset, batch_size=laid.batch_size, num_workers=0, drop_last=True)
    while True:
        for batch in batches:
            yield batch[:, :-1].contiguous().long(), batch[:, 1:].contiguous().long()


def modalities_windows(laid: Laid) -> Batches:
    """Its collator leaves int32, which its loss makes int64: done here."""
    from modalities.dataloader.dataloader_factory import DataloaderFactory
    from modalities.dataloader.dataset_factory import DatasetFactory
    from modalities.dataloader.samplers import ResumableDistributedSampler
    from modalities.models.gpt2.collator import GPT2LLMCollateFn
    from torch.utils.data import BatchSampler

    path = laid.folder / "tokens.pbin"
    convert_to(laid.packed, path, "modalities")
    dataset = DatasetFactory.get_packed_mem_map_dataset_continuous(path, laid.seq_len, "input_ids", True)
    for epoch in count():
        sampler = ResumableDistributedSampler(dataset, rank=0, num_replicas=1, epoch=epoch, shuffle=True, seed=0)
        loader = DataloaderFactory.get_dataloader(
            dataloader_tag="train",
            dataset=dataset,
            batch_sampler=BatchSampler(sampler, laid.batch_size, drop_last=True),
            collate_fn=GPT2LLMCollateFn(sample_key="input_ids", target_key="target_ids"),
            num_workers=0,
            pin_memory=False,
        )
        for batch in loader:
            yield batch.samples["input_ids"].long(), batch.targets["target_ids"].long()


def olmo_windows(laid: Laid, num_threads: int | None = None) -> Batches:
    from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig

    path, work = laid.folder / "tokens.npy", laid.folder / f"olmo{num_threads}"
    if not path.exists():
        laid.tokens.tofile(path)
    dataset = NumpyFSLDatasetConfig(
        tokenizer=TokenizerConfig.gpt2(), paths=[str(path)], sequence_length=laid.seq_len, work_dir=str(work)
    ).build()
    size = laid.batch_size * laid.seq_len
    config = NumpyDataLoaderConfig(global_batch_size=size, seed=0, num_threads=num_threads, work_dir=str(work))
    loader = config.build(dataset)
    for epoch in count(1):
        loader.reshuffle(epoch)
        for batch in loader:
            yield batch["input_ids"], None
        loader.reset()


def megatron_windows(laid: Laid) -> Batches:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer
    from torch.utils.data import BatchSampler, SequentialSampler
    from torch.utils.data import DataLoader as TorchLoader

    prefix = laid.folder / "tokens"
    convert_to(laid.packed, prefix, "megatron")
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=laid.seq_len,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache=str(laid.folder / "megatron"),
        tokenizer=NullTokenizer(50_256),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    made = BlendedMegatronDatasetBuilder(GPTDataset, [None, None, None], lambda: True, config).build()
    dataset = made[0]
    while True:
        sampler = BatchSampler(SequentialSampler(dataset), laid.batch_size, drop_last=True)
        for batch in TorchLoader(dataset, batch_sampler=sampler, num_workers=0):
            yield batch["tokens"], batch["labels"]


def streaming() -> Any:
    """mosaicml-streaming without its image classes."""
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    return importlib.import_module("streaming")


def mosaic_windows(laid: Laid) -> Batches:
    module, folder, window = streaming(), laid.folder / "mds", laid.seq_len + 1
    tokens = laid.tokens
    with module.MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{window}"}) as writer:
        for start in range(0, len(tokens) - window + 1, laid.seq_len):
            writer.write({"tokens": np.array(tokens[start : start + window])})

    def collate(samples: list[dict[str, np.ndarray]]) -> tuple[Tensor, Tensor]:
        ids = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    dataset = module.StreamingDataset(local=str(folder), shuffle=True, batch_size=laid.batch_size)
    loader = module.StreamingDataLoader(
        dataset, batch_size=laid.batch_size, num_workers=0, collate_fn=collate, drop_last=True
    )
    while True:
        yield from loader


def nanogpt_windows(laid: Laid) -> Batches:
    length = len(laid.tokens)
    while True:
        yield nanogpt(laid.packed, length, laid.batch_size, laid.seq_len)


WINDOWS: dict[str, tuple[str, Callable[[Laid], Batches]]] = {
    "nanoGPT get_batch": ("numpy", nanogpt_windows),
    "modlib, dataset + sampler + collator": ("modlib", modlib_parts),
    "modlib, DataLoader, inline": ("modlib", partial(modlib_loader, prefetch=0)),
    "modlib, DataLoader (default)": ("modlib", modlib_loader),
    "litdata": ("litdata", litdata_windows),
    "Modalities": ("modalities", modalities_windows),
    "OLMo-core, 4 threads (default)": ("ai2-olmo-core", olmo_windows),
    "OLMo-core, no threads": ("ai2-olmo-core", partial(olmo_windows, num_threads=0)),
    "Megatron": ("megatron-core", megatron_windows),
    "mosaicml-streaming": ("mosaicml-streaming", mosaic_windows),
}


def pieces_of(window: np.ndarray, contents: mmap.mmap) -> int:
    """Of how few pieces of the tokens a window can be put together, each as long as it can be."""
    pieces = 0
    while len(window):
        found, missing = 0, len(window) + 1  # so many tokens are somewhere in a row, so many are not
        tried = len(window)
        while missing - found > 1:
            if contents.find(window[:tried].tobytes()) < 0:
                missing = tried
            else:
                found = tried
            tried = (found + missing) // 2
        if not found:
            raise SystemExit(f"id {window[0]} of a batch is nowhere in the tokens")
        window, pieces = window[found:], pieces + 1
    return pieces


def check(name: str, batch: tuple[Tensor, Tensor | None], laid: Laid) -> None:
    """A batch must be int64 of its shape, targets one further, and its first and last window a piece of the tokens.

    Megatron shuffles documents before it cuts windows, which then are of up to three.
    """
    inputs, targets = batch
    shape = (laid.batch_size, laid.seq_len)
    windows = inputs if targets is None else torch.cat([inputs, targets[:, -1:]], 1)
    right = all(part.shape == shape and part.dtype == torch.int64 for part in (inputs, targets) if part is not None)
    if not right or (targets is not None and not torch.equal(inputs[:, 1:], targets[:, :-1])):
        raise SystemExit(f"{name}: the batch is not int64 {shape} inputs, and targets one further")
    with open(laid.packed, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
        pieces = max(pieces_of(windows[at].numpy().astype(np.uint16), contents) for at in (0, -1))
    if pieces > (laid.seq_len // DOCUMENT + 2 if name == "Megatron" else 1):
        raise SystemExit(f"{name}: a window of the first batch is not in the tokens, but {pieces} pieces of it")


def prepare(name: str, laid: Laid, batches: int) -> Callable[[], None]:
    """What takes the next batches of a variant, whose first one is right."""
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(laid.folder / "chunks")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(laid.folder / "data")
    source = WINDOWS[name][1](laid)
    check(name, next(source), laid)
    return endless(lambda: source, batches)


def measure_windows(options: argparse.Namespace) -> None:
    """Speed of random windows against nanoGPT's get_batch."""
    tokens = options.tokens // DOCUMENT * DOCUMENT
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        laid = Laid(folder / "random.packed", folder, options.batch_size, options.seq_len)
        write_tokens(laid.packed, tokens, DOCUMENT)
        variants: dict[str, Callable[[], object]] = {}
        for number, (name, (distribution, _)) in enumerate(WINDOWS.items()):
            if not installed(distribution, options.only and ["numpy", *options.only]):
                continue
            try:
                own = Apart(folder / f"{number}.log", prepare, name, laid, options.batches)
            except ImportError as error:
                print(f"{name}: not installed ({error})")
                continue
            variants[name] = stack.enter_context(own)
        title = f"{options.batches} batches of {laid.batch_size} x {laid.seq_len} tokens from {tokens:,}"
        seconds = interleave(variants, options.rounds)
        report(title, seconds, next(iter(WINDOWS)), note="page cache warm; one process each, without workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = lambda text: int(text.replace("_", ""))  # noqa: E731
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone, by their names on PyPI")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help="for the files; default that of temporary files")
    parser.add_argument("--tokens", type=number, default=200_000_000)
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=12, help="nanoGPT's default")
    parser.add_argument("--batches", type=int, default=500, help="per variant and round")
    measure_windows(parser.parse_args())


if __name__ == "__main__":
    main()
