"""`python -m tests.compatibility`: run everything and write docs/compatibility.md."""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.compatibility import architectures, chat, tokenizers
from tests.launching_command import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "tiktoken", "peft", "safetensors")
BEGIN = """# Compatibility

Each cell was found by running, on tiny random models and small tokenizers of each kind:
`python -m tests.compatibility` makes this page anew, in about three minutes.

"""
TOKENIZERS = """## Tokenizers

Ids are compared with those of the library itself, which reads the same file; the texts are prose, code, digits, white
space, composed and decomposed letters, and scripts. "Special" is what becomes of a special token's text in a document.

"""
CHAT = """## Chat templates

With generation blocks every template is packed as transformers masks it. Without them, "equal" means the same text, ids
and mask.

"""
ARCHITECTURES = """## Architectures

From their config alone: four steps of training; stopped after two and continued; exported and read by transformers'
`from_pretrained`; adapters by LoRA.

"""


def line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(map(line, [names, ["---"] * len(names), *rows]))


def versions() -> str:
    """What the page was made with."""
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"Versions: Python {sys.version.split()[0]}, {found}."


def page(folder: Path) -> str:
    """The page; runs and tokenizers are made in the folder."""
    return "".join(
        [
            BEGIN,
            f"{versions()}\n\n",
            TOKENIZERS,
            table(
                ["tokenizer", "ids equal", "decode to the text", "special", "end of document", "engine"],
                tokenizers.rows(folder / "tokenizers"),
            ),
            "\n",
            CHAT,
            table(["template", "without blocks", "checked"], chat.rows(folder / "chat")),
            "\n",
            ARCHITECTURES,
            table(
                ["model_type", "trains", "resumes", "exports", "reloads", "LoRA"],
                architectures.rows(folder / "architectures"),
            ),
        ]
    )


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory(prefix="modlib-compatibility-") as folder:
        PAGE.write_text(page(Path(folder)))
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
