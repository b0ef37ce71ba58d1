"""A Modalities training config as a gin file of the same meaning; what cannot be said is listed with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modlib.migration.gin_text import Bindings, Name
from modlib.migration.rows import NO_COUNTERPART, Dropped, Param, row_of, swiglu_hidden
from modlib.migration.yaml_tree import Component, Node, Tree, Unresolved, component_of, read_tree
from modlib.runtime.errors import ConfigError

_NORMS = {"rms_norm": "RMSNorm", "pytorch_rms_norm": "RMSNorm", "layer_norm": "LayerNorm"}
_DEGREES = ("tensor_parallel_degree", "pipeline_parallel_degree", "context_parallel_degree")
_COCA_KNOWN = {"sample_key", "prediction_key", "block_size", "epsilon", "n_classes"}
_INTERVALS = {
    "training_log_interval_in_steps": "LOG_EVERY",
    "evaluation_interval_in_steps": "EVAL_EVERY",
    "checkpointing_interval_in_steps": "CHECKPOINT_EVERY",
}
_PROFILE = {
    "gradient_accumulation_steps": "GRAD_ACCUM_STEPS",
    "local_train_micro_batch_size": "MICRO_BATCH_SIZE",
    "sequence_length": "SEQ_LEN",
}
_DEFAULTS = {
    "SEED": 0, "SEQ_LEN": 1024, "MICRO_BATCH_SIZE": 1, "GRAD_ACCUM_STEPS": 1, "NUM_STEPS": None, "LR": None,
    "LOG_EVERY": 10, "EVAL_EVERY": 1000, "CHECKPOINT_EVERY": 1000,
}  # fmt: skip


def migrated(path: Path) -> Bindings:
    """What a gin file says that trains as a Modalities config does.

    Args:
        path: The YAML.

    Raises:
        ConfigError: It cannot be read, or describes no training.
    """
    tree = Tree(read_tree(path))
    walk = _Walk(tree)
    walk.run()
    return walk.out


class _Walk:
    """One pass over the parts of a run, in the order of the gin file."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.out = tree, Bindings()
        self.out.macros = dict.fromkeys(_DEFAULTS, (None, None))  # their order

    def run(self) -> None:
        if self.tree.at("settings") is None:
            raise ConfigError("the YAML must have `settings`, as a training config of Modalities has; give one")
        self._settings()
        self._model()
        self._optimizer()
        self._data()
        self._rest()
        if not self.out.parameters["train.evaluators"][0]:
            del self.out.macros["EVAL_EVERY"]
        for name in [name for name, (value, _) in self.out.macros.items() if value is None]:
            if _DEFAULTS[name] is None:
                raise ConfigError(f"the YAML must say what is {name} here; it has no such value")
            self.out.macros[name] = _DEFAULTS[name], None

    def _settings(self) -> None:
        for group, names in (("step_profile", _PROFILE), ("intervals", _INTERVALS)):
            for field, macro in names.items():
                self._macro(macro, self.tree.at(f"settings.{group}.{field}"))
        # older versions have one flat `training` group
        for field, macro in {**_INTERVALS, **_PROFILE, "local_train_micro_batch_size": "MICRO_BATCH_SIZE"}.items():
            self._macro(macro, self.tree.at(f"settings.training.{field}"))
        target = self.tree.at("settings.training_target.num_target_steps")
        if target is None or not isinstance(self._value(target), int):
            target = self._steps(target)
        self._macro("NUM_STEPS", target)
        for group in ("training_progress", "warmstart_checkpoint_paths"):
            node = self.tree.at(f"settings.{group}")
            if node is not None and any(self._value(leaf) not in (0, -1, None) for leaf in node.leaves()):
                self.out.note(node, "a run continues from its own folder: the same command; see docs/resume.md")

    def _steps(self, node: Node | None) -> Node | None:
        """The number of steps where a number conversion gives it, from tokens."""
        tokens = self.tree.at("settings.training_target.num_target_tokens")
        value = None if tokens is None else self._value(tokens)
        if tokens is None or not isinstance(value, int | float):
            if node is not None:
                self.out.note(node, "the number of steps follows from other files: set NUM_STEPS")
                return Node(1000, node.line, node.path)
            return None
        degree = self.tree.at("settings.step_profile.dp_degree")
        ranks = self._value(degree) if degree is not None else 1
        ranks = ranks if isinstance(ranks, int) else 1
        sizes = [self.out.macros[name][0] or 1 for name in ("SEQ_LEN", "MICRO_BATCH_SIZE", "GRAD_ACCUM_STEPS")]
        per_step = ranks * sizes[0] * sizes[1] * sizes[2]
        self.out.note(tokens, f"{value:,} tokens are counted as steps of {per_step:,} tokens, on {ranks} ranks")
        return Node(int(value // per_step), tokens.line, tokens.path)

    def _model(self) -> None:
        app = component_of(self.tree, self.tree.at("app_state"))
        node = app.fields.get("model") if app else None
        node = node or self.tree.at("wrapped_model") or self.tree.at("model")
        initialized = False
        found: Component | None = None
        while node is not None:
            found = component_of(self.tree, node)
            if found is None:
                break
            inner = found.fields.get("model") or found.fields.get("wrapped_model")
            if inner is not None and isinstance(self.tree.followed(inner).value, list):
                inner = self.tree.followed(inner).value[0]
            if found.kind == "model/model_initialized":
                initialized = True
                self._component(component_of(self.tree, found.fields.get("model_initializer")))
                self.out.bind("train.initialization", Name("@ComposedInitializer"), found.node)
            elif found.kind == "model/compiled":
                self.out.bind("train.compile", True, found.node)
            if inner is None:
                break
            self._component(found)
            node = inner
        if found is None or row_of(found.kind) is None or not row_of(found.kind).gin:  # type: ignore[union-attr]
            what = "none" if found is None else found.kind
            raise ConfigError(f"model ({what}) must be gpt2, huggingface_pretrained_model or coca to be migrated")
        model = self._component(found)
        wrapped = "CheckpointedModel" if "CheckpointedModel.checkpoint_path" in self.out.parameters else model
        self.out.parameters = {"train.model": (Name(f"@{wrapped}"), found.node), **self.out.parameters}
        if wrapped != model:
            self.out.bind("CheckpointedModel.model", Name(f"@{model}"), found.node)
            self.out.bind("CheckpointedModel.checkpoint_loading", Name("@FSDPCheckpointLoading"))
        if not initialized:
            brings = model == "HuggingFacePretrainedModel" or wrapped != model
            self.out.bind("train.initialization", None if brings else Name("@ComposedInitializer"))
        if model == "GPT2":
            self._gpt2(found)
        if model == "CoCa":
            self._coca(found)

    def _gpt2(self, found: Component) -> None:
        out = self.out
        out.bind("GPT2.seq_len", Name("%SEQ_LEN"))
        hidden = found.fields.get("ffn_hidden")
        if hidden is not None and out.parameters.get("GPT2.activation", ("",))[0] == "swiglu":
            out.bind("GPT2.ffn_dim", swiglu_hidden(self._value(hidden)), hidden)
        kinds = {}
        for name in ("attention_norm_config", "ffn_norm_config", "lm_head_norm_config"):
            node = found.fields.get(name)
            if node is not None:
                given = self._value(node)
                config = given.get("config", {})
                eps = config.get("eps", config.get("epsilon", 1e-5 if "pytorch" in given["norm_type"] else 1e-6))
                kinds[name] = (_NORMS.get(given["norm_type"], given["norm_type"]), eps, node, config)
        if kinds:
            norm, eps, node, config = next(iter(kinds.values()))
            out.bind("GPT2.norm", Name(f"@{norm}"), node)
            out.bind(f"{norm}.eps", eps, node)
            if norm == "RMSNorm" and config.get("bias", False):
                out.note(node, "RMSNorm has no bias")
            if len({(name, value) for name, value, *_ in kinds.values()}) > 1:
                out.note(node, "all norms of GPT2 are of one kind; the first is taken")
        attention = found.fields.get("attention_config")
        config = self._value(attention) if attention is not None else {}
        for transform in config.get("qkv_transforms") or ():
            if transform.get("type_hint") == "RotaryTransform":
                out.bind("GPT2.position", "rotary", attention)
                out.bind("GPT2.rope_theta", float(transform.get("config", {}).get("base_freq", 10000)), attention)
        if config.get("qk_norm_config"):
            out.bind("GPT2.qk_norm", True, attention)
            assert attention is not None
            out.note(attention, "queries and keys are normalised before the rotation, as models of today are")

    def _coca(self, found: Component) -> None:
        vision = dict(self._inside(found.fields.get("vision_encoder_config")))
        text = dict(self._inside(found.fields.get("text_decoder_config")))
        for fields, names in (
            (vision, {"img_size": "image_size", "patch_size": "patch_size", "n_img_channels": "num_channels",
                      "n_layer": "vision_layers", "n_embd": "vision_dim", "n_head": "vision_heads"}),
            (text, {"vocab_size": "vocab_size", "n_layer_text": "text_layers", "dropout": "dropout", "bias": "bias",
                    "n_layer_multimodal_text": "multimodal_layers", "n_embd": "dim", "n_head": "num_heads",
                    "ffn_hidden": "ffn_dim", "activation": "activation"}),
        ):  # fmt: skip
            for name, parameter in names.items():
                if name in fields:
                    self.out.bind(f"CoCa.{parameter}", self._value(fields[name]), fields[name])
            for name in fields.keys() - names.keys() - _COCA_KNOWN:
                self.out.note(fields[name], f"CoCa has no {name}")
        if "block_size" in text:
            self._macro("SEQ_LEN", text["block_size"])
        self.out.bind("CoCa.seq_len", Name("%SEQ_LEN"))
        self.out.bind("CoCa.norm", Name("@LayerNorm"))
        if "epsilon" in text:
            self.out.bind("LayerNorm.eps", self._value(text["epsilon"]), text["epsilon"])

    def _optimizer(self) -> None:
        app = component_of(self.tree, self.tree.at("app_state"))
        optimizer = component_of(self.tree, (app.fields.get("optimizer") if app else None) or self.tree.at("optimizer"))
        schedule = component_of(
            self.tree,
            (app.fields.get("lr_scheduler") if app else None)
            or self.tree.at("lr_scheduler")
            or self.tree.at("scheduler"),
        )
        name = self._component(optimizer)
        if optimizer is None or not name:
            raise ConfigError("optimizer (none) must be adam or adam_w to be migrated")
        self.out.bind("train.optimizer", Name(f"@{name}"), optimizer.node)
        self.out.bind(f"{name}.lr", Name("%LR"))
        self._decay_groups(optimizer)
        scheduler = self._component(schedule) or "DummyLR"
        self.out.bind("train.scheduler", Name(f"@{scheduler}"), schedule.node if schedule else None)
        if schedule is not None and scheduler == "OneCycleLR" and "cycle_momentum" not in schedule.fields:
            self.out.bind("OneCycleLR.cycle_momentum", False, schedule.node)  # its default there; torch's is True
        if schedule is not None and scheduler == "LinearWarmupCosine":
            final, peak = (self._value(schedule.fields[name]) for name in ("final_lr", "max_lr"))
            self.out.bind("LinearWarmupCosine.min_lr_ratio", final / peak, schedule.fields["final_lr"])
            if not isinstance(self.out.parameters["LinearWarmupCosine.num_steps"][0], int):
                self.out.bind("LinearWarmupCosine.num_steps", Name("%NUM_STEPS"), schedule.node)
        loss = component_of(self.tree, self.tree.at("loss_fn"))
        self.out.bind(
            "train.loss", Name(f"@{self._component(loss) or 'CLMCrossEntropyLoss'}"), loss.node if loss else None
        )
        clipper = component_of(self.tree, self.tree.at("gradient_clipper"))
        clips = self._component(clipper)
        self.out.bind("train.gradient_clipper", Name(f"@{clips}") if clips else None, clipper.node if clipper else None)

    def _decay_groups(self, optimizer: Component) -> None:
        node = optimizer.fields.get("weight_decay_groups_excluded")
        excluded = set(self._value(node) or ()) if node is not None else set()
        self.out.bind("train.parameter_groups", Name("@DecayGroups"), node)
        self.out.bind("DecayGroups.decay_embeddings", "embedding" not in excluded, node)
        if "layernorm" not in excluded and "norm" not in excluded:
            self.out.note(node or optimizer.node, "norms, biases and other vectors are never decayed")

    def _data(self) -> None:
        out = self.out
        self._dataset("train", component_of(self.tree, self.tree.at("train_dataset")), "DATA")
        loader = component_of(self.tree, self.tree.at("train_dataloader"))
        self._component(loader)
        fields = loader.fields if loader else {}
        batches = component_of(self.tree, fields.get("batch_sampler"))
        sampler = component_of(self.tree, batches.fields.get("sampler") if batches else None)
        if batches is not None and out.macros["MICRO_BATCH_SIZE"][0] is None:
            self._component(batches)
        self._component(sampler)
        out.bind("train.sampler", Name("@ShuffledSampler"), sampler.node if sampler else None)
        if "ShuffledSampler.seed" not in out.parameters:
            out.bind("ShuffledSampler.seed", Name("%SEED"))
        collate = component_of(self.tree, fields.get("collate_fn") or self.tree.at("collate_fn"))
        name = self._component(collate) or "LMCollator"
        out.bind("train.collate", Name(f"@{name}"), collate.node if collate else None)
        if name == "CoCaCollator":
            out.bind("CoCaCollator.seq_len", Name("%SEQ_LEN"))
        out.bind("train.data_loader", Name("@DataLoader"), loader.node if loader else None)
        evaluators = []
        node = self.tree.at("eval_dataloaders")
        for number, one in enumerate(self.tree.followed(node).value if node is not None else ()):
            found = component_of(self.tree, one)
            if found is None:
                continue
            tag = (
                str(self._value(found.fields["dataloader_tag"]))
                if "dataloader_tag" in found.fields
                else f"eval{number}"
            )
            scope = "".join(char if char.isalnum() else "_" for char in tag)
            dataset = component_of(self.tree, found.fields.get("dataset"))
            out.bind(f"{scope}/Evaluator.name", tag, found.node)
            out.bind(f"{scope}/Evaluator.every", Name("%EVAL_EVERY"))
            name = self._dataset(scope, dataset, f"{scope.upper()}_DATA")
            out.bind(f"{scope}/Evaluator.dataset", Name(f"@{scope}/{name}"), found.node)
            evaluators.append(Name(f"@{scope}/Evaluator"))
        out.bind("train.evaluators", evaluators, node)

    def _dataset(self, scope: str, found: Component | None, macro: str) -> str:
        """Bind one dataset under a scope; returns its gin name."""
        out = self.out
        name = (self._component(found) if found else "") or "PackedDataset"
        if scope == "train":
            out.bind("train.dataset", Name(f"@train/{name}"), found.node if found else None)
        fields = found.fields if found else {}
        if name == "DummyDataset":
            out.bind(f"{scope}/DummyDataset.num_samples", self._value(fields["num_samples"]), fields["num_samples"])
            out.bind(f"{scope}/DummyDataset.seq_len", Name("%SEQ_LEN"))
            samples = {}
            for one in self._value(fields["sample_definition"]) if "sample_definition" in fields else ():
                whole = one["sample_type"] == "int"
                kind = {"shape": tuple(one["sample_shape"]), "dtype": "int64" if whole else "float32"}
                samples[one["sample_key"]] = kind | ({"high": 512} if whole else {})
            out.bind(f"{scope}/DummyDataset.samples", samples, fields.get("sample_definition"))
            return name
        path = fields.get("raw_data_path")
        given = str(self._value(path)) if path is not None else "train.pbin"
        if path is not None:
            packed = f"{given.removesuffix('.pbin')}.packed"
            out.note(
                path, f"convert it first: modlib data convert {given} {packed} --from modalities --tokenizer FOLDER"
            )
            out.bind(macro, packed, path)
        else:
            out.bind(macro, "stdlib:train")
        out.bind(f"{scope}/PackedDataset.path", Name(f"%{macro}"))
        out.bind(f"{scope}/PackedDataset.seq_len", Name("%SEQ_LEN"))
        reuse = fields.get("reuse_last_target")
        if reuse is not None and self._value(reuse) is False:
            out.bind(f"{scope}/PackedDataset.reuse_last_target", False, reuse)
        return name

    def _rest(self) -> None:
        out = self.out
        for macro, parameter in (
            ("SEED", "seed"), ("NUM_STEPS", "num_steps"), ("MICRO_BATCH_SIZE", "micro_batch_size"),
            ("GRAD_ACCUM_STEPS", "grad_accum_steps"),
        ):  # fmt: skip
            out.bind(f"train.{parameter}", Name(f"%{macro}"))
        saving = component_of(self.tree, self.tree.at("checkpoint_saving"))
        strategy = component_of(self.tree, saving.fields.get("checkpoint_saving_strategy") if saving else None)
        if strategy is not None:
            keep = self._value(strategy.fields["k"]) if "k" in strategy.fields else -1
            every = "every" in strategy.kind
            if every or keep == -1:
                out.bind("CheckpointSaving.strategies", [Name("@SaveEveryKSteps")], strategy.node)
                out.bind(
                    "SaveEveryKSteps.k", Name("%CHECKPOINT_EVERY") if not every else keep, strategy.fields.get("k")
                )
                if every:
                    out.macros["CHECKPOINT_EVERY"] = keep, strategy.fields.get("k")
                    out.bind("SaveEveryKSteps.k", Name("%CHECKPOINT_EVERY"))
            else:
                out.bind("SaveKMostRecent.k", max(keep, 1), strategy.fields.get("k"))
        subscribers = [Name("@RichProgress"), Name("@JSONL"), Name("@TensorBoard")]
        for name in ("progress_subscriber", "evaluation_subscriber"):
            found = component_of(self.tree, self.tree.at(name))
            gin = self._component(found)
            if gin == "DummyProgress":
                subscribers[0] = Name("@DummyProgress")
            elif gin in ("WandB", "RichResults"):
                subscribers.append(Name(f"@{gin}"))
            if gin == "WandB" and out.parameters.get("WandB.mode", ("",))[0] == "disabled":
                out.parameters.pop("WandB.mode")
                subscribers = [one for one in subscribers if one != "@WandB"]
                out.parameters = {key: value for key, value in out.parameters.items() if not key.startswith("WandB.")}
        out.bind("train.subscribers", subscribers, self.tree.at("evaluation_subscriber"))
        self._layout()
        for node in self.tree.root.value.values():
            found = component_of(self.tree, node)
            if found is not None and row_of(found.kind) is None:
                why = NO_COUNTERPART.get(found.kind, f"{found.kind} has no counterpart")
                if not found.kind.startswith("number_conversion/"):
                    out.note(node, why)

    def _layout(self) -> None:
        mesh = component_of(self.tree, self.tree.at("device_mesh"))
        for name in _DEGREES:
            node = mesh.fields.get(name) if mesh else None
            if node is not None and self._value(node) not in (1, None):
                self.out.note(node, "modlib shards along the data-parallel axis alone today")
        node = mesh.fields.get("data_parallel_replicate_degree") if mesh else None
        if node is not None and self._value(node) not in (1, None):
            self.out.note(node, "all data-parallel ranks share one shard group")

    def _component(self, found: Component | None) -> str:
        """Bind a component's fields by its row; returns its gin name, empty where it has none."""
        if found is None:
            return ""
        row = row_of(found.kind)
        if row is None:
            self.out.note(found.node, NO_COUNTERPART.get(found.kind, f"{found.kind} has no counterpart"))
            return ""
        self.out.note(found.node, row.note)
        for name, node in found.fields.items():
            rule = row.fields.get(name)
            if rule is None:
                self.out.note(node, f"{found.kind} has no field {name} that modlib knows")
            elif isinstance(rule, Dropped):
                self.out.note(node, rule.why)
            else:
                self._field(rule, node)
        return row.gin

    def _field(self, rule: Param, node: Node) -> None:
        value = self._value(node)
        if value is None or isinstance(value, Unresolved):
            return
        if isinstance(value, dict) and "component_key" in value:
            if rule.name.isupper() or rule.name.endswith(("total_steps", "num_steps", "T_max")):
                self.out.bind(rule.name, Name("%NUM_STEPS"), node)
            return
        try:
            converted = rule.convert(value)
        except (KeyError, TypeError):
            self.out.note(node, f"{value!r} has no counterpart; {rule.name} is left at its default")
            return
        self.out.note(node, rule.note)
        if rule.name.isupper():
            self._macro(rule.name, node)
        else:
            self.out.bind(rule.name, converted, node)

    def _macro(self, name: str, node: Node | None) -> None:
        """Set a macro that is not set yet; a second, other value is told."""
        if node is None:
            return
        value = self._value(node)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        value = int(value) if name != "LR" and float(value).is_integer() else value
        before = self.out.macros.get(name, (None, None))[0]
        if before is None:
            self.out.macros[name] = value, node
        elif before != value:
            self.out.note(node, f"{value} differs from {name} ({before}), which is taken")

    def _inside(self, node: Node | None) -> Iterator[tuple[str, Node]]:
        followed = self.tree.followed(node) if node is not None else None
        if followed is not None and isinstance(followed.value, dict):
            yield from followed.value.items()

    def _value(self, node: Node) -> Any:
        return self.tree.value(node)
