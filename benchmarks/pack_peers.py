"""Text to packed files by other projects' own code, from one JSONL, with two processes.

    pip install --no-deps datatrove litdata modalities megatron-core datasets      # see data_peers.py
    python benchmarks/pack_peers.py --tokenizer gpt2/tokenizer.json      # 24 MB of Python sources
    python benchmarks/pack_peers.py --tokenizer gpt2/tokenizer.json --megabytes 4 --rounds 2 --only modlib litdata

From the file to the peer's own packed file on the disk, each document followed by the end-of-document token; 1 is
`tokenizers` encode_batch on the same cores with the texts in memory. The texts are those of pack.py. Each variant has a
process of its own with everything imported, from which it starts its two, anew in every round, as its library does.
The tokens that each wrote are counted: all but modlib read an "<|endoftext|>" that stands in a text as the token.

datatrove and litdata share work among processes by files, and get the text as two. datatrove does not shuffle here.
litdata's function tokenizes document by document, as in its README. Modalities' time has its index in it, batches of 10
and queues of 300. megatron-core comes without tools/preprocess_data.py: its loop is written anew (imap of 32 lines
at a time, IndexedDatasetBuilder, megatron-core's HuggingFaceTokenizer without its way over the tokens' texts). datasets
reads the JSONL into its cache and maps it, in batches of 1,000 rows, to another Arrow file.
"""

# Imports are where they are used: processes that a peer starts load this file again.

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

END = "<|endoftext|>"


def installed(distribution: str, only: list[str] | None) -> bool:
    """Whether a peer is there and asked for; prints its version, or that it is not installed."""
    if only and distribution not in only:
        return False
    try:
        print(f"{distribution} {importlib.metadata.version(distribution)}")
    except importlib.metadata.PackageNotFoundError:
        print(f"{distribution}: not installed")
        return False
    return True


def write_jsonl(folder: Path, megabytes: float) -> tuple[Path, list[Path], float]:
    """One JSONL of real text, and the same as two files of about equal size; MB of its text."""
    from pack import texts_of

    lines = [json.dumps({"text": text}) + "\n" for text in texts_of(megabytes)]
    whole, sizes = folder / "all" / "in.jsonl", np.cumsum([len(line) for line in lines])
    middle = int(np.searchsorted(sizes, sizes[-1] / 2))
    halves = [folder / "halves" / f"{number}.jsonl" for number in range(2)]
    for path, part in zip([whole, *halves], [lines, lines[:middle], lines[middle:]], strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(part))
    return whole, halves, sum(len(json.loads(line)["text"].encode()) for line in lines) / 1e6


@dataclass(frozen=True)
class Job:
    """What to pack, where to, and with how many processes."""

    whole: Path
    halves: list[Path]
    tokenizer: Path
    processes: int
    out: Path


@cache
def raw_tokenizer(path: Path) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(path))


@cache
def texts_in(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.open()]


def raw_pack(job: Job) -> int:
    made = raw_tokenizer(job.tokenizer).encode_batch(texts_in(job.whole))
    return sum(len(one) + 1 for one in made)


def modlib_pack(job: Job) -> int:
    from modlib.data.packed.file import PackedFile
    from modlib.data.packing.pack import pack
    from modlib.data.tokenizers.from_files import load_tokenizer

    out = job.out / "out.packed"
    pack([job.whole], out, load_tokenizer(job.tokenizer), workers=job.processes)
    return len(PackedFile(out).tokens)


def datatrove_pack(job: Job) -> int:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    out = job.out / "tokens"
    writer = DocumentTokenizer(str(out), str(job.tokenizer), eos_token=END, shuffle_documents=False)
    LocalPipelineExecutor(
        [JsonlReader(str(job.halves[0].parent)), writer], tasks=job.processes, logging_dir=str(job.out / "logs")
    ).run()
    return sum(path.stat().st_size for path in out.glob("*.ds")) // 2


def ids_of_file(path: str, tokenizer: Path) -> Iterator[np.ndarray]:
    """A file's documents as ids, for litdata's optimize."""
    made = raw_tokenizer(tokenizer)
    end = made.token_to_id(END)
    with open(path) as file:
        for line in file:
            yield np.array([*made.encode(json.loads(line)["text"]).ids, end], np.uint16)


def litdata_pack(job: Job) -> int:
    litdata = importlib.import_module("litdata")
    os.environ |= {"DATA_OPTIMIZER_CACHE_FOLDER": f"{job.out}/c", "DATA_OPTIMIZER_DATA_CACHE_FOLDER": f"{job.out}/d"}
    litdata.optimize(
        fn=partial(ids_of_file, tokenizer=job.tokenizer),
        inputs=[str(path) for path in job.halves],
        output_dir=str(job.out / "tokens"),
        chunk_size=2049 * 8012,
        item_loader=litdata.TokensLoader(),
        num_workers=job.processes,
        verbose=False,
    )
    chunks = json.loads((job.out / "tokens" / "index.json").read_text())["chunks"]
    return sum(int(chunk["dim"]) for chunk in chunks)


