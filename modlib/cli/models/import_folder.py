"""`modlib import`: a folder of transformers as a model of modlib's own, to train and to export again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.report import reported


def command(
    folder: Annotated[
        Path, typer.Argument(metavar="HF_FOLDER", help="As save_pretrained writes it: config.json and safetensors.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.")],
) -> None:
    """Make a model of modlib's own, GPT2, of a HuggingFace folder of GPT-2, Llama or Mistral.

    OUT holds model.gin, to give after a run's file, a verified checkpoint in float32, and the folder's other files, the
    tokenizer's among them. A folder that GPT2 cannot express is refused with its fields; train that as it is, with
    HuggingFacePretrainedModel.
    """
    with reported():
        from modlib.cli.models.imported_folder import import_huggingface

        imported = import_huggingface(folder, out)
    parameters = imported.model.num_parameters()["total"]
    print(f"{out}: GPT2 of {parameters:,} parameters, its weights in {imported.num_bytes:,} bytes")
    print(f"train: python launch.py --gin_file quickstart.gin --gin_file {out}/model.gin")
