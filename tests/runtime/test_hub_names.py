"""What looks like a name of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.data.corpora import corpus
from modlib.data.datasets.characters import CharacterDataset
from modlib.data.foreign.convert import convert_from
from modlib.data.text.chat_template import find_chat_template
from modlib.data.text.line_index import write_index
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.models.huggingface_config import read_config
from modlib.runtime.errors import ConfigError
from modlib.runtime.hub_names import hub_hint
from tests.data.small_tokenizers import t5


@pytest.mark.parametrize(
    ("name", "download"),
    [
        ("openai-community/gpt2", "hf download openai-community/gpt2 --local-dir gpt2"),
        ("meta-llama/Llama-3.1-8B", "hf download meta-llama/Llama-3.1-8B --local-dir Llama-3.1-8B"),
        ("folder", ""),
        ("a/b/c", ""),
        ("/a/b", ""),
        ("data/train.packed", ""),
    ],
)
def test_a_name_and_what_is_none(name: str, download: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_hint(name).partition(": ")[2] == download


NAME = "owner/name"
MODEL, DATASET = f"hf download {NAME} --local-dir name", f"hf download --repo-type dataset {NAME} --local-dir name"


@pytest.mark.parametrize(
    ("call", "download"),
    [
        (lambda: load_tokenizer(NAME), MODEL),
        (lambda: find_chat_template(load_tokenizer(t5(Path("t5"))), Path(NAME)), MODEL),
        (lambda: read_config(NAME, None, {}, "sdpa"), MODEL),
        (lambda: corpus.prepare(NAME), DATASET),
        (lambda: corpus.open_packed(NAME), DATASET),
        (lambda: CharacterDataset(path=NAME, seq_len=8), DATASET),
        (lambda: convert_from(NAME, "o.packed", "nanogpt", vocab_size=9), DATASET),
        (lambda: convert_from(NAME, "o.packed", "huggingface", vocab_size=9), DATASET),
        (lambda: write_index(NAME), DATASET),
    ],
    ids=["tokenizer", "template", "model", "corpus", "packed", "characters", "nanogpt", "huggingface", "index"],
)
def test_a_name_of_the_hub_where_a_file_is_expected(
    call: Callable[[], object], download: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).endswith(
        f"; if {NAME} is a name of the hub, download it first, since modlib downloads nothing: {download}"
    )