def modalities_pack(job: Job) -> int:
    from modalities.dataloader.create_index import IndexGenerator
    from modalities.dataloader.create_packed_data import EmbeddedStreamData, PackedDataGenerator
    from modalities.tokenization.tokenizer_wrapper import PreTrainedHFTokenizer

    index, out = job.out / "in.idx", job.out / "out.pbin"
    IndexGenerator(job.whole).create_index(index)
    PackedDataGenerator(
        job.whole,
        tokenizer=PreTrainedHFTokenizer(str(job.tokenizer.parent)),
        eod_token=END,
        number_of_processes=job.processes,
        jq_pattern=".text",
        processing_batch_size=10,
        raw_samples_queue_size=300,
        processed_samples_queue_size=300,
        index_path=index,
    ).run(out)
    return EmbeddedStreamData(out, load_index=False).data_len // 2


_megatron: Any = None


def _start_megatron(folder: str) -> None:
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer

    global _megatron
    _megatron = HuggingFaceTokenizer(folder, use_fast=True, include_special_tokens=True)


def _encode_for_megatron(line: str) -> tuple[list[int], int]:
    ids = _megatron.text_to_ids(json.loads(line)["text"])
    ids.append(_megatron.eos_id)
    return ids, len(line)


def megatron_pack(job: Job) -> int:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    prefix, folder = str(job.out / "out_text_document"), str(job.tokenizer.parent)
    _start_megatron(folder)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(_megatron.vocab_size))
    with (
        multiprocessing.get_context("fork").Pool(job.processes, _start_megatron, (folder,)) as pool,
        open(job.whole) as file,
    ):
        for ids, _ in pool.imap(_encode_for_megatron, file, 32):
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return Path(f"{prefix}.bin").stat().st_size // 2


def huggingface_pack(job: Job) -> int:
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer.parent))

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(rows["text"])["input_ids"]]}

    loaded = datasets.load_dataset("json", data_files=str(job.whole), split="train", cache_dir=str(job.out))
    mapped = loaded.map(encode, batched=True, num_proc=job.processes, remove_columns=["text"])
    return sum(len(chunk.flatten()) for chunk in mapped.data.column("input_ids").chunks)


PACKERS: dict[str, tuple[str, str, Callable[[Job], int]]] = {
    "tokenizers encode_batch": ("tokenizers", "tokenizers", raw_pack),
    "modlib pack": ("modlib", "modlib", modlib_pack),
    "datatrove DocumentTokenizer": ("datatrove", "datatrove.pipeline.tokens", datatrove_pack),
    "litdata optimize": ("litdata", "litdata", litdata_pack),
    "Modalities PackedDataGenerator": ("modalities", "modalities.dataloader.create_packed_data", modalities_pack),
    "Megatron IndexedDatasetBuilder": ("megatron-core", "megatron.core.datasets.indexed_dataset", megatron_pack),
    "datasets load_dataset + map": ("datasets", "datasets", huggingface_pack),
}


def prepare(module: str, packer: Callable[[Job], int], job: Job) -> Callable[[], int]:
    """Import what a peer is used from; then, whenever called, pack into an empty folder, and say how many tokens."""
    importlib.import_module(module)

    def run() -> int:
        shutil.rmtree(job.out, ignore_errors=True)
        job.out.mkdir()
        return packer(job)

    return run


def measure(options: argparse.Namespace) -> None:
    """Speeds against encode_batch."""
    from apart import Apart
    from interleave import interleave, report

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        whole, halves, megabytes = write_jsonl(folder, options.megabytes)
        job = Job(whole, halves, options.tokenizer.resolve(), options.processes, folder)
        variants: dict[str, Callable[[], int]] = {}
        for number, (name, (distribution, module, packer)) in enumerate(PACKERS.items()):
            if not installed(distribution, options.only and ["tokenizers", *options.only]):
                continue
            own = replace(job, out=folder / f"out{number}")
            try:
                variants[name] = stack.enter_context(Apart(folder / f"{number}.log", prepare, module, packer, own))
            except ImportError as error:
                print(f"{name}: not installed ({error})")
        tokens = {name: run() for name, run in variants.items()}
        print("tokens written:", *(f"{name} {count:,};" for name, count in tokens.items()), flush=True)
        seconds = interleave(variants, options.rounds, warmup=0, tell=True)
        title = f"{megabytes:.1f} MB of text, {options.processes} processes"
        report(title, seconds, next(iter(PACKERS)), note="from JSONL to the disk, but encode_batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a tokenizer.json, tokenizer_config.json beside it"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone, by their names on PyPI")
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="for temporary files")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
