from __future__ import annotations

import json
from pathlib import Path

import pytest

from modlib.data.corpora.corpus_file import write_corpus
from modlib.runtime.errors import ConfigError


def test_so_many_documents_are_written_and_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = write_corpus(
        "markov", tmp_path / "new" / "a.jsonl", documents=5, length=30, progress=lambda *now: told.append(now)
    )
    texts = [json.loads(line)["text"] for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()]
    assert (made.documents, made.num_bytes_of_text) == (5, sum(len(text.encode()) for text in texts))
    assert len(texts) == 5
    assert told == [(number, 5) for number in range(1, 6)]
    assert made.bits_per_character is not None
    write_corpus("markov", tmp_path / "b.jsonl", documents=5, length=30, seed=1)
    assert (tmp_path / "b.jsonl").read_text() != (tmp_path / "new" / "a.jsonl").read_text()


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with pytest.raises(ConfigError, match=r"documents \(0\) must be at least 1; set it to 1 or more"):
        write_corpus("copy", out, documents=0)
    with pytest.raises(ConfigError, match=r"kind \('news'\) must be one of stdlib, markov, arithmetic, copy; choose"):
        write_corpus("news", out)  # type: ignore[arg-type]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus("copy", out, progress=stop)
    assert not list(tmp_path.iterdir())
    write_corpus("copy", out, documents=1, length=18)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=r"a.jsonl exists; choose another path, remove it, or pass --overwrite"):
        write_corpus("copy", out, seed=2)
    assert out.read_bytes() == before
