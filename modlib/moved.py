"""Where modules are that had another place before version 0.2: job scripts and gin files on users' disks name them.

Importing a module, or running it with `python -m`, by its old name works, with a warning. To be removed with the next
release.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

MOVED_INTO = {
    "cli.configs": "component_page diff list show",
    "cli.models": "export generate trained_run",
    "cli.processes": "slurm_job slurm_task worker",
    "cli.repeat": "measuring recipes reproduce verify verify_run",
    "cli.start": "dry_run launch planning",
    "cli.watch": "cancel follow logs ls queue resume runs status",
    "data.batches": "batch batch_sampler coca_collate collate loader loader_workers loss_masking masked_lm sampler",
    "data.corpora": "corpus corpus_file stdlib_corpus synthetic",
    "data.datasets": "captioned_shapes characters combined_dataset dataset document_ids document_windows dummy_dataset "
    "jsonl_dataset jsonl_index mixture_dataset modular_arithmetic packed_dataset packed_documents packed_shards "
    "window_table windows",
    "data.packed": "outputs shards waiting_mask",
    "data.packing": "block_encoder pack pack_record",
    "data.text": "chat chat_template fast_bpe fields line_index sources tokenizer",
    "data.tokenizers": "sentencepiece_tokenizer",
}
"""Folder -> the files that moved into it from the folder above."""

RENAMED = {
    "cli.data_batch": "cli.data.batch",
    "cli.data_chunk": "cli.data.chunk",
    "cli.data_config": "cli.data.configured",
    "cli.data_convert": "cli.data.convert",
    "cli.data_corpus": "cli.data.corpus",
    "cli.data_decode": "cli.data.decode",
    "cli.data_filter": "cli.data.filter",
    "cli.data_index": "cli.data.index",
    "cli.data_inspect": "cli.data.inspect",
    "cli.data_made": "cli.data.made",
    "cli.data_merge": "cli.data.merge",
    "cli.data_mix": "cli.data.mix",
    "cli.data_pack": "cli.data.pack",
    "cli.data_selection": "cli.data.selection",
    "cli.data_shuffle": "cli.data.shuffle",
    "cli.data_stats": "cli.data.stats",
    "cli.data_verify": "cli.data.verify",
    "cli.local_run": "cli.start.local",
    "cli.slurm_run": "cli.start.slurm",
    "cli.sweep": "cli.sweeps.results",
    "cli.sweep_dimensions": "cli.sweeps.dimensions",
    "cli.sweep_plot": "cli.sweeps.drawing",
    "cli.sweep_run": "cli.start.sweep",
    "data.foreign": "data.foreign.foreign_tokens",
    "data.pack_engine": "data.packing.engine",
    "data.pack_journal": "data.packing.journal",
    "data.pack_plan": "data.packing.settings",
    "data.pack_shards": "data.packing.sharded",
    "data.pack_workers": "data.packing.workers",
    "data.packed_chunks": "data.rewriting.chunks",
    "data.packed_file": "data.packed.file",
    "data.packed_filter": "data.rewriting.filter",
    "data.packed_header": "data.packed.header",
    "data.packed_merge": "data.rewriting.merge",
    "data.packed_mix": "data.rewriting.mix",
    "data.packed_shuffle": "data.rewriting.shuffle",
    "data.packed_stats": "data.inspecting.stats",
    "data.packed_text": "data.inspecting.text",
    "data.packed_verify": "data.inspecting.verify",
    "data.packed_writer": "data.packed.writer",
    "data.tokenizer_files": "data.tokenizers.from_files",
    "distributed.shards": "distributed.local_part",
    "models.convert": "models.weight_names",
    "nn.lora": "nn.lora_layers",
    "tracking.plan": "tracking.run_plan",
    "training.loading": "training.data_loading",
    "training.progress": "training.run_progress",
}
"""Old -> new module."""

MOVED = {
    f"modlib.{folder.partition('.')[0]}.{name}": f"modlib.{folder}.{name}"
    for folder, names in MOVED_INTO.items()
    for name in names.split()
} | {f"modlib.{old}": f"modlib.{new}" for old, new in RENAMED.items()}


class OldNames(importlib.abc.MetaPathFinder):
    """Finds the modules of the table; asked only for modules that nothing else finds."""

    def find_spec(
        self, fullname: str, _: Sequence[str] | None = None, __: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        return importlib.util.spec_from_loader(fullname, _SameModule(MOVED[fullname]))


class _SameModule(importlib.abc.InspectLoader):
    """Gives the module of the new name itself, not a second copy of it: classes and components exist once."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        logging.getLogger("modlib").warning("%s is now %s; use the new name", spec.name, self.new)
        module = importlib.import_module(self.new)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # the import system has just put the old name's there

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs."""
        logging.getLogger("modlib").warning("%s is now %s; use the new name", fullname, self.new)
        spec = importlib.util.find_spec(self.new)
        assert spec is not None
        assert isinstance(spec.loader, importlib.abc.InspectLoader)
        return spec.loader.get_code(self.new)

    def get_source(self, _: str) -> str | None:
        return None


def understand_old_names() -> None:
    """Let imports by old names work, from now on."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
