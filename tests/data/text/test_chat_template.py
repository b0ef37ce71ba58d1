from __future__ import annotations

import json
import pickle
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.text import template_sandbox
from modlib.data.text.chat_template import ChatTemplate, Conversation, find_chat_template
from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.runtime.errors import EXIT_CONFIG, ConfigError

PLAIN = """{% for message in messages %}
<{{ message.role }}>{{ message.content }}<end>
{% endfor %}
{% if add_generation_prompt %}
<assistant>{% endif %}"""
MARKED = """{% for message in messages %}
<{{ message.role }}>{% if message.role == "assistant" %}{% generation %}{{ message.content }}<end>{% endgeneration %}
{% else %}{{ message.content }}<end>
{% endif %}
{% endfor %}"""
CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SOME_MESSAGES = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENT), min_size=1, max_size=6)


def template(text: str, **variables: str) -> ChatTemplate:
    return ChatTemplate(text, variables, "t.jinja")


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def trained_texts(found: Conversation) -> list[str]:
    return [found.text[begin:end] for begin, end in found.trained]


CHAT = messages(("system", "s"), ("user", "hi"), ("assistant", "yes"), ("user", "and"), ("assistant", "no"))


def test_answers_and_their_end_markers_are_trained() -> None:
    found = template(PLAIN).conversation(CHAT)
    assert found.text == "<system>s<end>\n<user>hi<end>\n<assistant>yes<end>\n<user>and<end>\n<assistant>no<end>\n"
    assert trained_texts(found) == ["yes<end>\n", "no<end>\n"]
    marked = template(MARKED).conversation(CHAT)
    assert marked.text.replace("\n", "") == found.text.replace("\n", "")
    assert trained_texts(marked) == ["yes<end>", "no<end>"]
    assert (template(PLAIN).has_generation_blocks, template(MARKED).has_generation_blocks) == (False, True)


@given(SOME_MESSAGES)
@settings(max_examples=100)
def test_any_conversation_is_rendered_in_full_and_its_answers_are_found(turns: list[tuple[str, str]]) -> None:
    found = template(PLAIN).conversation(messages(*turns))
    assert found.text == "".join(f"<{role}>{content}<end>\n" for role, content in turns)
    answers = [content for role, content in turns if role == "assistant"]
    assert trained_texts(found) == [f"{content}<end>\n" for content in answers]
    assert trained_texts(template(MARKED).conversation(messages(*turns))) == [f"{content}<end>" for content in answers]


def test_it_renders_as_transformers_does() -> None:
    """A template with all that such templates use."""
    transformers = pytest.importorskip("transformers")
    text = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{% set start = 1 %}{{ '<<' + messages[0].content | trim + '>>' }}
{%- else %}{% set start = 0 %}{%- endif %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- set ns = namespace(seen=0) %}
{% for message in messages[start:] %}
    {%- if loop.index0 > 10 %}{% break %}{% endif %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}{{ raise_exception('bad role') }}{% endif %}
    {%- set ns.seen = ns.seen + 1 %}
    {{ message.role }}{{ ns.seen }}: {{ message.content }}{{ message.missing }}
    {%- for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}
    {{- eos_token if message.role == 'assistant' }}
{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
    tools = [{"name": "é<b>", "parameters": {"x": [1, 2.5, None, True]}}]
    chat: list[dict[str, Any]] = [
        *messages(("system", " be\n"), ("user", "<&'\">")),
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"東": "京"}}]},
        {"role": "tool", "content": "42"},
        *messages(("assistant", "done")),
    ]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    own = template(text, bos_token="<s>", eos_token="</s>")
    for prompt in (False, True):
        theirs = fast.apply_chat_template(
            chat, tools=tools, chat_template=text, tokenize=False, add_generation_prompt=prompt
        )
        del chat[2]["content"]  # as they do, where it is None
        assert own.render(chat, tools, add_generation_prompt=prompt) == theirs
        chat[2]["content"] = None


def test_what_goes_wrong_in_a_template_is_the_row_s_fault_and_said() -> None:
    for text, why in (
        ("{{ raise_exception('roles must alternate') }}", r"\(TemplateError: roles must alternate\)"),
        ("{{ messages[0].x.y }}", r"\(UndefinedError: .* has no attribute 'x'\)"),
        ("{{ 1 / 0 }}", r"\(ZeroDivisionError: "),
    ):
        with pytest.raises(ValueError, match=f"^makes the chat template fail {why}") as caught:
            template(text).conversation(CHAT)
        assert not isinstance(caught.value, ConfigError)


