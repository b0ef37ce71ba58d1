"""Whether a model can be exported, asked before it is trained as well as before it is written."""

from __future__ import annotations

from torch import nn

from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.lora import refuse_ties
from modlib.models.plain_types import plain_type, unwrapped
from modlib.models.weight_names import architecture_of
from modlib.runtime.errors import ConfigError

_REMEDY = "modlib export --plain writes its weights alone"


def is_for_transformers(model: nn.Module) -> bool:
    """Whether a model is of a class that is written for transformers; any other one is a user's own."""
    return isinstance(unwrapped(model), GPT2 | HuggingFacePretrainedModel)


def require_exportable(model: nn.Module) -> None:
    """Refuse a model that cannot be exported; it may be on meta, so that a run can be told before it trains.

    Raises:
        ConfigError: Adapters that cannot be merged; a GPT2 that transformers has no architecture for; a subclass of
            GPT2 or HuggingFacePretrainedModel.
    """
    model = unwrapped(model)
    refuse_ties(model)
    if isinstance(model, GPT2):
        try:
            architecture_of(model)
        except ConfigError as error:
            raise ConfigError([*error.problems[:-1], f"{error.problems[-1]}; {_REMEDY}"]) from error
    elif isinstance(model, HuggingFacePretrainedModel) and plain_type(model) is not HuggingFacePretrainedModel:
        raise ConfigError(
            f"model ({plain_type(model).__name__}) must be exactly HuggingFacePretrainedModel to be written for "
            f"transformers; {_REMEDY}"
        )


def export_note(model: nn.Module) -> str | None:
    """A line for a run's plan where `modlib export` will refuse its model; None where it will not."""
    try:
        require_exportable(model)
    except ConfigError as error:
        return f"modlib export will refuse this model: {'; '.join(error.problems)}"
    return None
