"""Text to a packed file, end to end from JSONL, against the tokenizer libraries' own batch calls on texts in memory.

    python benchmarks/pack.py --tokenizer gpt2/tokenizer.json      # 48 MB of Python sources
    python benchmarks/pack.py --tokenizer spm.model --megabytes 16 --rounds 3

All use the same cores. The texts are the .py files of the installed packages, each a document. Each round runs every
variant in turn; speeds are medians of the rounds. The index is compared with a plain search for line ends with numpy
over the same mapped file.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleave import interleave, report

from modlib.data.line_index import find_lines, write_index
from modlib.data.pack import pack
from modlib.data.pack_engine import load_tokenizer


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json or a SentencePiece .model")
    parser.add_argument("--megabytes", type=float, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    texts = texts_of(options.megabytes)
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.packed"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        variants = raw_batch(options.tokenizer, texts, cores)
        baseline = next(iter(variants))
        for engine in ("auto", "tokenizer"):

            def packed(engine: str = engine) -> object:
                return pack([source], out, load_tokenizer(options.tokenizer), engine=engine, overwrite=True)  # type: ignore[arg-type]

            variants[f"pack, end to end, engine {engine}"] = packed
        report(
            f"{len(texts)} documents, {size / 1e6:.1f} MB of text, {cores} cores",
            interleave(variants, options.rounds),
            baseline,
        )
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            scans: dict[str, Callable[[], object]] = {
                "numpy: flatnonzero(bytes == LF)": lambda: np.flatnonzero(np.frombuffer(contents, np.uint8) == 10),
                "find_lines": lambda: find_lines(contents),
                "write_index, to the disk": lambda: write_index(source, Path(folder) / "index", overwrite=True),
            }
            seconds = interleave(scans, 3 * options.rounds)
            report(f"lines of {len(contents) / 1e6:.0f} MB of JSONL", seconds, next(iter(scans)))
            print(f"find_lines: {len(contents) / np.median(seconds['find_lines']) / 1e9:.2f} GB/s on one core")


if __name__ == "__main__":
    main()