def test_a_text_does_not_depend_on_the_day_or_on_chance() -> None:
    either = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}"
    assert template(either).render(CHAT) == "2024"
    with pytest.raises(ConfigError, match="must be a Jinja2 template; No filter named 'random'"):
        template("{{ messages | random }}")
    with pytest.raises(ValueError, match="'lipsum' is undefined"):
        template("{{ lipsum() }}").render(CHAT)
    for text in ("{{ strftime_now('%Y') }}" + PLAIN, "{{ strftime_now('%Y') }}" + MARKED):  # no row's fault
        with pytest.raises(ConfigError) as caught:
            template(text).conversation(CHAT)
        assert str(caught.value) == (
            "chat template t.jinja must write the same text on any day; it asks for the date (strftime_now): write a "
            "date in its place"
        )


def test_blocks_within_blocks_are_refused() -> None:
    nested = "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}"
    with pytest.raises(ValueError, match=r"^is rendered with one \{% generation %\} block within another, which must"):
        template(nested).conversation(CHAT)
    assert trained_texts(template("{% generation %}a{% endgeneration %}b").conversation(CHAT)) == ["a"]
    assert trained_texts(template("{% generation %}{% endgeneration %}b").conversation(CHAT)) == [""]


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cla' + 'ss__'].__mro__ }}",
    "{{ ('_' ~ '_class_' ~ '_') and ''['_' ~ '_class_' ~ '_'] }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages | attr('__' ~ 'class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ cycler.__init__.__globals__.os.system('touch ESCAPED') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ (raise_exception | attr('__globals' ~ '__'))['__builtins__'].open('ESCAPED', 'w') }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ namespace(**{'_' ~ '_init__': 1}) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].clear() }}",
    "{{ self._TemplateReference__context }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_template_that_tries_to_get_out_is_refused_and_nothing_runs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chat = messages(("user", "hi"), ("assistant", "yes"))
    with pytest.raises(ConfigError) as caught:
        template(text.replace("ESCAPED", str(tmp_path / "escaped"))).conversation(chat)
    assert str(caught.value).startswith("chat template t.jinja must stay in its sandbox; it was stopped (")
    assert str(caught.value).endswith("): use a template you trust")
    assert caught.value.exit_code == EXIT_CONFIG
    assert list(tmp_path.iterdir()) == []
    assert chat == messages(("user", "hi"), ("assistant", "yes"))


def test_what_is_written_out_is_refused_before_anything_is_rendered() -> None:
    with pytest.raises(ConfigError) as caught:
        template("{% if false %}{{ ''.__class__ }}{% endif %}")
    assert str(caught.value) == (
        "chat template t.jinja must stay in its sandbox; it was stopped ('__class__' is asked for): use a template you "
        "trust"
    )
    template("{{ '__' }}{{ '_' }}{{ messages[0]['_x'] }}").render(CHAT)  # no name of Python's


def test_what_is_no_template_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        template("one\n{% if %}")
    assert str(caught.value) == (
        "chat template t.jinja (line 2) must be a Jinja2 template; Expected an expression, got 'end of statement block'"
    )


