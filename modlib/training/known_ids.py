"""Token ids are looked at on the CPU, before a device sees them: a GPU would end without a word of what was wrong."""

from __future__ import annotations

from torch import Tensor

from modlib.data.batches.batch import Inputs
from modlib.runtime.errors import DataError
from modlib.training.parts import Parts


def require_known_ids(parts: Parts, inputs: Inputs, targets: Tensor, where: str) -> None:
    """Refuse a micro-batch with ids that the model does not have; microseconds, for any dataset.

    Packed files are compared with the model's vocabulary before, and name the place in the file: see
    `PackedFile.check_ids`. A batch that is on a device already, or a model without vocab_size, passes.

    Args:
        parts: The model and the loss, whose ignore_index may stand among the targets.
        inputs: A tensor of ids, or several with "input_ids".
        targets: Of the same micro-batch.
        where: Completes "inputs of ...", such as "step 3".

    Raises:
        DataError: An id is negative or not below vocab_size; with its place in the batch.
    """
    vocab_size = getattr(parts.model, "vocab_size", None)
    if vocab_size is None:
        return
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else inputs
    for what, tensor, ignored in (("inputs", ids, None), ("targets", targets, parts.loss.ignore_index)):
        if tensor is None or tensor.is_floating_point() or tensor.is_cuda or not tensor.numel():
            continue
        values = tensor.detach().numpy()  # torch would wait for its threads, longer than this takes on one
        lowest, highest = int(values.min()), int(values.max())
        if highest < vocab_size and (lowest >= 0 or lowest == ignored):
            continue
        wrong = (tensor >= vocab_size) | (tensor < 0)
        places = (wrong if ignored is None else wrong & (tensor != ignored)).nonzero()
        if len(places):
            place = places[0].tolist()
            raise DataError(
                f"token id ({int(tensor[tuple(place)])}) at {place} (sequence, position) of the {what} of {where} must "
                f"be at least 0 and below the model's vocab_size ({vocab_size}); look at the dataset and the collator"
            )
