"""What transformers computes of labels alone: trained, or refused by name; nothing is dropped without a word."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.huggingface_losses import LABELS_ONLY
from modlib.nn.routing import RouterLoss
from modlib.runtime.errors import ConfigError

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
MIXTRAL = {"model_type": "mixtral", **SIZES, "num_local_experts": 4}
BAMBA = {
    "model_type": "bamba",
    **SIZES,
    "mamba_n_heads": 2,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "attn_layer_indices": [1],
}


def built(config: Any, **given: Any) -> Any:
    with torch.device("meta"):
        return HuggingFacePretrainedModel(config=config, seq_len=32, **given)


def refused(match: str, config: Any, **given: Any) -> None:
    with pytest.raises(ConfigError, match=match):
        built(config, **given)


def test_a_balance_loss_is_taken_on_with_its_coefficient() -> None:
    asked = {"output_router_logits": True}
    assert built({**MIXTRAL, **asked}).router_loss() == RouterLoss(4, 2, 0.001)
    assert built({**MIXTRAL, **asked}).plan_notes() == []
    assert built(MIXTRAL, overrides={**asked, "router_aux_loss_coef": 0.5}).router_loss() == RouterLoss(4, 2, 0.5)
    jetmoe = {"model_type": "jetmoe", **SIZES, "num_local_experts": 4, "aux_loss_coef": 0.25, **asked}
    del jetmoe["num_attention_heads"]
    assert built(jetmoe).router_loss() == RouterLoss(4, 2, 0.25)


def test_a_coefficient_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    refused(
        r"^config: router_aux_loss_coef \(100.0\) must come with output_router_logits = True, without which "
        r"transformers leaves the balance loss out; add it, or leave the coefficient out$",
        {**MIXTRAL, "router_aux_loss_coef": 100.0},
    )
    refused(r"^overrides: router_aux_loss_coef \(0.5\) must come", MIXTRAL, overrides={"router_aux_loss_coef": 0.5})
    assert built({**MIXTRAL, "router_aux_loss_coef": 100.0, "output_router_logits": False}).router_loss() is None
    for name, asked in (("llama4_text", "router_aux_loss_coef"), ("deepseek_v3", "output_router_logits")):
        value = 0.1 if asked == "router_aux_loss_coef" else True
        refused(
            rf"^config: {asked} \({value}\) must (not be set|be False) for '{name}', of which transformers has no "
            r"balance loss that can be trained here; (leave it out|set it to False)$",
            {"model_type": name, **SIZES, asked: value},
        )
    doge = {"model_type": "doge", **SIZES, "is_moe": True, "num_experts": 16}
    refused(
        r"^config: output_router_logits \(True\) must be False for 'doge', ", {**doge, "output_router_logits": True}
    )
    dense = {"model_type": "qwen3_moe", **SIZES, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0, 1]}
    refused(
        r"^config: output_router_logits \(True\) must be False where no layer of 'qwen3_moe' has experts that a router "
        r"chooses; set it to False, or give the model such layers$",
        {**dense, "output_router_logits": True},
    )
    assert built(dense).plan_notes() == []
    refused(r"'router_z_loss_coef' must be a field of MixtralConfig", {**MIXTRAL, "router_z_loss_coef": 0.1})
    refused(r"'label_smoothing' must be a field of MixtralConfig", {**MIXTRAL, "label_smoothing": 0.1})
    refused(r"'loss_type' must be a field of MixtralConfig", {**MIXTRAL, "loss_type": "ForCausalLM"})


def test_what_a_folder_leaves_untrained_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    transformers.MixtralConfig(**SIZES, num_local_experts=4, router_aux_loss_coef=0.02).to_json_file(file)
    assert built(str(file)).plan_notes() == [
        "the balance loss of the routers (coefficient 0.02) is not trained: experts may fall out of use; "
        "output_router_logits = True in the model's config or overrides adds it"
    ]
    deepseek = built({"model_type": "deepseek_v3", **SIZES}).plan_notes()
    assert deepseek == ["num_nextn_predict_layers (1): transformers builds no such layers; they are not trained"]


def test_losses_of_logits_and_of_several_tokens_are_refused(tmp_path: Path) -> None:
    words = (
        r"^config: z_loss_coefficient \(0.1\) must be 0.0: it acts only on the loss that transformers computes of "
        r"labels, and train.loss takes its place; set it to 0.0$"
    )
    refused(words, {**BAMBA, "z_loss_coefficient": 0.1})
    (tmp_path / "config.json").write_text(json.dumps({**BAMBA, "z_loss_coefficient": 0.1}))
    refused(words, str(tmp_path))
    assert built(str(tmp_path), overrides={"z_loss_coefficient": 0.0}).plan_notes() == []
    refused(
        r"^config: num_mtp_layers \(2\) must be 0: transformers builds no layers for the prediction of several "
        r"tokens; leave it out or set it to 0$",
        {"model_type": "deepseek_v3", **SIZES, "num_mtp_layers": 2},
    )


# What forwards of transformers read where they have labels, beside sizes, ids and the loss function itself.
HARMLESS = {
    *("config", "loss_function", "vocab_size", "text_config", "get_text_config", "pad_token_id", "bos_token_id"),
    *("decoder_start_token_id", "device", "entity_vocab_size", "num_codebooks", "sparse_pred_ignore_index"),
    *("loss_fn", "mlm_loss_fct", "git", "encoder", "layer", "attention", "self", "image_patch_tokens"),
}


@pytest.mark.slow
def test_no_other_field_of_any_architecture_acts_on_labels_alone() -> None:
    """Reads all modeling files: a new version of transformers may bring another such field."""
    auto = transformers.models.auto.modeling_auto
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classes = {*causal.values(), *masked.values()}
    read: dict[str, set[str]] = {}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        for source in re.findall(r"^class \w+\(.*?(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL):
            name = source[6:].partition("(")[0]
            if name in classes and "labels" in source:
                for attribute in _read_with_labels(ast.parse(source)):
                    read.setdefault(attribute, set()).add(name)
    known = {"router_aux_loss_coef", "aux_loss_coef", *LABELS_ONLY}
    assert {"router_aux_loss_coef", "aux_loss_coef", "z_loss_coefficient"} <= set(read)
    ngrams = {"_compute_loss"}  # ProphetNet's; whether it is in use is disable_ngram_loss
    assert set(read) - HARMLESS - known - ngrams == set(), read


def _read_with_labels(tree: ast.AST) -> set[str]:
    """Attributes of self, or of its attributes, read in forward's branches that need labels."""
    found: set[str] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name != "forward":
            continue
        for branch in ast.walk(function):
            if isinstance(branch, ast.If) and "labels" in ast.unparse(branch.test):
                inside = [node for statement in branch.body for node in ast.walk(statement)]
                found |= {
                    node.attr
                    for node in inside
                    if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("self.")
                }
    return found
