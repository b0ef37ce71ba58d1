"""The commands that make data, by gin files: checked, recorded, and done again from the record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modlib.cli.data.commands import COMMANDS, MAKERS
from modlib.data.packed.file import PackedFile
from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe
from tests.cli.commands import modlib

ROOT = Path(__file__).parents[3]
SENTENCES = ["the quick brown fox", "naïve café, 東京", "a lazy dog"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return train_byte_level_bpe(SENTENCES * 3, path, vocab_size=300, end_of_document="<|endoftext|>")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"body": f"{sentence} {number}"}) for number in range(20) for sentence in SENTENCES]
    Path("a.jsonl").write_text("\n".join(rows))
    Path("a.gin").write_text(
        f"OUT = 'a.packed'\npack:\n    paths = ['a.jsonl', %OUT]\n    tokenizer = '{tokenizer.path}'\n"
        "    field = 'body'\n    workers = 2\n    engine = 'tokenizer'\n"
    )
    return tmp_path


def test_the_command_line_wins_and_all_is_recorded(folder: Path) -> None:
    modlib("data", "pack", "--gin_file", "./a.gin", "--gin_param", "pack.on_error='skip'", "--workers", "1")
    assert PackedFile("a.packed").num_documents == 60
    told = json.loads(Path("a.packed.config.json").read_text())["parameters"]
    assert told["pack.workers"] == {
        "value": "1", "origins": ["a.gin:6", "--workers"], "overridden": [["a.gin:6", "2"]], "science": False
    }  # fmt: skip
    assert told["pack.paths"]["origins"] == ["a.gin:3", "OUT a.gin:1"]
    assert told["pack.on_error"]["origins"] == ["--gin_param #1"]
    assert told["pack.split"] == {"value": "None", "origins": [], "overridden": [], "science": True}
    text = Path("a.packed.config.gin").read_text()
    assert "    workers = 1\n" in text
    assert "    split = None\n" in text
    sha256 = PackedFile("a.packed").sha256
    again = modlib("data", "pack", "--gin_file", "./a.packed.config.gin", code=2)
    assert "a.packed exists" in again.stderr
    modlib("data", "pack", "--gin_file", "./a.packed.config.gin", "--gin_param", "OUT='b.packed'")
    assert PackedFile("b.packed").sha256 == sha256
    assert Path("b.packed").read_bytes() == Path("a.packed").read_bytes()
    hashes = [json.loads(Path(f"{name}.packed.config.json").read_text())["hash"] for name in "ab"]
    assert hashes[0] != hashes[1]  # of another output


def test_without_gin_files_it_is_recorded_as_well(folder: Path, tokenizer: Tokenizer) -> None:
    modlib("data", "pack", "a.jsonl", "a.packed", "--tokenizer", tokenizer.path, "--field", "body")
    told = json.loads(Path("a.packed.config.json").read_text())["parameters"]
    assert told["pack.paths"] == {
        "value": "['a.jsonl', 'a.packed']", "origins": ["PATHS"], "overridden": [], "science": True
    }  # fmt: skip
    modlib("data", "shuffle", "a.packed", "b.packed", "--seed", "3")
    modlib("data", "shuffle", "--gin_file", "./b.packed.config.gin", "--overwrite", "a.packed", "c.packed")
    assert PackedFile("c.packed").sha256 == PackedFile("b.packed").sha256 != PackedFile("a.packed").sha256


def test_mistakes_are_told_together_with_their_lines(folder: Path) -> None:
    with open("a.gin", "a") as file:
        file.write("    wrkers = 3\n    split = 5\nshufle.seed = 1\n")
    done = modlib("data", "pack", "--gin_file", "./a.gin", "--gin_param", "pack.shard_tokens='9'", code=2)
    assert done.stderr == (
        "4 config errors; nothing was started\n"
        "  a.gin:8: pack has no parameter 'wrkers'. Did you mean 'workers' (int | None, default None)?\n"
        "  a.gin:9: pack.split = 5 is int, expected str or None; write '5'\n"
        "  a.gin:10: no component shufle. `modlib list` shows all; a component of your own needs its import in the gin "
        "file\n"
        "  --gin_param #1: pack.shard_tokens = '9' is str, expected int or None; write 9\n"
    )
    done = modlib("data", "pack", "--gin_param", "pack.on_error='sip'", "--tokenizer", "x", code=2)
    assert "--gin_param #1: pack.on_error = 'sip' is str, expected one of ['fail', 'skip']" in done.stderr
    assert "--gin_param #1: pack needs paths (list[str]), which is not set; write pack.paths = value" in done.stderr
    done = modlib("data", "pack", "--gin_param", "shuffle.seed=1", "a.jsonl", "b.packed", "--tokenizer", "x", code=2)
    assert "--gin_param #1: no component shuffle" in done.stderr
    assert not list(folder.glob("*.packed*"))


def test_a_required_option_is_still_required(folder: Path) -> None:
    assert "Missing option" in modlib("data", "shuffle", "a", "b", code=2).stderr


def test_every_command_that_makes_a_file_is_configured(folder: Path, tokenizer: Tokenizer) -> None:
    assert set(MAKERS) <= set(COMMANDS)
    Path("keeps.py").write_text("def short(document):\n    return len(document.tokens) < 12\n")
    modlib("data", "pack", "--gin_file", "./a.gin")
    files = {
        "chunk": "chunk.file = 'a.packed'\nchunk.prefix = 'part'\nchunk.num_chunks = 2",
        "convert": "convert.source = 'a.packed'\nconvert.out = 'a.pbin'\nconvert.to = 'modalities'",
        "corpus": "corpus.kind = 'copy'\ncorpus.out = 'copy.jsonl'\ncorpus.documents = 3",
        "filter": "filter.file = 'a.packed'\nfilter.out = 'f.packed'\nfilter.keep = 'keeps:short'",
        "index": "index.file = 'a.jsonl'",
        "merge": "merge.files = ['a.packed', 'a.packed', 'm.packed']",
        "mix": "mix.files = ['a.packed', 'a.packed', 'x.packed']\nmix.weights = '1,2'",
        "shuffle": "shuffle.file = 'a.packed'\nshuffle.out = 's.packed'\nshuffle.seed = 2",
    }
    made = ["part", "a.pbin", "copy.jsonl", "f.packed", "a.jsonl.index", "m.packed", "x.packed", "s.packed"]
    assert {*files, "pack"} == set(MAKERS)
    for (name, text), out in zip(files.items(), made, strict=True):
        Path(f"{name}.gin").write_text(text)
        modlib("data", name, "--gin_file", f"./{name}.gin")
        whole = Path(f"{out}.config.gin").read_text()
        assert f"\n{name}:\n" in whole
        assert whole.count(" = ") >= 4 or name == "merge" or name == "index"
    assert PackedFile("m.packed").num_documents == 120
    modlib("data", "convert", "--gin_param", "convert.from_='modalities'", "a.pbin", "b.packed", "--vocab_size", "300")
    assert PackedFile("b.packed").sha256 == PackedFile("a.packed").sha256
    done = modlib("data", "corpus", "--gin_file", "./corpus.gin", "--gin_param", "corpus.documents=0", code=2)
    assert "documents (0) must be at least 1; set it to 1 or more" in done.stderr


def test_the_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"text": f"{sentence} {number}"}) for number in range(40) for sentence in SENTENCES]
    Path("stdlib.jsonl").write_text("\n".join(rows))
    name = "commands/pack_stdlib.gin"
    words = re.findall(r"#   modlib (data pack .*)", (ROOT / "gin_configs" / name).read_text())
    assert words[0] == f"data pack --gin_file {name}"
    small = ["--gin_param", f"TOKENIZER='{tokenizer.path}'", "--gin_param", "pack.shard_tokens=500"]
    modlib(*words[0].split(), *small)
    shards = sorted(Path().glob("stdlib.*-of-*.packed"))
    assert {path.name.split("-")[0] for path in shards} == {"stdlib.train", "stdlib.validation"}
    assert sum(PackedFile(path).num_documents for path in shards) == 120
    assert "OUT = 'stdlib.packed'" in Path("stdlib.packed.config.gin").read_text()
