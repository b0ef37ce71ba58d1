"""Chat data: from rows of messages to packed files whose loss mask lets the answers count."""

from __future__ import annotations

import functools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.inspecting.text import decode
from modlib.data.inspecting.verify import verify
from modlib.data.packed.file import PackedFile
from modlib.data.packing import pack as packing
from modlib.data.packing.pack import pack
from modlib.data.text import sources
from modlib.data.text.chat_contents import PROBE
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError, DataError
from tests.data.conftest import SENTENCES
from tests.data.cut_off import CHAT_TEMPLATE as TEMPLATE
from tests.data.cut_off import kill_midway
from tests.data.test_datasets_in_common import train_two_steps


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with markers of turns, and its template, as a Hugging Face folder has them."""
    made = tmp_path_factory.mktemp("chat")
    library = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.save(str(made / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def turns(*contents: str) -> list[dict[str, str]]:
    """A conversation of these contents: of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def write_chats(path: Path, chats: list[Any], key: str = "messages") -> Path:
    path.write_text("".join(json.dumps({key: chat}, ensure_ascii=False) + "\n" for chat in chats), "utf-8")
    return path


def some_chats(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    rng = random.Random(seed)
    return [turns(*rng.choices(SENTENCES, k=rng.choice([2, 4, 6]))) for _ in range(count)]


def rendered(chat: list[dict[str, str]]) -> str:
    return "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in chat)


def marked(chat: list[dict[str, str]], end: str = "<|endoftext|>") -> str:
    """What `decode` shows of it with marks around what is trained."""
    parts = []
    for one in chat:
        turn = f"{one['content']}<|im_end|>"
        shown = f"\u27e6{turn}\u27e7" if one["role"] == "assistant" else turn
        parts.append(f"<|im_start|>{one['role']}\n{shown}\n")
    return "".join(parts) + end


def shown(path: Path) -> list[str]:
    """Every document of a file that has nothing wrong in it."""
    packed = verify(path).packed
    assert packed.has_loss_mask
    return [decode(path, document=number, mark_trained=True) for number in range(packed.num_documents)]


CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(st.lists(CONTENT, min_size=2, max_size=6), min_size=1, max_size=6), st.integers(1, 300), st.booleans(),
       st.sampled_from(["fast", "tokenizer"]))  # fmt: skip
