"""A mixture of experts from gin to the metrics: its balance loss in the training loss, and not in the validation's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching_command import launch, metrics

pytest.importorskip("transformers")

GIN = """
include 'debug/tiny.gin'
train.model = @HuggingFacePretrainedModel
train.initialization = None
train.compile = False
HuggingFacePretrainedModel.config = {
    'model_type': 'mixtral', 'vocab_size': 4096, 'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 2,
    'num_attention_heads': 2, 'num_key_value_heads': 2, 'max_position_embeddings': 32, 'num_local_experts': 4}
HuggingFacePretrainedModel.overrides = {'output_router_logits': True, 'router_aux_loss_coef': 0.5}
"""


@pytest.mark.slow
def test_a_mixture_of_experts_trains_with_its_balance_loss(tmp_path: Path) -> None:
    (tmp_path / "moe.gin").write_text(GIN)
    settings = ["NUM_STEPS=3", "train.global_batch_size=8", "train.micro_batch_size=4"]
    done = launch(str(tmp_path / "moe.gin"), settings, "--runs_dir", str(tmp_path), "--name", "run")
    assert done.returncode == 0, done.stderr
    assert " router_balance_loss=2." in done.stderr
    first, *_, last = metrics(tmp_path / "run")
    balance = first["train/router_balance_loss"]
    assert balance == pytest.approx(2.0, abs=0.1)
    assert first["train/loss"] == pytest.approx(first["train/task_loss"] + 0.5 * balance, rel=1e-6)
    assert last["val/validation/loss"] == pytest.approx(first["train/task_loss"], abs=0.3)
