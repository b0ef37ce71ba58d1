"""Text to a packed file, end to end from JSONL, against the tokenizer libraries' own batch calls on texts in memory.

    python benchmarks/pack.py --tokenizer gpt2/tokenizer.json      # 24 MB of Python sources
    python benchmarks/pack.py --tokenizer spm.model --megabytes 16 --rounds 3
    python benchmarks/pack.py --tokenizer gpt2/tokenizer.json --gigabytes 5      # memory of one packing, and its speed

All use the same cores. The texts are the .py files of the installed packages, each a document. Each round runs every
variant in turn; speeds are medians of the rounds. The processes of the tiktoken variant are started before and get the
texts as they are. The index is compared with a plain search for line ends with numpy over the same mapped file.

With --gigabytes, `modlib data pack` runs once as its own command on a file of that size, and the memory of all its
processes is added up twenty times a second (pages that they share count several times).
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from interleave import interleave, report

from modlib.data.packing.pack import pack
from modlib.data.text.fast_bpe import FastBPE, NotEquivalentError
from modlib.data.text.line_index import find_lines, write_index
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer

_TEXTS_AT_ONCE = 1 << 21  # characters that a tiktoken process gets at a time

_peer: Any = None


def texts_of(megabytes: float) -> list[str]:
    """Python sources, about so many bytes of them."""
    found: list[str] = []
    size = 0.0
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        if size >= megabytes * 1e6:
            break
        text = path.read_text(encoding="utf-8", errors="replace")
        if text:
            found.append(text)
            size += len(text.encode())
    return found


def raw_batch(tokenizer: Path, texts: list[str], cores: int) -> dict[str, Callable[[], object]]:
    """The library's own batch call, with threads on all cores."""
    if tokenizer.suffix == ".model":
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        return {f"sentencepiece, {cores} threads": lambda: model.encode(texts, out_type=int, num_threads=cores)}
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(tokenizer))
    return {
        "tokenizers encode_batch": lambda: made.encode_batch(texts),
        "tokenizers encode_batch_fast": lambda: made.encode_batch_fast(texts),
    }


def _start_peer(ranks: dict[bytes, int], pattern: str) -> None:
    import tiktoken

    global _peer
    _peer = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _encode_with_peer(texts: list[str]) -> list[Any]:
    return [np.array(_peer.encode_ordinary(text), np.uint32) for text in texts]


def tiktoken_processes(tokenizer: Path, texts: list[str], cores: int, stack: ExitStack) -> dict[str, Any]:
    """tiktoken with the same merges in a process per core; nothing where it cannot run them."""
    loaded = load_tokenizer(tokenizer)
    if not isinstance(loaded, Tokenizer):
        return {}
    try:
        ranks = FastBPE(loaded).ranks
    except NotEquivalentError:
        return {}
    from tiktoken_ext.openai_public import r50k_pat_str  # of GPT-2's split; others are within a few percent

    batches: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, batches[-1])) > _TEXTS_AT_ONCE:
            batches.append([])
        batches[-1].append(text)
    context = multiprocessing.get_context("spawn")
    pool = stack.enter_context(context.Pool(cores, _start_peer, (ranks, r50k_pat_str)))
    return {f"tiktoken, {cores} processes": lambda: list(pool.imap(_encode_with_peer, batches))}


def compare(options: argparse.Namespace, cores: int) -> None:
    """Speeds of pack and of the index."""
    texts = texts_of(options.megabytes)
    size = sum(len(text.encode()) for text in texts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        source, out = folder / "in.jsonl", folder / "out.packed"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        variants = raw_batch(options.tokenizer, texts, cores)
        baseline = next(iter(variants))
        variants |= tiktoken_processes(options.tokenizer, texts, cores, stack)
        for engine in ("auto", "tokenizer") if len(variants) > 1 else ("auto",):

            def packed(engine: str = engine) -> object:
                return pack([source], out, load_tokenizer(options.tokenizer), engine=engine, overwrite=True)  # type: ignore[arg-type]

            variants[f"pack, end to end, engine {engine}"] = packed
        report(
            f"{len(texts)} documents, {size / 1e6:.1f} MB of text, {cores} cores",
            interleave(variants, options.rounds, tell=True),
            baseline,
        )
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            scans: dict[str, Callable[[], object]] = {
                "numpy: flatnonzero(bytes == LF)": lambda: np.flatnonzero(np.frombuffer(contents, np.uint8) == 10),
                "find_lines": lambda: find_lines(contents),
                "write_index, to the disk": lambda: write_index(source, folder / "index", overwrite=True),
            }
            seconds = interleave(scans, 3 * options.rounds)
            report(f"lines of {len(contents) / 1e6:.0f} MB of JSONL", seconds, next(iter(scans)))
            print(f"find_lines: {len(contents) / np.median(seconds['find_lines']) / 1e9:.2f} GB/s on one core")


def memory_of_tree(process: psutil.Process) -> int:
    """Resident bytes of a process and all below it."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def large(options: argparse.Namespace) -> None:
    """Memory and speed of packing one large file."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts_of(200)).encode()
    loaded = "import sys; from modlib.data.tokenizers.from_files import load_tokenizer as l\n"
    loaded += "t = l(sys.argv[1]); import psutil; "
    loaded += "print(psutil.Process().memory_info().rss)"
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.packed"
        with open(source, "wb") as file:
            while (room := int(options.gigabytes * 1e9) - file.tell()) > 0:
                file.write(lines if len(lines) <= room else lines[: lines.rfind(b"\n", 0, room) + 1] or lines)
                if len(lines) > room:
                    break
        one = subprocess.run(
            [sys.executable, "-c", loaded, str(options.tokenizer)], capture_output=True, text=True, check=True
        )
        started = time.perf_counter()
        words = ["data", "pack", str(source), str(out), "--tokenizer", str(options.tokenizer)]
        main = "from modlib.cli.main import main; main()"
        running = psutil.Popen([sys.executable, "-c", main, *words])
        peak = 0
        while running.poll() is None:
            try:
                peak = max(peak, memory_of_tree(running))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        if running.wait():
            raise SystemExit("packing failed")
        seconds = time.perf_counter() - started
        size = source.stat().st_size
        print(
            f"{size / 1e9:.2f} GB in {seconds:.1f} s, {size / seconds / 1e6:.1f} MB/s; all processes together had at "
            f"most {peak / 2**30:.2f} GiB; one that has only loaded the tokenizer has {int(one.stdout) / 2**30:.2f} GiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json or a SentencePiece .model")
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, help="pack a file of this size once, and watch the memory")
    parser.add_argument("--folder", help="for temporary files; about 1.5 times the size of the input")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if options.gigabytes is None:
        compare(options, cores)
    else:
        large(options)


if __name__ == "__main__":
    main()
