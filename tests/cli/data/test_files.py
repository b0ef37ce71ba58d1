"""`modlib data`: its commands on packed files that are there."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from modlib.cli.data.commands import COMMANDS
from modlib.cli.data.made import NOT_MADE
from modlib.cli.report import reported
from modlib.data.corpora.packing import pack_documents
from modlib.data.packed.file import PackedFile
from modlib.data.packed.outputs import tokenizer_beside
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.text.line_index import LineIndex
from modlib.data.text.tokenizer import train_byte_level_bpe
from tests.cli.commands import modlib

TEXTS = ["the quick brown fox", "", "naïve café", "the quick brown fox"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four documents, with their tokenizer beside them."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = train_byte_level_bpe(TEXTS * 3, folder / "bpe.json", vocab_size=300, end_of_document="<|endoftext|>")
    pack_documents(TEXTS, folder / "a.packed", tokenizer)
    shutil.copyfile(tokenizer.path, tokenizer_beside(folder / "a.packed"))
    return folder / "a.packed"


@pytest.fixture
def file(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    shutil.copyfile(tokenizer_beside(made), tokenizer_beside(tmp_path / "a.packed"))
    return Path(shutil.copyfile(made, tmp_path / "a.packed"))


def test_no_help_imports_anything_heavy() -> None:
    words = json.dumps([[name, "--help"] for name in COMMANDS] + [["--help"]])
    heavy = ("torch", "numpy", "tokenizers", "tensorboard", "transformers", "matplotlib")
    code = (
        "import json, sys\nfrom modlib.cli.main import app\n"
        f"for words in json.loads({words!r}):\n"
        "    try:\n        app(['data', *words])\n    except SystemExit as done:\n        assert not done.code, words\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)


def test_verify(file: Path) -> None:
    good = modlib("data", "verify", file)
    assert good.stdout.startswith(f"{file}: good, 4 documents, ")
    record = json.loads(modlib("data", "verify", file, "--json").stdout)
    assert record["documents"] == 4
    assert record["sha256"] == PackedFile(file).sha256
    assert record["documents_without_end_token"] == record["empty_documents"] == 0
    raw = bytearray(file.read_bytes())
    raw[4099] ^= 1
    file.write_bytes(raw)
    bad = modlib("data", "verify", file, code=3)
    assert "DataError: SHA-256 of the contents of" in bad.stderr
    assert bad.stdout == ""
    assert "cannot be opened" in modlib("data", "verify", file.with_name("nothing"), code=2).stderr


def test_verify_goes_on_after_a_damaged_file(made: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    both = modlib("data", "verify", file, made, code=3)
    assert "the file is truncated" in both.stderr
    assert both.stdout.startswith(f"{made}: good, ")


def test_inspect_and_decode(file: Path) -> None:
    assert "documents\t4" in modlib("data", "inspect", file).stdout
    assert json.loads(modlib("data", "inspect", file, "--json").stdout)["num_documents"] == 4
    rows = [line.split("\t") for line in modlib("data", "inspect", file, "--document", "2").stdout.splitlines()]
    assert [int(row[2]) for row in rows] == PackedFile(file).document(2).tolist()
    assert {row[1] for row in rows} == {"2"}
    assert rows[-1][3] == "'<|endoftext|>'"
    window = json.loads(modlib("data", "inspect", file, "--window", "1", "--seq_len", "3", "--json").stdout)
    assert window["tokens"] == PackedFile(file).tokens[3:7].tolist()
    assert modlib("data", "decode", file, "--document", "2", "--skip_special").stdout == "naïve café\n"
    assert modlib("data", "decode", file, "--range", "0:0").stdout == "\n"
    assert "--range (x) must be two numbers A:B" in modlib("data", "decode", file, "--range", "x", code=2).stderr
    assert (
        "document (9) must be 0 to 3, the numbers" in modlib("data", "decode", file, "--document", "9", code=2).stderr
    )


def test_merge(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.packed"
    assert modlib("data", "merge", file, file, out).stdout.startswith(f"{out}: 8 documents, ")
    assert modlib("data", "decode", out, "--document", "6", "--skip_special").stdout == "naïve café\n"
    assert "exists; choose another path" in modlib("data", "merge", file, out, code=2).stderr
    modlib("data", "merge", file, out, "--overwrite")
    assert PackedFile(out).num_documents == 4
    assert "inputs (0 files) must be at least one" in modlib("data", "merge", out, code=2).stderr


def test_convert(file: Path, tmp_path: Path) -> None:
    done = modlib("data", "convert", file, tmp_path / "a.pbin", "--to", "modalities")
    assert done.stdout.startswith(f"{tmp_path / 'a.pbin'}: ")
    back = modlib(
        "data", "convert", tmp_path / "a.pbin", tmp_path / "b.packed", "--from", "modalities",
        "--tokenizer", tokenizer_beside(file),
    )  # fmt: skip
    assert back.stdout.startswith(f"{tmp_path / 'b.packed'}: 4 documents, ")
    assert PackedFile(tmp_path / "b.packed").sha256 == PackedFile(file).sha256
    assert modlib("data", "decode", tmp_path / "b.packed", "--document", "2", "--skip_special").stdout == "naïve café\n"
    guessed = modlib("data", "convert", tmp_path / "a.pbin", tmp_path / "c.packed", "--from", "modalities")
    assert f"vocab_size {PackedFile(file).max_token_id + 1} is its largest id + 1" in guessed.stdout


def test_convert_refuses(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, code, message in (
        ([file, out], 2, "--from (None) and --to (None) must be one alone"),
        ([file, out, "--from", "nanogpt"], 2, "vocab_size (None) must be given for a nanoGPT .bin"),
        ([file, out, "--to", "modalities", "--vocab_size", "5"], 2, "--vocab_size must go with --from"),
        ([file, out, "--from", "olmo"], 2, "format (olmo) must be modalities, megatron, nanogpt or huggingface"),
        ([file, out, "--from", "megatron"], 2, "it is a packed file already: use it as it is"),
        ([tmp_path / "no", out, "--from", "megatron"], 2, "no.idx cannot be read"),
        ([tmp_path / "no", out, "--to", "modalities"], 2, "cannot be opened: No such file"),
    ):
        assert message in modlib("data", "convert", *words, code=code).stderr
    assert not out.exists()


def test_index_from_modalities(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "one"}\n{"text": "two"}\r\n\nnot json\n{"text": "three"}')
    pairs = [(0, 15), (16, 16), (43, 17)]  # as Modalities has them: lines that are JSON, CR and all
    source.with_suffix(".idx").write_bytes(pickle.dumps(pairs))
    done = modlib("data", "index", source, "--from", "modalities")
    assert done.stdout.split("\t")[:3] == [f"{source}.index", "3", "5"]
    lines = LineIndex(source)
    assert list(lines) == [b'{"text": "one"}', b'{"text": "two"}', b'{"text": "three"}']
    lines.verify()
    words = ("data", "index", source, source.with_suffix(".idx"), "--from", "modalities", "--overwrite")
    assert f"output ({source.with_suffix('.idx')}) must not be an input" in modlib(*words, code=2).stderr
    for wrong in ([(0, 14)], [(1, 14)], [(0, 40)], [(0, 15), (16, 16), (44, 16)]):
        source.with_suffix(".idx").write_bytes(pickle.dumps(wrong))
        first, length = wrong[-1]
        assert (
            f"line {len(wrong) - 1} of the index ({length} bytes from byte {first} on) must be a line of {source}; the "
            "file is not the one that the index was made of: make the index anew, without --from"
        ) in modlib("data", "index", source, "--from", "modalities", "--overwrite", code=3).stderr
    source.with_suffix(".idx").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "nothing of it was run" in modlib(
        "data", "index", source, "--from", "modalities", "--overwrite", code=3
    ).stderr  # fmt: skip
    assert "--from (olmo) must be modalities" in modlib("data", "index", source, "--from", "olmo", code=2).stderr


def test_interrupted_commands_say_what_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (((), "nothing more was done"), ((NOT_MADE,), NOT_MADE)):
        with pytest.raises(typer.Exit) as caught, reported(*words):
            raise KeyboardInterrupt
        assert caught.value.exit_code == 130
        assert capsys.readouterr().err == f"interrupted; {told}\n"


def test_mix(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.packed"
    done = modlib("data", "mix", file, file, out, "--weights", "3,1", "--by", "documents", "--seed", "5")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows[:2]] == ["75.0%", "25.0%"]
    assert [int(row[2]) for row in rows[:2]] == [12, 4]
    assert [row[5] for row in rows[:2]] == ["3.000", "1.000"]
    assert rows[2][0].startswith(f"{out}: 16 documents, ")
    texts = [modlib("data", "decode", out, "--document", str(n), "--skip_special").stdout[:-1] for n in range(16)]
    assert sorted(texts) == sorted(TEXTS * 4)
    assert json.loads((tmp_path / "out.packed.provenance.json").read_text())["inputs"][0]["epochs"] == 3.0
    assert (
        "weights ('a') must be comma-separated numbers, such as 0.7,0.3"
        in modlib("data", "mix", file, out, "--weights", "a", code=2).stderr
    )


def test_shuffle(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.packed"
    assert modlib("data", "shuffle", file, out, "--seed", "3").stdout.startswith(f"{out}: 4 documents, ")
    texts = [
        modlib("data", "decode", out, "--document", str(number), "--skip_special").stdout[:-1] for number in range(4)
    ]
    assert sorted(texts) == sorted(TEXTS)
    assert (
        "add --block_tokens N" in modlib("data", "shuffle", file, out, "--seed", "3", "--unit", "block", code=2).stderr
    )


def test_stats(file: Path, tmp_path: Path) -> None:
    text = modlib("data", "stats", file, "--plot", tmp_path / "a.png").stdout
    assert "documents\t4" in text
    assert "duplicates\t1 document" in text
    assert "document 3 is document 0 again" in text
    assert "0 '<|endoftext|>' │" in text
    assert (tmp_path / "a.png").stat().st_size > 1000
    record = json.loads(modlib("data", "stats", file, "--json", "--no_duplicates", "--num_frequent", "1").stdout)
    assert record["documents"] == 4
    assert record["duplicates"] is None
    assert record["frequent"][0]["text"] is not None


def test_chunk(file: Path, tmp_path: Path) -> None:
    lines = modlib("data", "chunk", file, tmp_path / "part", "--num_chunks", "2").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / f"part-0000{n}-of-00002.packed") for n in range(2)]
    merged = tmp_path / "again.packed"
    modlib("data", "merge", *(line.split(":")[0] for line in lines), merged)
    assert PackedFile(merged).sha256 == PackedFile(file).sha256
    assert "must be one alone" in modlib("data", "chunk", file, tmp_path / "part", code=2).stderr


def test_filter(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_filters.py").write_text(
        "print('imported')\n\n\ndef is_about_cafes(document):\n    return 'café' in document.text\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_filters", raising=False)
    out = tmp_path / "out.packed"
    done = modlib("data", "filter", file, out, "--keep", "my_filters:is_about_cafes")
    assert done.stdout.startswith(f"{out}: 1 document, ")
    assert done.stdout.endswith("; 3 of 4 documents left out\n")
    assert modlib("data", "decode", out, "--document", "0", "--skip_special").stdout == "naïve café\n"
    for keep, message in (
        ("my_filters", "--keep (my_filters) must be MODULE:FUNCTION"),
        ("my_filters:nothing", "must name a function of my_filters; there is no function nothing in it"),
        ("no_such_filters:one", "cannot find the module no_such_filters"),
    ):
        assert message in modlib("data", "filter", file, out, "--keep", keep, code=2).stderr


def test_batch(file: Path, tmp_path: Path) -> None:
    from modlib.config import load
    from modlib.data.datasets.packed_dataset import PackedDataset
    from modlib.runtime.logs import stop_logging
    from modlib.runtime.run_folder import RunFolder

    run = RunFolder(tmp_path / "runs" / "one")
    run.create()
    load(
        ["debug/tiny.gin"], [f"DATA='{file}'", "SEQ_LEN=2", "MICRO_BATCH_SIZE=2", "GPT2.vocab_size=300"]
    ).to_run_folder(run.path)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    runs = ["--runs_dir", tmp_path / "runs"]
    try:
        record = json.loads(modlib("data", "batch", "one", "3", *runs, "--world_size", "2", "--json").stdout)
        dataset = PackedDataset(path=str(file), seq_len=2)
        assert [one["rank"] for one in record["sequences"]] == [0, 0, 1, 1]
        for one in record["sequences"]:
            assert [one["inputs"], one["targets"]] == [
                dataset[one["sample"]][:-1].tolist(), dataset[one["sample"]][1:].tolist()
            ]  # fmt: skip
        rows = modlib("data", "batch", "one", "3", *runs, "--world_size", "2").stdout.splitlines()
        assert [row.split("\t")[1] for row in rows] == [str(one["sample"]) for one in record["sequences"]]
        text = modlib("data", "batch", run.path, "3", "--sequence", "1", "--world_size", "2").stdout
        assert text == record["sequences"][1]["text"] + "\n"
        assert "step (41) must be 1 to 40" in modlib("data", "batch", "one", "41", *runs, code=2).stderr
        assert "--sequence (2) must be 0 to 1, those of the batch" in modlib(
            "data", "batch", "one", "1", *runs, "--sequence", "2", code=2
        ).stderr  # fmt: skip
        assert "--world_size (0) must be at least 1" in modlib(
            "data", "batch", "one", "1", *runs, "--world_size", "0", code=2
        ).stderr  # fmt: skip
        assert "must be a run in" in modlib("data", "batch", "two", "1", *runs, code=4).stderr
    finally:
        stop_logging()
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_page_names_commands_that_exist() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data_files.md").read_text()
    named = set(re.findall(r"modlib data (\w+)", page))
    assert named <= set(COMMANDS)
    assert {"verify", "inspect", "decode", "stats", "merge", "shuffle", "chunk", "filter", "convert", "batch"} <= named


def test_what_is_shown_of_a_loss_mask(file: Path, tmp_path: Path) -> None:
    plain = PackedFile(file)
    masked = tmp_path / "masked.packed"
    with PackedFileWriter(
        masked, vocab_size=300, tokenizer_fingerprint=plain.tokenizer_fingerprint, loss_mask=True
    ) as writer:
        writer.write_documents(plain.tokens, np.diff(plain.document_offsets), trained=np.arange(plain.num_tokens) < 2)
    shutil.copyfile(tokenizer_beside(file), tokenizer_beside(masked))
    share = f"trained\t2 tokens ({100 * 2 / plain.num_tokens:.1f}%)"
    assert share in modlib("data", "inspect", masked).stdout
    assert share in modlib("data", "stats", masked).stdout
    assert "trained" not in modlib("data", "inspect", file).stdout + modlib("data", "stats", file).stdout
    assert json.loads(modlib("data", "inspect", masked, "--json").stdout)["trained_tokens"] == 2
    rows = [line.split("\t") for line in modlib("data", "inspect", masked, "--range", "1:3").stdout.splitlines()]
    assert [row[-1] for row in rows] == ["trained", ""]
    part = json.loads(modlib("data", "inspect", masked, "--range", "1:3", "--json").stdout)
    assert part["trained"] == [True, False]
    assert json.loads(modlib("data", "inspect", file, "--range", "1:3", "--json").stdout)["trained"] is None
    first = modlib("data", "decode", masked, "--range", "0:2").stdout.rstrip("\n")
    assert modlib("data", "decode", masked, "--range", "0:2", "--mark_trained").stdout == f"\u27e6{first}\u27e7\n"
    assert f"{masked}: good, 4 documents" in modlib("data", "verify", masked).stdout
    out = tmp_path / "out.pbin"
    words = ("data", "convert", masked, out, "--to", "modalities")
    assert "add --drop_loss_mask if that is wanted" in modlib(*words, code=2).stderr
    assert modlib(*words, "--drop_loss_mask").stdout.startswith(f"{out}: ")
    words = ("data", "convert", out, tmp_path / "b.packed", "--from", "modalities", "--drop_loss_mask")
    assert "--drop_loss_mask must go with --to" in modlib(*words, code=2).stderr


def test_a_corpus_has_a_name_in_every_command(tmp_path: Path) -> None:
    """Where a file is read, and nothing but a mistake begins like one."""
    assert "stdlib:validation: good" in modlib("data", "verify", "stdlib:validation").stdout
    modlib("data", "chunk", "stdlib:validation", tmp_path / "part", "--num_chunks", "2")
    assert len(list(tmp_path.glob("part-*.packed"))) == 2
    for words in (("verify", "stdlib:foo"), ("decode", "stdlib:foo", "--document", "0"), ("stats", "stdlib:foo")):
        assert "path ('stdlib:foo') must be a corpus (stdlib:train, stdlib:validation)" in modlib(
            "data", *words, code=2
        ).stderr  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_is_cut_off_on_a_narrow_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = modlib("data", name, "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "\u2026" not in shown
    if name == "pack":
        assert "stdlib:train" in shown
