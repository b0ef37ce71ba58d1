"""From conversations to a run that is trained on the answers in them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

from modlib.cli.models.trained_run import load_run
from modlib.data.packed.file import PackedFile
from modlib.data.text.tokenizer import train_byte_level_bpe
from modlib.runtime.run_folder import RunFolder
from tests.cli.commands import modlib
from tests.data.cut_off import CHAT_TEMPLATE as TEMPLATE
from tests.launching_command import launch, metrics


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """300 sums as conversations, packed by the command."""
    rng = random.Random(0)
    rows = []
    for _ in range(300):
        one, other = rng.randrange(100), rng.randrange(100)
        turns = [("user", f"what is {one} + {other}?"), ("assistant", f"it is {one + other}")]
        turns += [("user", "and twice that?"), ("assistant", str(2 * (one + other)))]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "tokenizer.json"
    train_byte_level_bpe(["what is it and twice that?"], path, vocab_size=300, end_of_document="<|endoftext|>")
    library = tokenizers.Tokenizer.from_file(str(path))
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    library.save(str(path))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    modlib("data", "pack", tmp_path / "chat.jsonl", tmp_path / "chat.packed", "--tokenizer", tmp_path, "--chat")
    return tmp_path / "chat.packed"


@pytest.mark.slow
def test_a_run_is_trained_on_the_answers_alone(packed: Path, tmp_path: Path) -> None:
    """The first loss is the mean over the answers' tokens, computed by hand from the file and the model's weights."""
    params = [f"DATA='{packed}'", f"VAL_DATA='{packed}'", "MICRO_BATCH_SIZE=3", "GRAD_ACCUM_STEPS=2", "NUM_STEPS=1"]
    params += ["LR=1e-30", "WARMUP_STEPS=0", "CHECKPOINT_EVERY=1", "EVAL_EVERY=1", "GPT2.dropout=0.0"]
    params += ["TextSample.prompt='what is 1 + 2?'"]
    flags = ("--runs_dir", str(tmp_path / "runs"), "--name", "run")
    done = launch("debug/tiny.gin", params, *flags)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    batch = json.loads(modlib("data", "batch", run, "1", "--json").stdout)
    model = load_run(RunFolder(run)).model.eval()
    file, seq_len = PackedFile(packed), 32
    losses = []
    for sequence in batch["sequences"]:
        start = sequence["sample"] * seq_len
        ids = torch.from_numpy(file.tokens[start : start + seq_len + 1].astype(np.int64))
        targets = ids[1:].tolist()
        trained = file.trained(start, start + seq_len + 1)[1:].tolist()
        assert sequence["targets"] == [one if counts else -100 for one, counts in zip(targets, trained, strict=True)]
        with torch.no_grad():
            logits = model(ids[None, :-1].to(next(model.parameters()).device))[0].cpu()
        of_targets = torch.log_softmax(logits, -1)[torch.arange(seq_len), ids[1:]]
        losses += (-of_targets[torch.tensor(trained)]).tolist()
    assert len(batch["sequences"]) == 6
    assert 6 < len(losses) < 6 * seq_len / 2
    lines = metrics(run)
    (loss,) = [line["train/loss"] for line in lines if "train/loss" in line]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    names = {name for line in lines for name in line}
    assert "val/validation/loss" in names
    assert "val/validation/bits_per_byte" not in names  # the bytes of the answers alone are not known
