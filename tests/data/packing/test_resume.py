"""A packing that is cut off, at any moment, goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from modlib.data.packed.file import PackedFile
from modlib.data.packing import pack as packing
from modlib.data.packing.journal import partial_folder, unfinished_tokens
from modlib.data.packing.pack import PackProgress, pack
from modlib.data.rewriting.shuffle import shuffle
from modlib.data.text import sources
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import ConfigError, DataError
from tests import forked
from tests.data.cut_off import kill_midway
from tests.data.packing.test_pack import sentences, texts_of, write_jsonl

KILLED = """
import json, sys
from modlib.data.packing import pack
from modlib.data.text import sources
pack.JOURNAL_S, sources.BLOCK_BYTES = 0, 4000
settings = {"workers": 2, "engine": "tokenizer", "on_error": "skip", "shard_tokens": json.loads(sys.argv[4])}
pack.pack([sys.argv[1]], sys.argv[2], sys.argv[3], **settings)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard_tokens", [None, pytest.param(9000, marks=pytest.mark.slow)])
def test_kill_and_resume_equals_one_run(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_tokens: int | None
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 4000)
    source = write_jsonl(tmp_path / "in.jsonl", sentences(6000))
    with open(source, "ab") as file:
        file.write(b"bad\n")
    one, out = tmp_path / "one" / "a.packed", tmp_path / "two" / "a.packed"
    whole = pack([source], one, tokenizer, on_error="skip", shard_tokens=shard_tokens)
    journal = out.with_name("a.packed.partial") / "journal.jsonl"
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(tokenizer.path), json.dumps(shard_tokens)]
    for _ in range(2):
        children = kill_midway(command, journal)
        assert len(children) == 2
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive  # workers end with the one that started them
        assert os.listdir(out.parent) == ["a.packed.partial"]
        for unfinished in out.with_name("a.packed.partial").glob("*.tokens"):
            with pytest.raises(DataError, match="it was never finished"):
                PackedFile(unfinished)
        command[2] = KILLED.replace('"workers": 2', '"workers": 2, "resume": True')
    started_with = bytes_done(journal)
    settings: dict[str, Any] = {"on_error": "skip", "shard_tokens": shard_tokens, "resume": True}
    summary = pack([source], out, tokenizer, workers=3, engine="fast", **settings)
    assert started_with > 0
    assert len(summary.outputs) == 1 if shard_tokens is None else len(summary.outputs) > 10
    assert [path.read_bytes() for path in summary.outputs] == [path.read_bytes() for path in whole.outputs]
    assert summary.skipped is not None
    assert summary.skipped.read_bytes() == (one.parent / "a.packed.skipped.jsonl").read_bytes()
    assert sorted(os.listdir(out.parent)) == sorted(os.listdir(one.parent))
    records = [json.loads((path.parent / "a.pack.json").read_text()) for path in (one, out)]
    assert records[0]["inputs"] == records[1]["inputs"]
    again = pack([source], out, tokenizer, **settings)  # complete: nothing is done
    assert again.engine == "none: it was complete"
    assert again.outputs == summary.outputs


def bytes_done(journal: Path) -> int:
    """Bytes of the input that an interrupted packing has come past."""
    return int(json.loads(journal.read_text().splitlines()[-1])["place"][1])


AT_EACH_STEP = """
import json, os, sys
from modlib.data.packing import pack
from modlib.data.text import sources
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.runtime import faults
pack.JOURNAL_S, sources.BLOCK_BYTES = 0, 900
source, out, tokenizer, more = sys.argv[1:]
loaded = load_tokenizer(tokenizer)  # nothing is encoded here: the children may use threads

def packed(kill_at, **settings):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    seen = 0
    def count(name, detail):
        nonlocal seen
        seen += 1
        if seen == kill_at:
            os._exit(9)
    with faults.installed("fs.operation", count):
        split = {"a": 0.5, "b": 0.5}
        settings |= json.loads(more)
        pack.pack([source], out, loaded, workers=1, engine="tokenizer", on_error="skip", split=split, **settings)
    os._exit(0)

folder = os.path.dirname(out)
def contents():
    names = os.listdir(folder)
    assert "a.pack.json" in names
    return {name: open(os.path.join(folder, name), "rb").read() for name in names if name != "a.pack.json"}

assert packed(0) == 0
whole = contents()
for step in range(1, 1000):
    for name in os.listdir(folder):
        os.unlink(os.path.join(folder, name))
    code = packed(step)
    if code == 0:
        break
    complete = [name for name in os.listdir(folder) if name.endswith(".packed")]
    assert code == 9 and all(open(os.path.join(folder, name), "rb").read() == whole[name] for name in complete), step
    assert packed(0, resume=True) == 0, step
    assert contents() == whole, (step, sorted(contents()), sorted(whole))
print(step)
"""


SHARDS = pytest.param(False, 300, marks=pytest.mark.slow, id="shards")
CHAT = pytest.param(True, None, marks=pytest.mark.slow, id="chat")


