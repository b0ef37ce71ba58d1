"""A tokenizer of each kind, a JSONL file and a packed file with documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modlib.data.packed.writer import PackedFileWriter
from modlib.data.text.tokenizer import train_byte_level_bpe

TEXTS = ["the quick brown fox", "jumps over the lazy dog"]


def make(folder: Path) -> None:
    """Write data.tokenizer.json, data.sentencepiece.model, data.jsonl and data.packed."""
    train_byte_level_bpe(TEXTS, folder / "data.tokenizer.json", vocab_size=270, end_of_document="<|endoftext|>")
    _sentencepiece(folder / "data.sentencepiece.model")
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with PackedFileWriter(folder / "data.packed", vocab_size=64, end_of_document_id=0) as writer:
        writer.write_documents(np.arange(60) % 64, np.full(12, 5), 60)


def _sentencepiece(path: Path) -> None:
    import sentencepiece

    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=file, vocab_size=300, model_type="bpe", byte_fallback=True,
            hard_vocab_limit=False, minloglevel=2, num_threads=1,
        )  # fmt: skip
