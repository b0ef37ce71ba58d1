"""What modlib makes of the tokenizers of well-known families: small ones of each kind, built here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modlib.data.text.fast_bpe import FastBPE, NotEquivalentError, first_difference
from modlib.data.text.tokenizer import TextTokenizer, Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.runtime.errors import ModlibError
from tests.data import small_tokenizers as small

TRAINED_ON = [
    "the quick brown fox jumps over the lazy dog 0123456789",
    "def main(argv):\n    return print('hello', 1 + 2)\n",
    "Größe, naïve café, 你好, привет; it's we'll THE DOGS",
]
TEXTS = [
    *TRAINED_ON,
    "",
    " ",
    "  two  spaces   three\n\n\n\tand tabs\r\n",
    "x" * 300,
    " " * 100 + "end",
    "numbers 1 22 333 4444 55555 1,000.5e-3",
    "cafe\u0301 and café; ﬁ ligature; ｆｕｌｌ width",
    "zero\u200bwidth \u00a0 no-break",
    "日本語のテキスト and 한국어",
    "!?#$%&()*+,-./:;<=>@[]^_`{|}~",
    "I'LL she'd They've 'quoted' don't",
]
SPECIAL_TEXTS = ["a</s>b", "<s>struck</s> word", "<|endoftext|>", "<unk><pad>", "[EOS] [UNK]", "<|im_end|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Row(NamedTuple):
    """A line of the table of tokenizers.

    Args:
        family: Whose kind it is.
        ids: Whether ids equal those of the library that made the file.
        decodes: Whether ids become the text again.
        special: What becomes of the text of a special token in a document.
        end: The token that ends documents, or why none is taken.
        engine: What tokenizes large inputs.
    """

    family: str
    ids: str
    decodes: str
    special: str
    end: str
    engine: str


def _trained(model: Any, trainer: Any, **parts: Any) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(library, name, part)
    library.train_from_iterator(TRAINED_ON * 4, trainer)
    return library


def _byte_level(pattern: Any, special: list[str], **parts: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        library = _trained(models.BPE(), trainer, pre_tokenizer=pattern, decoder=decoders.ByteLevel(), **parts)
        return small.saved(library, folder)

    return make


def _split(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _llama2(folder: Path) -> Path:
    trainer = trainers.BpeTrainer(vocab_size=240, special_tokens=["<unk>", "<s>", "</s>"])
    library = _trained(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        trainer,
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    content = json.loads(library.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}  # in the vocabulary, and not special
    return small.saved(tokenizers.Tokenizer.from_str(json.dumps(content)), folder)


def _bert(folder: Path) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library = _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special),
        normalizer=normalizers.BertNormalizer(lowercase=True),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return small.saved(library, folder)


def _unigram(folder: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    library = _trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>"),
        normalizer=normalizers.NFKC(),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )
    return small.saved(library, folder)


def _clip(folder: Path) -> Path:
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library = _trained(
        models.BPE(end_of_word_suffix="</w>"),
        trainers.BpeTrainer(
            vocab_size=800, special_tokens=special, initial_alphabet=alphabet, end_of_word_suffix="</w>"
        ),
        normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(
                    Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", True
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        decoder=decoders.BPEDecoder("</w>"),
    )
    return small.saved(library, folder)


def _sentencepiece(kind: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import sentencepiece

        folder.mkdir(parents=True, exist_ok=True)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINED_ON * 40),
            model_prefix=str(folder / "tokenizer"),
            model_type=kind,
            vocab_size=360,
            byte_fallback=True,
            character_coverage=1.0,
            minloglevel=2,
            hard_vocab_limit=False,
        )
        return folder / "tokenizer.model"

    return make


_DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=True),
    ]
)
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "GPT-2: byte-level BPE": _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"]),
    "GPT-NeoX, OLMo: the same after NFC": _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"], normalizer=normalizers.NFC()
    ),
    "Llama 3: byte-level BPE with its own split": _byte_level(
        _split(LLAMA3), ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    ),
    "Falcon: split at digits and punctuation": _byte_level(_DIGITS, ["<|endoftext|>"]),
    "RoBERTa: an ordinary token named <|endoftext|>": small.roberta,
    "Gemma: ordinary tokens named <s> and </s>": small.gemma,
    "DeepSeek: special tokens of other names": lambda folder: small.deepseek(folder, chat_template=small.DEEPSEEK),
    "Llama 2, Mistral: BPE of characters with byte fallback": _llama2,
    "T5: Unigram with special pieces at score 0": small.t5,
    "XLM-R, ALBERT: Unigram after NFKC": _unigram,
    "BERT: WordPiece, lower case": _bert,
    "CLIP: BPE with ends of words, lower case": _clip,
    "word level": small.word_level,
    "whole words first (ignore_merges)": small.whole_words,
    "SentencePiece .model, Unigram": _sentencepiece("unigram"),
    "SentencePiece .model, BPE": _sentencepiece("bpe"),
}


def row(family: str, folder: Path) -> Row:
    """What comes of one family.

    Args:
        family: One of FAMILIES.
        folder: Where its files are made.
    """
    tokenizer = load_tokenizer(FAMILIES[family](folder))
    ids = [tokenizer.encode(text) for text in TEXTS]
    theirs = _library_ids(tokenizer)
    wrong = [text for text, ours, right in zip(TEXTS, ids, theirs) if ours != right]
    lossy = [text for text, ours in zip(TEXTS, ids) if tokenizer.decode(ours) != text]
    return Row(
        family,
        f"{len(TEXTS)} of {len(TEXTS)}" if not wrong else f"{len(TEXTS) - len(wrong)}: not {wrong[0]!r:.40}",
        "all" if not lossy else f"{len(TEXTS) - len(lossy)} of {len(TEXTS)}",
        _special(tokenizer),
        _end(tokenizer),
        _engine(tokenizer),
    )


def rows(folder: Path) -> list[Row]:
    """The table of tokenizers; their files are made in the folder."""
    return [row(family, folder / str(number)) for number, family in enumerate(FAMILIES)]


def _library_ids(tokenizer: TextTokenizer) -> list[list[int]]:
    """By the library that made the file, with nothing of modlib between."""
    path = str(tokenizer.path)  # type: ignore[attr-defined]
    if path.endswith(".model"):
        import sentencepiece

        return [list(ids) for ids in sentencepiece.SentencePieceProcessor(model_file=path).encode(TEXTS)]
    library = tokenizers.Tokenizer.from_file(path)
    library.encode_special_tokens = True
    library.no_truncation()
    library.no_padding()
    return [library.encode(text, add_special_tokens=False).ids for text in TEXTS]


def _special(tokenizer: TextTokenizer) -> str:
    """How texts of special tokens come out of a document."""
    special = {tokenizer.token_id(one) for one in tokenizer.special_tokens}
    texts = [*SPECIAL_TEXTS, *(f"a {one} b" for one in tokenizer.special_tokens[:4])]
    refused = 0
    for text in texts:
        try:
            (ids,) = [tokenizer.encode(text)]
        except ModlibError as error:
            if "special" not in str(error):
                return f"WRONG: {text!r} is refused, because {error}"
            refused += 1
            continue
        inside = special & set(ids) - _unknown(tokenizer)
        if inside:
            return f"WRONG: {text!r} holds {sorted(inside)}"
    return "ordinary text" if not refused else f"ordinary text; {refused} of {len(texts)} cannot be spelled: refused"


def _unknown(tokenizer: TextTokenizer) -> set[int]:
    return {tokenizer.token_id(one) for one in ("<unk>", "[UNK]") if one in tokenizer.special_tokens}


def _end(tokenizer: TextTokenizer) -> str:
    try:
        number = tokenizer.end_of_document_id()
    except ModlibError:
        return "refused, with the list of its special tokens"
    return f"`{tokenizer.token_text(number)}` ({number})"


def _engine(tokenizer: TextTokenizer) -> str:
    if not isinstance(tokenizer, Tokenizer):
        return "sentencepiece"
    try:
        fast = FastBPE(tokenizer)
    except NotEquivalentError as error:
        return f"tokenizers: {error}"
    difference = first_difference(fast, TEXTS)
    return "tiktoken, the same ids" if difference is None else f"WRONG: {difference}"