@pytest.mark.parametrize(("chat", "shard_tokens"), [(False, None), SHARDS, CHAT])
@pytest.mark.slow
def test_killed_at_every_step_it_can_be_resumed(
    tokenizer: Tokenizer, tmp_path: Path, chat: bool, shard_tokens: int | None
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", sentences(12))
    more: dict[str, object] = {"shard_tokens": shard_tokens}
    if chat:
        rows = [{"messages": [{"role": "assistant", "content": text}]} for text in sentences(12)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "t.jinja").write_text("{% for m in messages %}: {{ m.content }}{% endfor %}")
        more |= {"chat": True, "chat_template": str(tmp_path / "t.jinja")}
    with open(source, "ab") as file:
        file.write(b"bad\n")
    (tmp_path / "out").mkdir()
    words = [str(source), str(tmp_path / "out" / "a.packed"), str(tokenizer.path), json.dumps(more)]
    done = forked.run([sys.executable, "-c", AT_EACH_STEP, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25  # places at which it was killed


def test_what_may_not_change_before_a_resume(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 300)
    monkeypatch.setattr(packing, "JOURNAL_S", 0)
    source, out = write_jsonl(tmp_path / "in.jsonl", sentences(50)), tmp_path / "a.packed"
    with open(source, "ab") as file:
        file.write(b"bad\n")
    with pytest.raises(DataError, match=r"in.jsonl:51 must be JSON"):
        pack([source], out, tokenizer)
    assert (tmp_path / "a.packed.partial").is_dir()  # much was done: worth keeping
    with pytest.raises(DataError, match=r"^field \(body\) must be as they were in the interrupted packing \(text\) to"):
        pack([source], out, tokenizer, field="body", resume=True)
    pack([source], out, tokenizer, on_error="skip", resume=True)  # how to go on is not among what must stay
    assert len(texts_of(out, tokenizer)) == 50
    assert not (tmp_path / "a.packed.partial").exists()


def test_unfinished_work_is_not_thrown_away_unasked(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 300)
    monkeypatch.setattr(packing, "JOURNAL_S", 0)
    source, out, other = write_jsonl(tmp_path / "in.jsonl", sentences(50)), tmp_path / "a.packed", tmp_path / "b.packed"
    whole = pack([source], other, tokenizer).outputs[other].sha256

    def cut(progress: PackProgress) -> None:
        if progress.documents > 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack([source], out, tokenizer, progress=cut)
    folder = partial_folder(out)
    journal = (folder / "journal.jsonl").read_bytes()
    tokens = unfinished_tokens(folder)
    assert tokens is not None
    assert 0 < tokens < PackedFile(other).num_tokens
    text = f"{folder} holds unfinished work ({tokens:,} tokens); go on with --resume, or start again with --overwrite"
    for field in ("text", "body"):
        with pytest.raises(ConfigError) as caught:
            pack([source], out, tokenizer, field=field)
        assert str(caught.value) == text
        assert (folder / "journal.jsonl").read_bytes() == journal
    assert pack([source], out, tokenizer, resume=True).outputs[out].sha256 == whole
    with pytest.raises(KeyboardInterrupt):
        pack([source], out, tokenizer, overwrite=True, progress=cut)
    assert pack([source], out, tokenizer, overwrite=True).outputs[out].sha256 == whole  # from the start
    assert unfinished_tokens(folder) is None


def test_what_may_not_change_after_the_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", ["one", "two"]), tmp_path / "a.packed"
    pack([source], out, tokenizer)
    before = out.read_bytes()
    with pytest.raises(
        DataError,
        match=r"^field \(body\) must be as they were in the finished packing \(text\) to go on with it; set them back, "
        "or start again with --overwrite$",
    ):
        pack([source], out, tokenizer, field="body", resume=True)
    write_jsonl(source, ["one", "two", "three"])
    with pytest.raises(DataError, match=r"^inputs \(\['.*in.jsonl', 50, \d+\]\) must be as they were in the finished"):
        pack([source], out, tokenizer, resume=True)
    assert out.read_bytes() == before
    pack([source], out, tokenizer, resume=True, overwrite=True)
    assert texts_of(out, tokenizer) == ["one", "two", "three"]


def test_another_file_of_that_name_is_not_complete(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", sentences(5)), tmp_path / "a.packed"
    ours = pack([source], out, tokenizer).outputs[out].sha256
    pack([write_jsonl(tmp_path / "other.jsonl", ["x"])], tmp_path / "b.packed", tokenizer)
    (tmp_path / "b.packed").replace(out)
    its = PackedFile(out).sha256
    with pytest.raises(
        DataError,
        match=rf"^SHA-256 of {out} \({its[:12]}\) must be the one that a.pack.json tells of \({ours[:12]}\); it was "
        "made by something else: choose another output, or replace it with --overwrite$",
    ):
        pack([source], out, tokenizer, resume=True)
    assert texts_of(out, tokenizer) == ["x"]


def test_no_record_of_another_maker_stays_beside_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "a.packed"
    source.write_text('{"text": "one"}\nbad\n{"text": "two"}\n')
    pack([source], out, tokenizer, on_error="skip")
    assert {"a.pack.json", "a.packed.skipped.jsonl"} < {*os.listdir(tmp_path)}
    shuffle(out, out, seed=1, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["a.packed", "a.packed.provenance.json", "a.tokenizer.json", "in.jsonl"]
    pack([source], out, tokenizer, on_error="skip", overwrite=True)
    assert "a.packed.provenance.json" not in os.listdir(tmp_path)
    pack([source], out, tokenizer, on_error="skip", overwrite=True, split={"x": 0.5, "y": 0.5})
    record = (tmp_path / "a.pack.json").read_bytes()
    shuffle(out, out, seed=1, overwrite=True)
    assert (tmp_path / "a.pack.json").read_bytes() == record  # it tells of a.x.packed and a.y.packed


def test_two_processes_cannot_pack_into_one_output(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", ["x"]), tmp_path / "a.packed"

    def meanwhile(progress: PackProgress) -> None:
        with pytest.raises(DataError, match=r"output of .*a.packed.partial is being packed by another process"):
            pack([source], out, tokenizer)

    pack([source], out, tokenizer, progress=meanwhile)
    assert texts_of(out, tokenizer) == ["x"]
