"""Samples, tokens and steps from one another: exact, whatever their size, and nothing is dropped in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modlib.checkpointing.writing import save
from modlib.config import load
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import CheckpointError, ConfigError
from modlib.training import number_conversion as conversions

huge = st.integers(0, 10**30)
size = st.integers(1, 10**6)


@given(huge, size, size, size, size)
def test_floor_chains_equal_one_exact_division(total: int, seq_len: int, ranks: int, micro: int, accum: int) -> None:
    shares = {"world_size": ranks, "micro_batch_size": micro}
    found = conversions.local_num_batches_from_num_samples(num_samples=total, **shares)
    assert found == total // ranks // micro
    found = conversions.local_num_batches_from_num_tokens(num_tokens=total, seq_len=seq_len, **shares)
    assert found == total // seq_len // ranks // micro
    found = conversions.num_steps_from_num_samples(num_samples=total, grad_accum_steps=accum, **shares)
    assert found == total // ranks // micro // accum
    steps = conversions.num_steps_from_num_tokens(num_tokens=total, seq_len=seq_len, grad_accum_steps=accum, **shares)
    assert steps == total // seq_len // ranks // micro // accum
    tokens = conversions.num_tokens_from_num_steps(num_steps=steps, seq_len=seq_len, grad_accum_steps=accum, **shares)
    assert tokens == steps * seq_len * ranks * micro * accum
    assert 0 <= total - tokens < seq_len * ranks * micro * accum
    later = conversions.num_tokens_from_num_steps_callable(seq_len=seq_len, grad_accum_steps=accum, **shares)
    assert later(steps) == tokens
    assert conversions.num_samples_from_num_tokens(num_tokens=total, seq_len=seq_len) == total // seq_len


def test_what_is_left_over_is_reported_once_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    numbers = {"num_tokens": 1003, "seq_len": 10, "world_size": 2, "micro_batch_size": 5}
    with caplog.at_level(logging.WARNING, logger="modlib"):
        for _ in range(3):
            assert conversions.num_steps_from_num_tokens(**numbers) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "num_steps_from_num_tokens: num_tokens (1003) is 10 steps of 100; 3 are left over and not counted"
    ]
    with pytest.raises(ConfigError) as caught:
        conversions.num_steps_from_num_tokens(**numbers, leftover="error")
    assert caught.value.problems == [
        "num_steps_from_num_tokens: num_tokens (1003) must be a multiple of 100, since leftover ('error') allows no "
        "rest; nearest valid: 1000 or 1100"
    ]


SHARES = {"world_size": 2, "micro_batch_size": 5}
WITH_A_REST: list[tuple[str, dict[str, int], int, int]] = [  # conversion, numbers, what is whole, what is left
    ("local_num_batches_from_num_samples", {"num_samples": 2**60 + 3, **SHARES}, 2**60 // 10, 2**60 % 10 + 3),
    ("local_num_batches_from_num_tokens", {"num_tokens": 1234, "seq_len": 10, **SHARES}, 12, 34),
    ("num_samples_from_num_tokens", {"num_tokens": 1234, "seq_len": 100}, 12, 34),
    ("num_steps_from_num_samples", {"num_samples": 1234, "grad_accum_steps": 4, **SHARES}, 30, 34),
    ("num_steps_from_num_tokens", {"num_tokens": 1234, "seq_len": 3, "grad_accum_steps": 4, **SHARES}, 10, 34),
]


@pytest.mark.parametrize(("name", "numbers", "whole", "left"), WITH_A_REST)
def test_no_conversion_drops_a_rest_in_silence(
    name: str, numbers: dict[str, int], whole: int, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="modlib"):
        assert getattr(conversions, name)(**numbers) == whole
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{name}: num_")
    assert message.endswith(f"; {left} are left over and not counted")
    with pytest.raises(ConfigError, match=rf"^{name}: num_.* must be a multiple of "):
        getattr(conversions, name)(**numbers, leftover="error")


def test_numbers_out_of_range_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        conversions.num_steps_from_num_samples(num_samples=-1, world_size=0, micro_batch_size=2)
    assert caught.value.problems == [
        "num_steps_from_num_samples: num_samples (-1) must be at least 0; set it to 0 or more",
        "num_steps_from_num_samples: world_size (0) must be at least 1; set it to 1 or more",
    ]
    with pytest.raises(ConfigError, match=r"num_steps \(-1\) must be at least 0"):
        conversions.num_tokens_from_num_steps_callable(seq_len=2, world_size=1, micro_batch_size=1)(-1)


@pytest.fixture
def packed(tmp_path: Path) -> str:
    with PackedFileWriter(tmp_path / "tokens.packed", vocab_size=64) as writer:
        writer.write((np.arange(201) % 64).astype(np.uint16))
    return str(tmp_path / "tokens.packed")


def test_from_a_packed_file(packed: str) -> None:
    shares = {"path": packed, "seq_len": 8, "world_size": 2, "micro_batch_size": 3}
    assert conversions.num_steps_from_packed_file(**shares) == 25 // 6
    assert conversions.num_steps_from_packed_file(**shares, num_epochs=6) == 25
    assert conversions.num_tokens_from_packed_file(**shares, num_epochs=2) == 8 * 6 * 8
    assert conversions.num_steps_from_packed_file(**shares, reuse_last_target=False) == (201 // 9) // 6
    with pytest.raises(ConfigError, match=r"^num_steps_from_packed_file: "):
        conversions.num_steps_from_packed_file(**{**shares, "path": "none.packed"})


def test_from_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, step=7, model=nn.Linear(2, 2), extra={"step": 7, "tokens": 10**18}).path
    assert conversions.num_steps_from_checkpoint(checkpoint_path=str(path)) == 7
    assert conversions.num_tokens_from_checkpoint(checkpoint_path=str(path)) == 10**18
    renamed = path.rename(tmp_path / "seen_steps_9")  # the name says nothing
    assert conversions.num_steps_from_checkpoint(checkpoint_path=str(renamed)) == 7
    silent = save(tmp_path, step=8, model=nn.Linear(2, 2)).path
    with pytest.raises(
        CheckpointError, match=r"step \(None\) in the manifest of checkpoint_path .* must be an integer"
    ):
        conversions.num_steps_from_checkpoint(checkpoint_path=str(silent))


def whole_run(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "run.gin").write_text("include 'debug/tiny.gin'\n" + "\n".join(lines))
    return tmp_path / "run.gin"


BINDINGS = (
    "num_steps_from_num_tokens.num_tokens = 2_600",
    "num_steps_from_num_tokens.seq_len = %SEQ_LEN",
    "num_steps_from_num_tokens.world_size = 1",
    "num_steps_from_num_tokens.micro_batch_size = %MICRO_BATCH_SIZE",
)


@pytest.mark.parametrize("binding", ["train.num_steps", "NUM_STEPS"])
def test_in_a_gin_file(tmp_path: Path, binding: str) -> None:
    import gin

    path = whole_run(tmp_path, f"{binding} = @num_steps_from_num_tokens()", *BINDINGS)
    config = load([path])
    config.activate()
    assert gin.get_configurable("train")().num_steps == 2600 // (32 * 4)
    assert load([path]).hash == config.hash
    assert load([path], ["num_steps_from_num_tokens.num_tokens=2_700"]).hash != config.hash
    (tmp_path / "config.gin").write_text(config.text)
    assert load([tmp_path / "config.gin"]).hash == config.hash


def test_a_wrong_number_in_a_gin_file_is_told_with_its_place(tmp_path: Path, launched: Callable[..., Any]) -> None:
    path = whole_run(
        tmp_path, "NUM_STEPS = @num_steps_from_num_tokens()", *BINDINGS[1:], "num_steps_from_num_tokens.num_tokens = -5"
    )
    result = launched("--gin_file", str(path), "--dry_run")
    assert result.exit_code == 2
    assert "num_tokens (-5) must be at least 0; set it to 0 or more" in result.output
    assert "run.gin:6" in result.output


@pytest.fixture
def launched() -> Callable[..., Any]:
    from typer.testing import CliRunner

    from modlib.cli.start.launch import app

    return lambda *flags: CliRunner().invoke(app, list(flags))
