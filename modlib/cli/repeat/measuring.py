"""Claims that need no training: counted on a model without memory, or computed from a published speed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modlib.cli.start.planning import place_of
from modlib.config import Config
from modlib.models.accounting import flops_per_token
from modlib.runtime.errors import ConfigError
from modlib.tracking.claims import Claim
from modlib.tracking.run_plan import Plan
from modlib.tracking.throughput import Throughput
from modlib.training.building import build, build_experiment
from modlib.training.plan import make_plan

MFU_GIVEN = ("samples_per_s", "devices", "peak_tflops")


def recipe_plan(config: Config) -> Plan:
    """The plan of a recipe for the machines that it asks for; its data need not be there."""
    place = place_of(config, None)
    experiment = build_experiment(config)
    with _one_thread():
        return make_plan(experiment, config, place.world_size)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The plan's optimizer step is over hundreds of tiny tensors, where threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computed(config: Config, claims: Iterable[Claim]) -> dict[str, float]:
    """The values of computed claims about one recipe, by the claims' names.

    Raises:
        ConfigError: The recipe is wrong, or a claim asks for what there is not.
    """
    plan = recipe_plan(config)
    everything = plan.to_json()
    found: dict[str, float] = {}
    for claim in claims:
        values = {"parameters": plan.parameters, "plan": everything}.get(claim.kind)
        if values is None:
            found[claim.name] = published_mfu(config, claim)
            continue
        value = values.get(claim.metric)
        if not isinstance(value, int | float):
            numbers = [name for name, each in values.items() if isinstance(each, int | float)]
            raise ConfigError(f"metric ({claim.metric}) of claim {claim.name!r} must be one of {', '.join(numbers)}")
        found[claim.name] = value
    return found


def published_mfu(config: Config, claim: Claim) -> float:
    """The MFU that a published speed means for the model of a recipe.

    6 N + 12 L A T operations a token, where N are the matrices of the blocks (12 L d^2 of a plain transformer), without
    embeddings, output matrix, norms and biases.

    Args:
        config: Active; its model is a GPT2.
        claim: Gives samples_per_s over all devices, devices, and peak_tflops of one.
    """
    given = dict(claim.given or {})
    if set(given) != set(MFU_GIVEN):
        raise ConfigError(
            f"given ({', '.join(given) or 'nothing'}) of claim {claim.name!r} must be {', '.join(MFU_GIVEN)}"
        )
    experiment = build_experiment(config)
    with torch.device("meta"):
        model = build(config, experiment.model)
    flops = flops_per_token(
        multiplied_parameters=_matrices(model.blocks),
        num_layers=model.num_layers,
        attention_dim=model.num_heads * model.head_dim,
        seq_len=model.seq_len,
    )
    speed = Throughput(world_size=int(given["devices"]), flops_per_token=flops, peak_flops=given["peak_tflops"] * 1e12)
    return speed.mfu(given["samples_per_s"] * model.seq_len)


def _matrices(blocks: nn.Module) -> int:
    return sum(parameter.numel() for parameter in blocks.parameters() if parameter.dim() > 1)
