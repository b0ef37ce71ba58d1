"""Every component of the catalogue is built from the smallest gin file that can build it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn

from modlib.cli.configs.component_page import page
from modlib.cli.configs.list import describe
from modlib.components import component, known_components
from modlib.config import load
from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.sampler import ShuffledSampler
from modlib.models.coca import CoCa
from modlib.models.gpt2 import GPT2
from modlib.nn.losses import CLMCrossEntropyLoss

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).parent / "rows"
"""<gin name>.gin holds the bindings a component needs; one that needs none has no file."""
MODLIB = sorted(name for name, entry in known_components().items() if entry.module.startswith(("modlib.", "torch.")))


@component("run", "catalogue_row")
def catalogue_row(choice: Callable[..., Any]) -> Callable[..., Any]:
    """The component under test."""
    return choice


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that rows name as {assets}/...: made by tests/rows/assets_*.py."""
    folder = tmp_path_factory.mktemp("assets")
    for path in sorted(ROWS.glob("assets_*.py")):
        importlib.import_module(f"tests.rows.{path.stem}").make(folder)
    return folder


def at_run_time(name: str, run_path: Path) -> dict[str, Any]:
    """What only a running process knows, by the names of runtime_args."""
    model = GPT2(vocab_size=64, seq_len=8, num_layers=1, num_heads=2, dim=8)
    captioner = CoCa(
        image_size=32, patch_size=8, vision_layers=1, vision_dim=8, vision_heads=2, vocab_size=32, seq_len=12,
        text_layers=1, multimodal_layers=1, dim=8, num_heads=2, num_vision_queries=2, pool_heads=2,
    )  # fmt: skip
    params = [parameter for parameter in model.parameters() if parameter.ndim == 2 or name != "Muon"]
    return {
        "model": captioner if name == "CaptionSample" else model,
        "tokenizer": Tokenizer(WordLevel({"<|endoftext|>": 0, **{str(i): i for i in range(1, 64)}}, unk_token="1")),
        "params": params,
        "loss": CLMCrossEntropyLoss(),
        "optimizer": torch.optim.AdamW(params, lr=0.1, betas=(0.9, 0.95)),
        "normalized_shape": 8,
        "device": None,
        "dtype": None,
        "run_path": run_path,
        "num_samples": 16,
        "dataset": [[1, 2, 3, 4]] * 16,
        "sampler": ShuffledSampler(seed=0, num_samples=16),
        "collate": LMCollator(),
        "batch_sampler": None,
        "layout": BatchLayout(2),
        "rank": 0,
        "num_epochs": None,
    }


@pytest.mark.parametrize("name", MODLIB)
def test_a_row_is_built_from_gin(name: str, assets: Path, tmp_path: Path) -> None:
    row = ROWS / f"{name}.gin"
    bindings = row.read_text().replace("{assets}", str(assets)) if row.exists() else ""
    (tmp_path / "row.gin").write_text(f"{bindings}\ncatalogue_row.choice = @{name}\n")
    config = load([tmp_path / "row.gin"])
    entry = known_components()[name]
    pool = at_run_time(name, tmp_path)
    config.activate()
    with torch.device("meta" if entry.type == "model" else "cpu"):
        choice = gin.get_configurable("catalogue_row")()
        built = choice(**{argument: pool[argument] for argument in entry.runtime_args})
    assert built is not None
    if entry.type == "model":
        assert isinstance(built, nn.Module)
        assert built.vocab_size > 0
        assert built.seq_len > 0
    if hasattr(built, "close"):
        built.close()


def test_every_row_file_is_of_a_component() -> None:
    assert {path.stem for path in ROWS.glob("*.gin")} <= set(MODLIB)


CATALOGUE = {
    "model": "gpt2 huggingface_pretrained_model checkpointed fsdp_wrapped model_initialized coca lora",
    "model_initialization": "composed",
    "loss": "clm_cross_entropy_loss chunked_clm_cross_entropy_loss contrastive weighted_losses",
    "optimizer": "adam adam_w checkpointed muon",
    "scheduler": "dummy_lr step_lr constant_lr onecycle_lr cosine_annealing_lr linear_warmup_cosine "
    "warmup_stable_decay linear_lr inverse_sqrt",
    "tokenizer": "pretrained_hf_tokenizer pretrained_sp_tokenizer",
    "dataset": "mem_map_dataset packed_mem_map_dataset_continuous dummy_dataset packed_documents combined mixture",
    "sampler": "distributed_sampler",
    "batch_sampler": "default",
    "collate_fn": "gpt_2_llm_collator coca_collator mask_loss_collator",
    "data_loader": "default repeating_data_loader",
    "checkpoint_saving": "default",
    "checkpoint_saving_strategy": "save_every_k_steps_checkpointing_strategy save_k_most_recent_checkpoints_strategy",
    "checkpoint_saving_execution": "fsdp",
    "checkpoint_loading": "fsdp torch",
    "progress_subscriber": "dummy rich",
    "results_subscriber": "wandb tensorboard jsonl rich csv",
    "layer_norm": "rms_norm layer_norm",
    "gradient_clipper": "fsdp fsdp_logging_only dummy",
    "number_conversion": "local_num_batches_from_num_samples local_num_batches_from_num_tokens "
    "num_steps_from_num_samples num_steps_from_num_tokens num_tokens_from_num_steps_callable",
}


@pytest.mark.parametrize("kind", CATALOGUE)
def test_the_catalogue_is_complete(kind: str) -> None:
    variants = {entry.variant for entry in known_components().values() if entry.type == kind}
    assert set(CATALOGUE[kind].split()) <= variants


def test_the_generated_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "components.md").read_text()
    if f"torch {torch.__version__.partition('+')[0]};" not in written:
        pytest.skip("the page was made with another torch, whose signatures differ")
    described = [one for one in describe("") if one["name"] in MODLIB]
    assert page(described) == written, "run: modlib list --markdown > docs/components.md"
