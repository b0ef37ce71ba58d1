"""Small tokenizer folders, each built as one family of models has it, with that family's pitfall in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def saved(library: tokenizers.Tokenizer, folder: Path, **config: Any) -> Path:
    """The folder, with the tokenizer and, where anything is named, its tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def bytes_of(special: list[str], ordinary: list[str] | None = None, **settings: Any) -> tokenizers.Tokenizer:
    """Byte-level BPE without a merge: special tokens from id 0 on, then the bytes, then ordinary added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*special, *alphabet])}
    library = tokenizers.Tokenizer(models.BPE(vocab, [], **settings))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    library.add_tokens([AddedToken(one, special=False, normalized=False) for one in ordinary or []])
    return library


def gemma(folder: Path, **config: Any) -> Path:
    """`<eos>` (1) and `<bos>` (2) are special, the HTML tags `</s>` (261) and `<s>` (260) ordinary added tokens."""
    return saved(bytes_of(["<pad>", "<eos>", "<bos>", "<end_of_turn>"], ["<s>", "</s>"]), folder, **config)


def roberta(folder: Path) -> Path:
    """`</s>` (2) ends documents; `<|endoftext|>` (260) is left over from GPT-2 and ordinary."""
    return saved(bytes_of(["<s>", "<pad>", "</s>", "<unk>"], ["<|endoftext|>"]), folder)


def deepseek(folder: Path, **config: Any) -> Path:
    """Special tokens of no well-known name, which the folder names."""
    library = bytes_of(["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|im_end|>"])
    named: dict[str, Any] = {"bos_token": {"content": "<｜begin▁of▁sentence｜>"}}
    return saved(library, folder, **(named | {"eos_token": {"content": "<｜end▁of▁sentence｜>"}} | config))


LETTERS = "abcdefghijklmnopqrstuvwxyz_0123456789/>."


def t5(folder: Path, letters: str = LETTERS) -> Path:
    """Unigram with its special tokens among the pieces at score 0, the best of all; `<` is unknown, as in T5."""
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    pieces = [(one, 0.0) for one in special] + [("▁", -2.0), ("▁the", -2.5)] + [(one, -4.0) for one in letters]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(special)
    return saved(library, folder)


def word_level(folder: Path, unk_token: str | None = "[UNK]") -> Path:
    """Words between spaces; `[EOS]` is one, and nothing else spells it."""
    vocab = {"[UNK]": 0, "[EOS]": 1, "the": 2, "fox": 3}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=unk_token or "none"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[UNK]", "[EOS]"])
    return saved(library, folder)


def word_piece(folder: Path) -> Path:
    """BERT's kind, split at spaces alone; pieces of one character spell everything."""
    singles = [chr(code) for code in range(33, 127)]
    tokens = ["[UNK]", "[SEP]", *singles, *(f"##{one}" for one in singles)]
    library = tokenizers.Tokenizer(models.WordPiece({one: n for n, one in enumerate(tokens)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["[UNK]", "[SEP]"])
    return saved(library, folder)


def whole_words(folder: Path) -> Path:
    """BPE that looks words up first (`ignore_merges`, as Llama 3) and splits at spaces alone."""
    special = ["<s>", "</s>", "<unk>"]
    tokens = [*special, "▁", *(chr(code) for code in range(33, 127)), "/s", "</s"]
    library = tokenizers.Tokenizer(
        models.BPE({one: n for n, one in enumerate(tokens)}, [("/", "s"), ("<", "/s"), ("</s", ">")],
                   unk_token="<unk>", ignore_merges=True)
    )  # fmt: skip
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(special)
    return saved(library, folder)


def lower_case(folder: Path) -> Path:
    """A special token that is looked for in normalized text, which the library itself shows as `<eod>`."""
    vocab = {"[UNK]": 0, "the": 1, **{one: n for n, one in enumerate("<>eodxyz", 2)}}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens([AddedToken("<EOD>", special=True, normalized=True)])
    return saved(library, folder)
