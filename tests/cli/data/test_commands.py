"""`modlib data`: the commands from raw text to packed files."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from modlib.cli.data import pack as data_pack
from modlib.cli.data.commands import COMMANDS
from modlib.data.packed.file import PackedFile
from modlib.data.packing import pack
from modlib.data.packing.journal import partial_folder, unfinished_tokens
from modlib.data.text import sources
from modlib.data.text.line_index import LineIndex
from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe
from tests.cli.commands import modlib
from tests.cli.test_main import modlib as own_process

PYTHON = r"```python\n(.*?)```"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return train_byte_level_bpe(["some words to train on"] * 3, path, vocab_size=280, end_of_document="<|endoftext|>")


def test_help_lists_every_command() -> None:
    text = own_process("data", "--help").stdout
    for name, (module, line) in COMMANDS.items():
        assert name in text
        assert line.split(".")[0][:30] in text
        assert callable(importlib.import_module(module).command)


def test_from_a_corpus_to_a_packed_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = tmp_path / "m.jsonl", tmp_path / "m.packed"
    done = modlib("data", "corpus", "markov", source, "--documents", "20", "--length", "50", "--seed", "3")
    assert done.stdout == f"{source}\t20\t1000 B\n"
    assert "no model does better than" in done.stderr
    assert modlib("data", "index", source).stdout.split("\t")[:3] == [f"{source}.index", "20", "20"]
    texts = [json.loads(line)["text"] for line in LineIndex(source)]
    done = modlib("data", "pack", source, out, "--tokenizer", tokenizer.path.parent)
    packed = PackedFile(out)
    assert [tokenizer.decode(packed.document(n)[:-1]) for n in range(20)] == texts
    cells = done.stdout.rstrip("\n").split("\t")
    assert cells[:4] == [str(out), "20", f"{packed.num_tokens:,}", "1000 B"]
    assert f"with tokenizers: it is little text; details in {tmp_path}/m.pack.json" in done.stderr
    words = ("data", "pack", source, out, "--tokenizer", tokenizer.path)
    done = modlib(*words, code=2)
    remedy = "choose another path, remove it, or pass --overwrite (overwrite=True in Python)"
    assert done.stderr == f"config error; nothing was started\n  {out} exists; {remedy}\n"
    assert "none: it was complete" in modlib(*words, "--resume").stderr
    modlib(*words, "--overwrite", "--workers", "2", "--engine", "fast")
    assert PackedFile(out).sha256 == packed.sha256


def test_ctrl_c_says_what_is_kept(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "a.packed"
    source.write_text('{"text": "one"}\n' * 50)
    blocks = 0

    @contextmanager
    def interrupting(title: str) -> Iterator[Callable[[int, int, str], None]]:
        def update(done: int, total: int, note: str) -> None:
            nonlocal blocks
            blocks += 1
            if blocks % 5 == 0:
                raise KeyboardInterrupt

        yield update

    monkeypatch.setattr(data_pack, "progress_bar", interrupting)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 50)
    for seconds in (1000, 0):
        monkeypatch.setattr(pack, "JOURNAL_S", seconds)
        with pytest.raises(typer.Exit) as caught:
            data_pack.command([str(source), str(out)], str(tokenizer.path))
        assert caught.value.exit_code == 130
        tokens = unfinished_tokens(partial_folder(out))
        if seconds:
            told = "nothing is kept: work is brought to the disk every ten seconds, and nothing was yet"
            assert not partial_folder(out).exists()
        else:
            told = f"{tokens} tokens, brought to the disk before, are kept: go on with --resume"
            assert tokens
        assert capsys.readouterr().err == f"interrupted; {told}\n"


def test_the_corpus_of_the_standard_library(tmp_path: Path) -> None:
    modlib("data", "corpus", "stdlib", tmp_path / "s.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "s.jsonl").read_text("utf-8").splitlines()]
    assert any("class JSONDecoder" in text for text in texts)
    done = modlib("data", "corpus", "copy", tmp_path / "s.jsonl", code=2)
    assert "s.jsonl exists; choose another path, remove it, or pass --overwrite" in done.stderr


def test_settings_that_cannot_be_meant(tmp_path: Path) -> None:
    words = ("data", "pack", tmp_path / "a.jsonl", tmp_path / "a.packed", "--tokenizer", "x")
    done = modlib(*words, "--split", "a=0.5, a =0.5", code=2)
    assert "split ('a=0.5, a =0.5') must name 'a' once; give one of them another name" in done.stderr
    done = modlib("data", "corpus", "copy", tmp_path / "c.jsonl", "--length", "3", code=2)
    assert (
        "length (3) must be at least 18, the characters of 8 letters and the same again; set it higher" in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_bad_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    words = ("data", "pack", tmp_path / "a.jsonl", tmp_path / "a.packed", "--tokenizer", tokenizer.path)
    done = modlib(*words, code=3)
    reason = f"{tmp_path}/a.jsonl:2 has an empty text at 'text'"
    assert done.stderr == f"DataError: {reason}; correct it, or leave such rows out with --on_error skip\n"
    done = modlib(*words, "--on_error", "skip")
    assert f"left out: 1 row, listed in {tmp_path}/a.packed.skipped.jsonl" in done.stderr
    assert PackedFile(tmp_path / "a.packed").num_documents == 2


def test_several_outputs_and_a_function(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the current folder
    Path("own_fields.py").write_text("def shouted(row):\n    return row['text'].upper()\n")
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"word {n}"}) + "\n" for n in range(40)))
    words = ("data", "pack", "a.jsonl", "a.packed", "--tokenizer", tokenizer.path, "--field", "own_fields:shouted")
    done = modlib(*words, "--split", "train=0.75,validation=0.25", "--workers", "2")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["a.train.packed", "a.validation.packed"]
    packed = [PackedFile(name) for name in ("a.train.packed", "a.validation.packed")]
    found = [tokenizer.decode(one.document(n)[:-1]) for one in packed for n in range(one.num_documents)]
    assert sorted(found) == sorted(f"WORD {n}" for n in range(40))


@pytest.mark.slow
def test_what_docs_data_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    commands, examples = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[0], re.findall(PYTHON, page, re.DOTALL)
    for line in commands.splitlines():
        modlib(*shlex.split(line)[1:])
    parts = [PackedFile(f"parts.{name}.packed") for name in ("train", "validation")]
    assert sum(part.num_documents for part in parts) == PackedFile("text.packed").num_documents == 500
    assert sum(part.num_tokens for part in parts) == PackedFile("text.packed").num_tokens
    for example in examples:
        exec(example, {})


@pytest.mark.slow
def test_what_docs_data_says_of_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for kind, name in (("json", "chat.jsonl"), ("jinja", "turns.jinja")):
        Path(name).write_text(re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[0])
    commands = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[1].splitlines()
    printed = {line.split()[2]: modlib(*shlex.split(line)[1:]).stdout for line in commands}
    shown = re.search(r"shows what is trained in brackets:\n\n(.*?)\n\n", page, re.DOTALL)
    assert shown is not None
    assert printed["decode"] == re.sub(r"^    ", "", shown[1], flags=re.MULTILINE) + "\n"
    rows = [line.split("\t") for line in printed["inspect"].splitlines()]
    assert f"trained\t{sum(row[-1] == 'trained' for row in rows)} tokens (" in printed["stats"]


def test_chat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turn = {"role": "user", "content": "words"}, {"role": "assistant", "content": "some"}
    rows = [json.dumps({"talk": {"turns": turn}})] * 2 + [json.dumps({"talk": {"turns": turn[:1]}})]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "t.jinja").write_text(template + "{{ 'assistant' if add_generation_prompt }}")
    out = tmp_path / "a.packed"
    words: tuple[Any, ...] = ("data", "pack", tmp_path / "a.jsonl", out, "--tokenizer", tokenizer.path, "--chat")
    words += ("--field", "talk.turns")
    assert (
        f"chat template (None) must be given: {tokenizer.path.parent} has none in chat_template.jinja or "
        "tokenizer_config.json; add --chat_template FILE\n"
    ) in modlib(*words, code=2).stderr
    words += ("--chat_template", tmp_path / "t.jinja")
    done = modlib(*words, code=3)
    reason = (
        f"{tmp_path}/a.jsonl:3 has no message of the assistant at 'talk.turns', so that nothing of it would be trained"
    )
    assert done.stderr == f"DataError: {reason}; correct it, or leave such rows out with --on_error skip\n"
    done = modlib(*words, "--on_error", "skip")
    assert "left out: 1 row" in done.stderr
    assert (
        "what is trained of a conversation is in brackets:\nuser Is 91 a prime?<|endoftext|>assistant\u27e6 No: 7 "
        "times 13.<|endoftext|>\u27e7user And 97?<|endoftext|>assistant\u27e6 Yes, it is.<|endoftext|>\u27e7\n"
    ) in done.stderr
    shown = modlib("data", "decode", out, "--document", "1", "--mark_trained").stdout
    assert shown == "user words<|endoftext|>assistant\u27e6 some<|endoftext|>\u27e7\n"
    (tmp_path / "t.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    done = modlib(*words, "--overwrite", "--on_error", "skip", code=2)
    assert "t.jinja must stay in its sandbox; it was stopped ('__" in done.stderr
    assert "chat_template (x) must go with chat; add --chat" in modlib(
        "data", "pack", tmp_path / "a.jsonl", out, "--tokenizer", tokenizer.path, "--chat_template", "x", code=2
    ).stderr  # fmt: skip


def test_wrong_words(tokenizer: Tokenizer, tmp_path: Path) -> None:
    done = modlib("data", "pack", tmp_path / "a.packed", "--tokenizer", tokenizer.path, code=2)
    assert "paths (1) must be at least two: what to pack, and the output last" in done.stderr
    words = ("data", "pack", tmp_path / "a.jsonl", tmp_path / "a.packed", "--tokenizer", tokenizer.path)
    done = modlib(*words, "--split", "train", code=2)
    assert "split ('train') must be like train=0.99,validation=0.01; write it so" in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("pack no.jsonl out --tokenizer stdlib:train", 2),
        ("pack a.jsonl out --tokenizer no", 2),
        ("pack a.jsonl out --tokenizer a.jsonl", 3),
        ("pack a.jsonl a.jsonl out --tokenizer stdlib:train", 2),
        ("pack a.jsonl there --tokenizer stdlib:train", 2),
        ("pack bad.jsonl out --tokenizer stdlib:train", 3),
        ("inspect no.packed", 2),
        ("inspect a.jsonl", 3),
        ("verify no.packed a.jsonl", 3),
        ("index no.jsonl", 2),
        ("convert no.bin out --from nanogpt --vocab_size 9", 2),
        ("convert a.jsonl out --from modalities", 3),
    ],
)
def test_what_the_words_say_ends_with_2_and_what_the_files_hold_with_3(
    words: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"text": "one"}\n')
    Path("bad.jsonl").write_text('{"text": 1}\n')
    Path("there").write_text("")
    modlib("data", *words.split(), code=code)
    assert not Path("out").exists()
