"""Text by a SentencePiece model, from `data pack` to a run's own sample: its tokenizer is found everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.runtime.logs import stop_logging
from tests.cli.commands import modlib
from tests.launching_command import launch
from tests.rows import assets_data

pytest.importorskip("sentencepiece")
TEXTS = [f"the quick brown fox jumps over the lazy dog {number}" for number in range(40)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents, packed with a model that lies elsewhere."""
    folder, elsewhere = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("model")
    assets_data.make(elsewhere)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    model = elsewhere / "data.sentencepiece.model"
    modlib("data", "pack", folder / "text.jsonl", folder / "sp.packed", "--tokenizer", model)
    return folder / "sp.packed"


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    yield
    stop_logging()


def test_it_is_read_back_and_taken_along(file: Path, tmp_path: Path) -> None:
    words = ("data", "decode", "--document", "3", "--skip_special")
    assert modlib(*words, file).stdout == TEXTS[3] + "\n"
    assert "the" in modlib("data", "inspect", file, "--document", "0").stdout
    frequent = json.loads(modlib("data", "stats", file, "--json").stdout)["frequent"]
    assert any(one["text"] for one in frequent)
    modlib("data", "merge", file, file, tmp_path / "twice.packed")
    assert [path.name for path in tmp_path.glob("*.tokenizer.*")] == ["twice.tokenizer.model"]
    assert modlib(*words, tmp_path / "twice.packed").stdout == TEXTS[3] + "\n"
    (tmp_path / "my_sp_filter.py").write_text("def keep(document):\n    return document.text.endswith('7')\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(tmp_path)
        modlib("data", "filter", file, tmp_path / "kept.packed", "--keep", "my_sp_filter:keep")
    assert modlib("data", "decode", tmp_path / "kept.packed", "--document", "0", "--skip_special").stdout == (
        TEXTS[7] + "\n"
    )


@pytest.mark.slow
def test_a_run_on_it_has_text(file: Path, tmp_path: Path) -> None:
    vocab_size = PretrainedSPTokenizer(file.with_name("sp.tokenizer.model")).vocab_size
    params = ["NUM_STEPS=1", f"DATA='{file}'", f"VAL_DATA='{file}'", "SEQ_LEN=8", f"GPT2.vocab_size={vocab_size}"]
    params += ["WARMUP_STEPS=0", "CHECKPOINT_EVERY=1", "TextSample.prompt='the quick'"]
    done = launch("debug/tiny.gin", params, "--runs_dir", str(tmp_path), "--name", "sp")
    assert done.returncode == 0, done.stderr
    sample = json.loads((tmp_path / "sp" / "run.json").read_text())["sample"]
    assert sample.startswith("the quick")
    words = ("generate", tmp_path / "sp", "--prompt", "the quick", "--max_new_tokens", "8")
    assert modlib(*words).stdout == sample + "\n"
    text = modlib("data", "batch", "sp", "1", "--sequence", "0", "--runs_dir", tmp_path).stdout
    assert any(word in text for word in ("fox", "the", "dog", "over"))
