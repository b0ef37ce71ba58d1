"""What it costs to look for special ids after encoding: packing with the look against packing without.

    python benchmarks/pack_checks.py --tokenizer gpt2/tokenizer.json      # 8 MB of Python sources, 9 pairs
    python benchmarks/pack_checks.py --tokenizer gpt2/tokenizer.json --engine tokenizer
    python benchmarks/pack_checks.py --tokenizer spm.model

One process packs the same JSONL in pairs, one with and one without, which of them first in turn, and its processor time
is taken: on a machine with other work the clock says less. A pair gives a ratio; told is the median of all pairs, and
the middle half. Beside it is the time within the look itself, as a share of the packing that it was measured in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from pack import texts_of

from modlib.data.packing.pack import pack
from modlib.data.text.plain_text import PlainText
from modlib.data.text.tokenizer import TextTokenizer, Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer


class NoLook:
    """In place of SentencePiece's control ids."""

    def isdisjoint(self, _: Any) -> bool:
        """Without looking."""
        return True


class TimedLook:
    """The same ids, with the processor time that looking takes."""

    def __init__(self, ids: set[int], spent: list[float]) -> None:
        self.ids, self.spent = ids, spent

    def isdisjoint(self, ids: Any) -> bool:
        """As a set has it."""
        start = time.process_time()
        found = self.ids.isdisjoint(ids)
        self.spent.append(time.process_time() - start)
        return found


def variants(tokenizer: TextTokenizer, spent: list[float]) -> dict[str, Callable[[], Any]]:
    """Contexts in which a packing looks, does not look, and looks with a clock."""
    if not isinstance(tokenizer, Tokenizer):
        control: set[int] = tokenizer._control  # type: ignore[attr-defined]
        return {
            "with": lambda: mock.patch.object(tokenizer, "_control", control),
            "without": lambda: mock.patch.object(tokenizer, "_control", NoLook()),
            "timed": lambda: mock.patch.object(tokenizer, "_control", TimedLook(control, spent)),
        }
    look = PlainText.checked

    def timed(self: PlainText, *given: Any) -> Any:
        start = time.process_time()
        found = look(self, *given)
        spent.append(time.process_time() - start)
        return found

    return {
        "with": lambda: mock.patch.object(PlainText, "checked", look),
        "without": lambda: mock.patch.object(PlainText, "checked", lambda *given: given[2:]),
        "timed": lambda: mock.patch.object(PlainText, "checked", timed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json or a SentencePiece .model")
    parser.add_argument("--engine", choices=["auto", "fast", "tokenizer"], default="auto")
    parser.add_argument("--end_of_document", help="as of modlib data pack")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(options.megabytes)))
        tokenizer, spent = load_tokenizer(options.tokenizer), []  # type: TextTokenizer, list[float]

        def seconds(context: Callable[[], Any]) -> float:
            with context():
                start = time.process_time()
                pack([source], Path(folder) / "out.packed", tokenizer, workers=1, overwrite=True,
                     engine=options.engine, end_of_document=options.end_of_document)  # fmt: skip
                return time.process_time() - start

        ways = variants(tokenizer, spent)
        seconds(ways["with"])
        pairs = []
        for number in range(options.rounds):
            order = ["with", "without"][:: 1 if number % 2 else -1]
            took = {name: seconds(ways[name]) for name in order}
            pairs.append(took["with"] / took["without"])
        shares = []
        for _ in range(3):
            spent.clear()
            shares.append(seconds(ways["timed"]))
            shares[-1] = sum(spent) / shares[-1]
    low, _, high = statistics.quantiles(pairs, n=4)
    print(
        f"with the look / without, {options.rounds} pairs: median {statistics.median(pairs):.4f}, middle half "
        f"{low:.4f} to {high:.4f}; the look alone is {statistics.median(shares):.2%} of packing"
    )


if __name__ == "__main__":
    main()