def test_it_survives_pickling() -> None:
    before = template("{{ bos_token }}" + PLAIN, bos_token="<s>")
    after = pickle.loads(pickle.dumps(before))
    assert after.conversation(CHAT[:3]) == before.conversation(CHAT[:3])
    assert after.sha256 == before.sha256 != template(PLAIN).sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer with two special tokens, and nothing else in its folder."""
    made = train_byte_level_bpe(["a b"], tmp_path / "tokenizer.json", vocab_size=260, end_of_document="<|endoftext|>")
    content = json.loads(made.to_json())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": "<|im_end|>"})
    made.path.write_text(json.dumps(content))
    return tmp_path


def test_the_template_of_a_tokenizer_s_folder(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    with pytest.raises(ConfigError) as caught:
        find_chat_template(load_tokenizer(folder), None)
    assert str(caught.value) == (
        f"chat template (None) must be given: {folder} has none in chat_template.jinja or tokenizer_config.json; "
        "add --chat_template FILE"
    )
    config.write_text(json.dumps({"chat_template": "in config", "eos_token": {"content": "<|im_end|>"}}))
    found = find_chat_template(load_tokenizer(folder / "tokenizer.json"), None)
    assert (found.text, found.name) == ("in config", str(config))
    assert found.variables == {"eos_token": "<|im_end|>"}  # the files say all: none of the well-known ones
    config.write_text(json.dumps({"chat_template": [{"name": "rag", "template": "x"}]}))
    with pytest.raises(ConfigError, match="must be given"):
        find_chat_template(load_tokenizer(folder), None)
    several = [{"name": "rag", "template": "x"}, {"name": "default", "template": "one of two"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert find_chat_template(load_tokenizer(folder), None).text == "one of two"
    (folder / "chat_template.jinja").write_text("in its own file")
    assert find_chat_template(load_tokenizer(folder), None).text == "in its own file"
    (folder / "mine.jinja").write_text("mine")
    assert find_chat_template(load_tokenizer(folder), folder / "mine.jinja").text == "mine"


def test_well_known_tokens_where_no_file_names_them(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "t.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    found = find_chat_template(load_tokenizer(folder), folder / "t.jinja")
    assert found.variables == {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def test_template_files_that_cannot_be_read_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError) as caught:
        find_chat_template(tokenizer, tmp_path / "no.jinja")
    path = tmp_path / "no.jinja"
    assert str(caught.value) == f"chat template {path} cannot be read: No such file or directory; check the path"
    (tmp_path / "bad.jinja").write_bytes(b"ab\xff")
    with pytest.raises(ConfigError) as caught:
        find_chat_template(tokenizer, tmp_path / "bad.jinja")
    assert str(caught.value) == f"chat template {tmp_path}/bad.jinja must be UTF-8 text; byte 2 is not"


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if range(99999) | map('abs') | sum %}{% endfor %}",
    "{% for a in range(2) recursive %}{% if loop.depth < 90 %}{{ loop(range(2)) }}{% endif %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
]
HUGE = [
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'x' * 10**12 }}",
    "{{ [0] * 10**12 }}",
    "{{ 'x' | center(10**12) }}",
    "{{ 'x'.ljust(10**12) }}",
    "{{ '%0999999999999d' % 1 }}",
    "{{ '{:>999999999999}'.format(1) }}",
    "{% for i in range(99999) %}{{ 'abc' * 99999 }}{% endfor %}",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", ENDLESS)
def test_a_template_without_end_is_stopped(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "RENDER_LIMIT_S", 0.2)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        template(text).conversation(CHAT)
    assert time.monotonic() - started < 30
    assert str(caught.value) == (
        "chat template t.jinja must render a conversation within 0.2 s (RENDER_LIMIT_S); it took more, and was "
        "stopped: use another template"
    )


@pytest.mark.parametrize("text", HUGE)
def test_a_template_that_takes_all_memory_is_stopped(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "RENDER_LIMIT_BYTES", 1 << 27)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ConfigError) as caught:
        template(text).render(CHAT)
    assert str(caught.value) == (
        "chat template t.jinja must render a conversation within 128 MiB of memory (RENDER_LIMIT_BYTES); it took more, "
        "and was stopped: use another template"
    )
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("text", ["{{ 9**9999 }}", "{% set x = 7**999 %}{{ x * x * x }}"])
def test_numbers_stay_short(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must render a conversation within numbers of 4096 bits; it took more"):
        template(text).render(CHAT)
    assert (
        template("{{ 2**10 * 3 }} {{ 'ab' * 2 }} {{ 2.5 * 2 }} {{ 2**0.5 > 1 }}").render(CHAT) == "3072 abab 5.0 True"
    )


def test_loops_are_as_before() -> None:
    text = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last else ',' }}{% endfor %}"
        "{% for m in [] %}{% else %}none{% endfor %}{% for m in nothing %}{% else %}undefined{% endfor %}"
        "{% for a, b in {'k': 1}.items() %}{{ a }}{{ b }}{{ loop.revindex }}{% endfor %}"
    )
    assert template(text).render(CHAT[:2]) == "1/2,2/2.noneundefinedk11"
    with pytest.raises(ValueError, match="'NoneType' object is not iterable"):
        template("{% for m in none %}{% endfor %}").render(CHAT)


def test_a_template_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"t\.jinja must be a Jinja2 template that is nested less deeply"):
        template("{% if true %}" * 3000 + "{% endif %}" * 3000)