@settings(max_examples=40)
def test_every_conversation_comes_back_with_its_answers_trained(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    contents: list[list[str]],
    block_bytes: int,
    splits: bool,
    engine: Literal["fast", "tokenizer"],
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    chats = [turns(*some) for some in contents]
    source = write_chats(tmp_path / "in.jsonl", chats)
    split = {"train": 0.5, "test": 0.5} if splits else None
    summary = pack([source], tmp_path / "a.packed", folder, chat=True, split=split, engine=engine, overwrite=True)
    loaded = Tokenizer(folder)
    whole: list[list[int]] = []
    for path, header in summary.outputs.items():
        packed = verify(path).packed
        assert header.num_documents == packed.num_documents
        for number in range(packed.num_documents):
            ids = packed.document(number)
            start = int(packed.document_offsets[number])
            whole.append(ids.tolist())
            # each trained run of tokens is an answer and its end marker, in order
            (chat,) = {rendered(one): one for one in chats if rendered(one) == loaded.decode(ids[:-1])}.values()
            mask = packed.trained(start, start + len(ids)).tolist()
            runs, inside = [], False
            for token, one in zip(ids.tolist(), mask, strict=True):
                if one and not inside:
                    runs.append([])
                inside = one
                if one:
                    runs[-1].append(token)
            answers = [f"{one['content']}<|im_end|>" for one in chat if one["role"] == "assistant"]
            assert [loaded.decode(run) for run in runs] == answers
            assert not mask[-1]
    expected = [[*loaded.encode(rendered(chat), special_tokens=True), 0] for chat in chats]
    assert sorted(whole) == sorted(expected)
    if not splits:
        assert whole == expected
    assert sum(h.num_bytes_of_text for h in summary.outputs.values()) == sum(len(rendered(c).encode()) for c in chats)


def test_inputs_of_every_kind_and_the_record(folder: Path, tmp_path: Path) -> None:
    chats = some_chats(6)
    system = [{"role": "system", "content": "be brief"}, *chats[5]]
    (tmp_path / "in").mkdir()
    write_chats(tmp_path / "in" / "a.jsonl", chats[:3])
    rows = [{"messages": chat, "tools": None, "other": 1} for chat in [*chats[3:5], system]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "b.parquet")
    out = tmp_path / "all.packed"
    summary = pack([tmp_path / "in"], out, folder, chat=True, workers=2)
    assert shown(out) == [marked(chat) for chat in [*chats[:5], system]]
    assert summary.engine == "tokenizers: it is little text"
    told = json.loads(summary.record.read_text())
    assert told["settings"]["chat_template"] == TEMPLATE
    assert told["settings"]["chat_template_from"] == str(folder / "tokenizer_config.json")
    assert told["settings"]["field"] == "messages"
    assert told["settings"]["chat_probe"] == summary.chat_probe == marked(list(PROBE))
    assert told["versions"]["jinja2"]
    digest, variables = told["decided_by"]["chat template"]
    assert len(digest) == 64
    assert variables == {"eos_token": "<|im_end|>"}


def test_tools_of_a_row_reach_the_template_from_any_kind_of_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ tools | tojson }}" + TEMPLATE)
    row = {"messages": turns("hi", "yes"), "tools": [{"name": "f"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "b.parquet")
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    pack(inputs, tmp_path / "a.packed", folder, chat=True, chat_template=tmp_path / "t.jinja")
    assert shown(tmp_path / "a.packed") == ['[{"name": "f"}]' + marked(row["messages"])] * 2  # type: ignore[arg-type]


def test_an_end_of_document_that_the_template_writes_is_not_written_twice(folder: Path, tmp_path: Path) -> None:
    source, out = write_chats(tmp_path / "a.jsonl", [turns("hi", "yes")]), tmp_path / "a.packed"
    text = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '<|endoftext|>' if m.role == 'assistant' }}{{ '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (tmp_path / "t.jinja").write_text(text)
    pack([source], out, folder, chat=True, chat_template=tmp_path / "t.jinja")
    assert shown(out) == ["user: hi\nassistant: \u27e6yes<|endoftext|>\u27e7\n<|endoftext|>"]  # a line's end is between
    (tmp_path / "t.jinja").write_text(text.replace("{{ '\\n' }}", ""))
    pack([source], out, folder, chat=True, chat_template=tmp_path / "t.jinja", overwrite=True)
    assert shown(out) == ["user: hiassistant: \u27e6yes<|endoftext|>\u27e7"]


def test_a_template_s_first_token_is_not_written_twice(folder: Path, tmp_path: Path) -> None:
    """A tokenizer that begins texts with a token of its own is not asked to."""
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = ("<|im_start|>", library.token_to_id("<|im_start|>"))
    library.post_processor = tokenizers.processors.TemplateProcessing("<|im_start|> $A", special_tokens=[start])
    (tmp_path / "own").mkdir()
    library.save(str(tmp_path / "own" / "tokenizer.json"))
    (tmp_path / "own" / "chat_template.jinja").write_text(TEMPLATE)
    source = write_chats(tmp_path / "a.jsonl", some_chats(3))
    pack([source], tmp_path / "a.packed", tmp_path / "own", chat=True)
    assert shown(tmp_path / "a.packed") == [marked(chat) for chat in some_chats(3)]
    with_bos = PretrainedHFTokenizer(folder, add_eos=True)
    with pytest.raises(ConfigError) as caught:
        pack([source], tmp_path / "b.packed", with_bos, chat=True)
    assert str(caught.value) == (
        f"settings of the tokenizer ({with_bos.settings}) must be none for chat: the template writes such tokens "
        "itself; leave them out"
    )


def test_an_answer_without_an_end_marker_stops_at_the_end_of_the_document(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = write_chats(tmp_path / "a.jsonl", [turns("hi", "yes"), turns("a", "yes", "c")]), tmp_path / "a.packed"
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    )
    summary = pack([source], out, folder, chat=True, chat_template=tmp_path / "t.jinja")
    assert shown(out) == [
        "user: hi\nassistant: \u27e6yes\n<|endoftext|>\u27e7",
        "user: a\nassistant: \u27e6yes\n\u27e7user: c\n<|endoftext|>",
    ]
    assert summary.chat_probe is not None
    assert summary.chat_probe.endswith("assistant: \u27e6Yes, it is.\n<|endoftext|>\u27e7")
    (warning,) = caplog.messages
    assert warning.startswith(
        f"chat template {tmp_path / 't.jinja'} writes no special token behind an answer: the model"
    )
    again = pack([source], out, folder, chat=True, chat_template=tmp_path / "t.jinja", resume=True)
    assert again.engine == "none: it was complete"
    assert again.chat_probe == summary.chat_probe


def test_rows_that_are_no_conversations(folder: Path, tmp_path: Path) -> None:
    good = [json.dumps({"messages": chat}) for chat in some_chats(3)]
    bad = {
        2: ("{not json", "must be JSON"),
        3: ('{"text": "x"}', "has no 'messages' (there is text)"),
        5: ('{"messages": [{"role": "user", "content": "hi"}]}', "has no message of the assistant at 'messages'"),
        6: ('{"messages": [{"role": "asistant", "content": "hi"}]}', "has a wrong role in message 0 of 'messages'"),
        8: (json.dumps({"messages": turns("<|im_end|>", "x")}), "has the special token <|im_end|> in a message"),
    }
    lines = [bad[n][0] if n in bad else good.pop(0) for n in range(1, 9)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    out = tmp_path / "a.packed"
    with pytest.raises(DataError, match=r"a.jsonl:2 must be JSON: .*; correct it, or leave such rows out with --on_"):
        pack([tmp_path / "a.jsonl"], out, folder, chat=True)
    summary = pack([tmp_path / "a.jsonl"], out, folder, chat=True, on_error="skip")
    assert shown(out) == [marked(chat) for chat in some_chats(3)]
    assert summary.skipped is not None
    listed = [json.loads(line) for line in summary.skipped.read_text().splitlines()]
    assert [one["line"] for one in listed] == list(bad)
    for one in listed:
        assert one["reason"].startswith(bad[one["line"]][1])


def test_a_template_s_failures(folder: Path, tmp_path: Path) -> None:
    source, out = write_chats(tmp_path / "a.jsonl", some_chats(3)), tmp_path / "a.packed"
    template = tmp_path / "t.jinja"
    put = functools.partial(pack, [source], out, folder, chat=True, chat_template=template)
    template.write_text("{{ raise_exception('not today') if messages[0].content != 'Is 91 a prime?' }}" + TEMPLATE)
    with pytest.raises(DataError, match=r"a.jsonl:1 makes the chat template fail \(TemplateError: not today\)"):
        put()
    with pytest.raises(DataError, match=r"inputs \(1 files\) must hold a document; they have none"):
        put(on_error="skip")
    # faults of the template are told once, and no row is left out for them
    template.write_text("{{ raise_exception('not today') }}")
    with pytest.raises(ConfigError, match=r"it does not render a question and an answer, which makes .*: not today\)"):
        put(on_error="skip")
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '<|im_end|>' if loop.last }}{{ '\\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    for workers in (1, 2):
        with pytest.raises(ConfigError, match=r"it writes an earlier answer otherwise than the last one: mark what is"):
            put(on_error="skip", workers=workers)
    template.write_text("{{ (messages | attr('__' ~ 'class__')) }}")
    for workers in (1, 2):  # no row is at fault: it is not left out
        with pytest.raises(ConfigError, match=r"chat template .*t.jinja must stay in its sandbox; it was stopped"):
            put(on_error="skip", workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "t.jinja"]


def test_settings_that_do_not_go_together(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = write_chats(tmp_path / "a.jsonl", some_chats(1)), tmp_path / "a.packed"
    (tmp_path / "a.txt").write_text("x")
    for inputs, kind, wrong, message in (
        ([source], folder, {"chat_template": "x"}, r"chat_template \(x\) must go with chat; add --chat"),
        ([source], tokenizer, {"chat": True}, r"chat template \(None\) must be given: .* has none in"),
        (
            [source, tmp_path / "a.txt"], folder, {"chat": True},
            r"input \(.*a.txt\) must be .jsonl or .parquet for chat; a text file holds no messages",
        ),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            pack(inputs, out, kind, **wrong)  # type: ignore[arg-type]


KILLED = """
import sys
from modlib.data.packing import pack
from modlib.data.text import sources
from modlib.data.text.chat_contents import PROBE
pack.JOURNAL_S, sources.BLOCK_BYTES = 0, 4000
pack.pack([sys.argv[1]], sys.argv[2], sys.argv[3], workers=1, chat=True, split={"a": 0.8, "b": 0.2})
"""


@pytest.mark.slow
def test_kill_and_resume_equals_one_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 4000)
    source = write_chats(tmp_path / "in.jsonl", some_chats(1500))
    put = functools.partial(pack, [source], tokenizer=folder, chat=True, split={"a": 0.8, "b": 0.2})
    one, out = tmp_path / "one" / "x.packed", tmp_path / "two" / "x.packed"
    put(path=one)
    journal = out.with_name("x.packed.partial") / "journal.jsonl"
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(folder)]
    for _ in range(2):
        kill_midway(command, journal)
        assert os.listdir(out.parent) == ["x.packed.partial"]
        command[2] = KILLED.replace("chat=True", "chat=True, resume=True")
    masks = [path.stat().st_size for path in sorted(journal.parent.glob("*.loss_mask"))]
    assert len(masks) == 2
    assert all(masks)
    put(path=out, resume=True, workers=2)
    for name in ("x.a.packed", "x.b.packed"):
        assert (out.parent / name).read_bytes() == (one.parent / name).read_bytes()
        assert PackedFile(out.parent / name).has_loss_mask
    assert sorted(os.listdir(out.parent)) == sorted(os.listdir(one.parent))


def test_another_template_does_not_go_on_with_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 300)
    monkeypatch.setattr(packing, "JOURNAL_S", 0)
    source, out, template = write_chats(tmp_path / "in.jsonl", some_chats(30)), tmp_path / "a.packed", tmp_path / "t.j"
    with open(source, "ab") as file:
        file.write(b"bad\n")
    template.write_text(TEMPLATE)
    put = functools.partial(pack, [source], out, folder, chat=True, chat_template=template)
    with pytest.raises(DataError, match=r"in.jsonl:31 must be JSON"):
        put()
    template.write_text(TEMPLATE.replace("im_end|>", "im_end|> "))
    with pytest.raises(DataError, match=r"^chat template \([0-9a-f]{64}\) must be as they were in the interrupted p"):
        put(resume=True)
    with pytest.raises(DataError, match=r"^chat template \(None\) must be as they were in the interrupted packing"):
        pack([source], out, folder, field="messages", resume=True)
    template.write_text(TEMPLATE)
    put(resume=True, on_error="skip")
    assert shown(out) == [marked(chat) for chat in some_chats(30)]
    assert put(resume=True, on_error="skip").engine == "none: it was complete"
    template.write_text(TEMPLATE.replace("im_end|>", "im_end|> "))
    with pytest.raises(DataError, match=r"^chat template \(\w+\) must be as they were in the finished"):
        put(resume=True)


@pytest.fixture(params=[1, 2, pytest.param(4, marks=pytest.mark.slow)])
def of_width(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    """A tokenizer folder whose vocabulary needs 1, 2 or 4 bytes per token."""
    made = tmp_path / f"width{request.param}"
    made.mkdir()
    content = json.loads((folder / "tokenizer.json").read_text())
    if request.param == 1:  # the letters that are there, and no merges
        text = " ".join(SENTENCES) + "user\nassistant"
        pieces = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
        letters = sorted({letter for piece, _ in pieces for letter in piece})
        special = [token["content"] for token in content["added_tokens"]]
        vocab = {token: number for number, token in enumerate([*special, *letters])}
        content["model"] |= {"vocab": vocab, "merges": []}
        for token in content["added_tokens"]:
            token["id"] = vocab[token["content"]]
    elif request.param == 4:
        content["model"]["vocab"] |= {f"filler{number}": number for number in range(400, 70_000)}
    (made / "tokenizer.json").write_text(json.dumps(content))
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


def test_every_token_width_trains_on_answers_alone(of_width: Path, tmp_path: Path) -> None:
    source, path = write_chats(tmp_path / "in.jsonl", some_chats(8)), str(tmp_path / "a.packed")
    summary = pack([source], path, of_width, chat=True)
    header = summary.outputs[Path(path)]
    assert header.token_width == int(of_width.name[-1])
    assert decode(path, document=7, mark_trained=True) == marked(some_chats(8)[7])
    seq_len = 24

    def model() -> GPT2:
        made = GPT2(vocab_size=header.vocab_size, seq_len=seq_len, num_layers=1, num_heads=2, dim=16)
        ComposedInitializer()(made, 0)
        return made

    packed, loaded = PackedFile(path), Tokenizer(of_width)
    for dataset in (
        PackedDataset(path=path, seq_len=seq_len),
        PackedDocuments(path=path, seq_len=seq_len, long_documents="cut", packing="best_fit"),
    ):
        inputs, targets = LMCollator()(dataset.__getitems__(range(8)))
        assert isinstance(inputs, torch.Tensor)
        logits = model()(inputs).detach()
        sums = [
            -torch.log_softmax(logits[row, place], -1)[targets[row, place]].item()
            for row, place in (targets != -100).nonzero().tolist()
        ]
        loss = CLMCrossEntropyLoss()(logits, targets).item()
        assert loss == pytest.approx(sum(sums), rel=1e-5)
        train_two_steps(dataset, "LMCollator", loaded, model)
    windows = PackedDataset(path=path, seq_len=seq_len)
    starts = range(0, len(windows) * seq_len, seq_len)
    assert windows.num_tokens == sum(int(packed.trained(start + 1, start + seq_len + 1).sum()) for start in starts)


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    """Llama 2's manner: control pieces begin and end each exchange, and the end of a document is the end of a turn."""
    sentencepiece = pytest.importorskip("sentencepiece")
    with open(tmp_path / "sp.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20), model_writer=file, vocab_size=400, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    chats = [turns("東京 dog?", "a 🙂 fox", "and", "naïve"), turns("the", "lazy dog")]
    source, out = write_chats(tmp_path / "in.jsonl", chats), tmp_path / "a.packed"
    summary = pack([source], out, tmp_path / "sp.model", chat=True, chat_template=tmp_path / "t.jinja")
    assert summary.engine.startswith("sentencepiece: the fast engine knows byte-level BPE alone")
    packed = verify(out).packed
    whole, loaded = packed.tokens.tolist(), load_tokenizer(tmp_path / "sp.model")
    text = "".join("".join(f"<s>[INST] {a['content']} [/INST] {b['content']} </s>" for a, b in pairs(c)) for c in chats)
    assert whole == loaded.encode(text, special_tokens=True)
    answers = loaded.decode(packed.tokens[packed.trained(0, packed.num_tokens)])  # the model drops a space at an end
    assert [one.strip() for one in answers.split("</s>")] == ["a 🙂 fox", "naïve", "lazy dog", ""]
    with pytest.raises(ConfigError, match=r"chat template \(None\) must be given"):
        pack([source], tmp_path / "b.packed", tmp_path / "sp.model", chat=True)
    write_chats(tmp_path / "in.jsonl", [turns("<s>struck</s>", "x")])
    with pytest.raises(DataError, match=r"in.jsonl:1 has the special token <s> in a message of 'messages', where"):
        pack([source], tmp_path / "b.packed", tmp_path / "sp.model", chat=True, chat_template=tmp_path / "t.jinja")


def pairs(chat: list[dict[str, str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    return list(zip(chat[::2], chat[1::2], strict=True))
