"""The table of Modalities' components: what each one and each of its fields is here, or why it is nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SAME: Callable[[Any], Any] = lambda value: value  # noqa: E731


@dataclass(frozen=True)
class Param:
    """A field that is a parameter here.

    Args:
        name: With the component's gin name: `GPT2.dim`; or a macro's name.
        convert: Its value here, from the one there.
        note: What is different, for the user; empty where nothing is.
    """

    name: str
    convert: Callable[[Any], Any] = SAME
    note: str = ""


@dataclass(frozen=True)
class Dropped:
    """A field without a counterpart.

    Args:
        why: For the user; empty where there is nothing to say, since modlib knows it by itself.
    """

    why: str = ""


@dataclass(frozen=True)
class Row:
    """One component.

    Args:
        gin: Its name here; empty where there is none.
        fields: What each field is.
        note: What is different, or why there is nothing.
    """

    gin: str = ""
    fields: Mapping[str, Param | Dropped] = field(default_factory=dict)
    note: str = ""


KNOWN = Dropped()
Fields = dict[str, Param | Dropped]
_KEYS: Fields = dict.fromkeys(("sample_key", "prediction_key", "target_key"), KNOWN)
_OPTIMIZER: Fields = {"wrapped_model": KNOWN, "model": KNOWN, "lr": Param("LR")}
_SCHEDULER: Fields = {"optimizer": KNOWN, "last_epoch": Dropped("a checkpoint holds the position")}
_PROGRESS: Fields = dict.fromkeys(
    ("global_rank", "num_seen_steps", "num_target_steps", "train_dataloader_tag", "eval_dataloaders", "num_ranks"),
    KNOWN,
)
_ACTIVATIONS = {"gelu": "gelu", "swiglu": "swiglu", "fused_swiglu": "swiglu"}
_POSITIONS = {"ABSOLUTE": "learned", "NOPE": "none"}
_NORM_TYPES = {"P1_NORM": 1.0, "P2_NORM": 2.0, "MAX_NORM": "inf"}
_PRECISION = {"BF_16": "bfloat16", "BF_16_WORKING": "bfloat16", "FP_32": "float32", "NO_MIXED_PRECISION": "float32"}


def swiglu_hidden(ffn_hidden: int) -> int:
    """What Modalities makes of ffn_hidden in a SwiGLU: two thirds of it, rounded up to a multiple of 256."""
    return -(-int(2 * ffn_hidden / 3) // 256) * 256


def _adam(name: str) -> Row:
    return Row(
        name,
        {
            **_OPTIMIZER,
            "betas": Param(f"{name}.betas", tuple),
            "eps": Param(f"{name}.eps"),
            "weight_decay": Param(f"{name}.weight_decay"),
            "fused": Param(f"{name}.fused"),
            "foreach": Param(f"{name}.foreach"),
            "weight_decay_groups_excluded": KNOWN,  # see `modalities.decay_groups`
        },
    )


def _wrapper(note: str = "", **fields: Param | Dropped) -> Row:
    return Row("", {"model": KNOWN, "wrapped_model": KNOWN, **fields}, note)


_NO_LAYOUT = "modlib shards along the data-parallel axis alone today"
ROWS: dict[str, Row] = {
    "model/gpt2": Row(
        "GPT2",
        {
            **_KEYS,
            "vocab_size": Param("GPT2.vocab_size"),
            "sequence_length": Param("SEQ_LEN"),
            "n_layer": Param("GPT2.num_layers"),
            "n_head_q": Param("GPT2.num_heads"),
            "n_head_kv": Param("GPT2.num_kv_heads"),
            "n_embd": Param("GPT2.dim"),
            "ffn_hidden": Param("GPT2.ffn_dim"),
            "dropout": Param("GPT2.dropout", note="dropout of attention is off in evaluation, where it stayed on"),
            "bias": Param("GPT2.bias"),
            "poe_type": Param("GPT2.position", lambda value: _POSITIONS.get(value, value)),
            "activation_type": Param("GPT2.activation", lambda value: _ACTIVATIONS.get(value, value)),
            "use_weight_tying": Param("GPT2.tie_embeddings"),
            "attention_implementation": Dropped(),
            "use_meta_device": Dropped(),
            "seed": Param("SEED"),
            "enforce_swiglu_hidden_dim_multiple_of": KNOWN,
            **dict.fromkeys(
                ("attention_config", "attention_norm_config", "ffn_norm_config", "lm_head_norm_config"), KNOWN
            ),
        },
    ),
    "model/huggingface_pretrained_model": Row(
        "HuggingFacePretrainedModel",
        {
            **_KEYS,
            "model_type": Param("HuggingFacePretrainedModel.model_type"),
            "model_name": Param(
                "HuggingFacePretrainedModel.path", str, "a local folder: hf download NAME --local-dir FOLDER"
            ),
            "huggingface_prediction_subscription_key": KNOWN,
            "model_args": Dropped("arguments of from_pretrained have no counterpart"),
            "kwargs": Dropped("arguments of from_pretrained have no counterpart; fields of its config: overrides"),
        },
    ),
    "model/coca": Row(
        "CoCa",
        {
            **_KEYS,
            "n_pool_head": Param("CoCa.pool_heads"),
            "n_vision_queries": Param("CoCa.num_vision_queries"),
            "bias_attn_pool": Dropped("CoCa.bias is of all projections"),
            "epsilon_attn_pool": Dropped("all norms of CoCa have one eps"),
            "vision_encoder_config": KNOWN,
            "text_decoder_config": KNOWN,
            "vision_embd_prediction_key": KNOWN,
            "text_embd_prediction_key": KNOWN,
            "vision_cls_prediction_key": KNOWN,
            "text_cls_prediction_key": KNOWN,
        },
        "its contrastive loss can be trained here: train.loss = @WeightedLosses, see gin_configs/models/coca_base.gin",
    ),
    "model/fsdp1_wrapped": _wrapper(
        block_names=Dropped(), sync_module_states=Dropped(), sharding_strategy=Dropped(),
        mixed_precision_settings=Param("train.precision", lambda value: _PRECISION[value]),
    ),
    "model/fsdp2_wrapped": _wrapper(
        block_names=Dropped(), device_mesh=KNOWN, layers_per_fsdp_unit=Dropped("each block is a unit of its own"),
        mixed_precision_settings=Param(
            "train.precision", lambda value: _PRECISION[value["param_dtype"]], "gradients are reduced in float32"
        ),
        reshard_after_forward=Dropped("FSDPModel.reshard_after_forward is the same; the default is True, too"),
    ),
    "model/model_initialized": _wrapper(model_initializer=KNOWN),
    "model/compiled": _wrapper(block_names=Dropped(), fullgraph=Dropped(), debug=Dropped()),
    "model/activation_checkpointed": _wrapper("activation checkpointing has no counterpart yet"),
    "model/gpt2_tp": _wrapper(f"tensor parallelism has no counterpart yet: {_NO_LAYOUT}"),
    "model/debugging_enriched": _wrapper("hooks for debugging have no counterpart"),
    "model/fsdp1_checkpointed": Row(
        "CheckpointedModel",
        {"model": KNOWN, "checkpoint_loading": KNOWN,
         "checkpoint_path": Param("CheckpointedModel.checkpoint_path", str)},
        "give the path of a checkpoint of modlib, or of one file of weights with modlib's names",
    ),
    "model_initialization/composed": Row(
        "ComposedInitializer",
        {
            "model_type": KNOWN,
            "weight_init_type": Param("ComposedInitializer.weight_init_type"),
            "mean": Param("ComposedInitializer.mean"),
            "std": Param("ComposedInitializer.std"),
            "num_layers": Param("ComposedInitializer.num_layers"),
            "hidden_dim": Param("ComposedInitializer.dim"),
        },
    ),
    "model_initialization/gpt2_llama3_like": Row(note="this rule of initial weights has no counterpart"),
    "loss/clm_cross_entropy_loss": Row(
        "CLMCrossEntropyLoss", _KEYS, "the mean is over all tokens of the global batch, not of each micro-batch's mean"
    ),
    "optimizer/adam": _adam("Adam"),
    "optimizer/adam_w": _adam("AdamW"),
    "scheduler/dummy_lr": Row("DummyLR", _SCHEDULER),
    "scheduler/constant_lr": Row("ConstantLR", {**_SCHEDULER, "factor": Param("ConstantLR.factor"),
                                                "total_iters": Param("ConstantLR.total_iters")}),
    "scheduler/linear_lr": Row("LinearLR", {**_SCHEDULER, "start_factor": Param("LinearLR.start_factor"),
                                            "end_factor": Param("LinearLR.end_factor"),
                                            "total_iters": Param("LinearLR.total_iters")}),
    "scheduler/step_lr": Row("StepLR", {**_SCHEDULER, "step_size": Param("StepLR.step_size"),
                                        "gamma": Param("StepLR.gamma")}),
    "scheduler/cosine_annealing_lr": Row("CosineAnnealingLR", {**_SCHEDULER, "t_max": Param("CosineAnnealingLR.T_max"),
                                                               "eta_min": Param("CosineAnnealingLR.eta_min")}),
    "scheduler/onecycle_lr": Row("OneCycleLR", {**_SCHEDULER, **{
        name: Param(f"OneCycleLR.{name}") for name in (
            "max_lr", "total_steps", "epochs", "steps_per_epoch", "pct_start", "anneal_strategy", "cycle_momentum",
            "base_momentum", "max_momentum", "div_factor", "final_div_factor", "three_phase")}}),
    "scheduler/linear_warmup_cosine_annealing_lr": Row("LinearWarmupCosine", {
        **_SCHEDULER, "warmup_steps": Param("LinearWarmupCosine.warmup_steps"),
        "total_steps": Param("LinearWarmupCosine.num_steps"),
        "initial_lr": Dropped("the warm-up begins at max_lr / (warmup_steps + 1)"),
        "final_lr": KNOWN, "max_lr": KNOWN}),
    "gradient_clipper/fsdp1": Row("GradientClipper", {
        "wrapped_model": KNOWN, "model_parts": KNOWN, "device_mesh": KNOWN,
        "max_norm": Param("GradientClipper.max_norm"),
        "norm_type": Param("GradientClipper.norm_type", lambda value: _NORM_TYPES[value])}),
    "gradient_clipper/fsdp1_logging_only": Row("LoggingOnlyClipper", {
        "wrapped_model": KNOWN, "model_parts": KNOWN, "device_mesh": KNOWN,
        "norm_type": Param("LoggingOnlyClipper.norm_type", lambda value: _NORM_TYPES[value])}),
    "dataset/packed_mem_map_dataset_continuous": Row("PackedDataset", {
        **_KEYS, "raw_data_path": KNOWN, "sequence_length": Param("SEQ_LEN"), "reuse_last_target": KNOWN}),
    "dataset/dummy_dataset": Row("DummyDataset", {"num_samples": KNOWN, "sample_definition": KNOWN}),
    "sampler/distributed_sampler": Row("ShuffledSampler", {
        "rank": KNOWN, "num_replicas": KNOWN, "dataset": KNOWN, "drop_last": KNOWN, "epoch": KNOWN,
        "device_mesh": KNOWN, "data_parallel_key": KNOWN,
        "skip_num_global_samples": Dropped("a checkpoint holds the position in the data"),
        "shuffle": Param("ShuffledSampler.shuffle"), "seed": Param("ShuffledSampler.seed")}),
    "batch_sampler/default": Row("BatchSampler", {"sampler": KNOWN, "drop_last": KNOWN,
                                                  "batch_size": Param("MICRO_BATCH_SIZE")}),
    "collate_fn/gpt_2_llm_collator": Row("LMCollator", _KEYS),
    "collate_fn/coca_collator": Row("CoCaCollator", dict.fromkeys(
        ("sample_keys", "target_keys", "text_sample_key", "text_target_key"), KNOWN)),
    "data_loader/default": Row("DataLoader", {
        "dataloader_tag": KNOWN, "dataset": KNOWN, "batch_sampler": KNOWN, "collate_fn": KNOWN,
        "num_workers": Param("DataLoader.num_workers"), "pin_memory": Dropped(), "sampler": KNOWN}),
    "progress_subscriber/rich": Row("RichProgress", _PROGRESS),
    "progress_subscriber/dummy": Row("DummyProgress", _PROGRESS),
    "results_subscriber/rich": Row("RichResults", _PROGRESS),
    "results_subscriber/to_disc": Row("JSONL", {"output_file_path": Dropped("metrics.jsonl of the run folder")}),
    "results_subscriber/wandb": Row("WandB", {
        "global_rank": KNOWN, "project": Param("WandB.project"), "entity": Param("WandB.entity"),
        "mode": Param("WandB.mode", lambda value: str(value).lower()), "experiment_id": KNOWN,
        "config_file_path": KNOWN,
        "directory": Dropped("W&B writes into the run folder")}),
    "checkpoint_saving_strategy/save_every_k_steps_checkpointing_strategy": Row("SaveEveryKSteps", {
        "k": Param("SaveEveryKSteps.k")}),
    "checkpoint_saving_strategy/save_k_most_recent_checkpoints_strategy": Row("SaveKMostRecent", {
        "k": Param("SaveKMostRecent.k")}),
}  # fmt: skip
ALIASES = {
    "model/fsdp_wrapped": "model/fsdp1_wrapped",
    "model/checkpointed": "model/fsdp1_checkpointed",
    "gradient_clipper/fsdp": "gradient_clipper/fsdp1",
    "gradient_clipper/fsdp2": "gradient_clipper/fsdp1",
    "gradient_clipper/fsdp_logging_only": "gradient_clipper/fsdp1_logging_only",
    "gradient_clipper/fsdp2_logging_only": "gradient_clipper/fsdp1_logging_only",
    "sampler/resumable_distributed_sampler": "sampler/distributed_sampler",
    "sampler/resumable_distributed_multi_dim_sampler": "sampler/distributed_sampler",
}
"""Other names of the same component, from one version to the next."""
NO_COUNTERPART = {
    "mfu_calculator/gpt2": "MFU is measured without being configured",
    "app_state/raw": "",
    "app_state/dcp": "",
    "checkpoint_saving/default": "",
    "checkpoint_saving_execution/fsdp1": "",
    "checkpoint_saving_execution/dcp": "",
    "checkpoint_loading/fsdp1": "",
    "checkpoint_loading/dcp": "",
    "checkpoint_loading/torch": "",
    "device_mesh/default": "",
    "tokenizer/pretrained_hf_tokenizer": "the tokenizer is read from beside the packed data",
    "tokenizer/pretrained_sp_tokenizer": "the tokenizer is read from beside the packed data",
    "steppable_profiler/no_profiler": "",
}
"""Components that need no binding, and why, where there is something to say."""


def row_of(kind: str) -> Row | None:
    """The row of a component by its keys, joined by a slash."""
    return ROWS.get(ALIASES.get(kind, kind))
