"""The frozen weights of a fine-tuned model, read from the folder it came from, beside the trained ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from modlib.models.huggingface import PREFIX, HuggingFacePretrainedModel
from modlib.models.huggingface_weights import opened
from modlib.models.lora import ADAPTERS
from modlib.models.weights import named_state, weight_sources
from modlib.models.whole_weights import ALL, Weights
from modlib.runtime.errors import CheckpointError
from modlib.runtime.file_spans import FileSpan


class TrainedWeights(Weights, Protocol):
    """Weights of some of a model's tensors, and which these are."""

    def __contains__(self, name: str) -> bool: ...


class BaseWeights:
    """Of a model that is trained in part: what is trained from one place, the rest from its base folder.

    Args:
        trained: Found first.
        files: File of safetensors by the name of a tensor in it.
        names: The model's names -> names in the files.
        state: The model's tensors, for their dtypes.
    """

    def __init__(
        self, trained: TrainedWeights, files: Mapping[str, Any], names: Mapping[str, str], state: Mapping[str, Tensor]
    ) -> None:
        self._trained, self._files, self._names, self._state = trained, files, names, state

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """See Weights; in the dtype of the model, whatever the folder holds."""
        if name in self._trained:
            return self._trained.read(name, rows)
        file, stored = self._files[self._names[name]], self._names[name]
        whole = rows == ALL or not self._state[name].ndim
        tensor: Tensor = file.get_tensor(stored) if whole else file.get_slice(stored)[rows]
        return tensor.to(self._state[name].dtype)

    def spans(self, name: str) -> list[FileSpan] | None:
        """See Weights."""
        return self._trained.spans(name) if name in self._trained else None

    def finish(self) -> None:
        """See Weights."""
        self._trained.finish()


@contextmanager
def over_base(model: Any, trained: TrainedWeights) -> Iterator[Weights | None]:
    """The weights of a model with adapters over a folder of safetensors.

    Args:
        model: On meta, as it was built.
        trained: What its checkpoints hold.

    Yields:
        None where the rest comes from elsewhere, or the folder has other names or shapes than the network.

    Raises:
        CheckpointError: The folder's weights cannot be read.
    """
    from safetensors import SafetensorError

    sources = weight_sources(model)
    folder = model.base_folder if isinstance(model, HuggingFacePretrainedModel) else None
    own = len(sources) == 2 and all(name.rpartition(".")[2] in ADAPTERS for name in sources[1].names)
    if folder is None or not own:  # others than the folder's and the adapters'
        yield None
        return
    with ExitStack() as stack:
        try:
            files = stack.enter_context(opened(folder))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"weights in {folder} cannot be read: {error}") from error
        yield _over(model, trained, files)


def _over(model: nn.Module, trained: TrainedWeights, files: Mapping[str, Any]) -> BaseWeights | None:
    state = named_state(model)
    tied: dict[int, list[str]] = {}
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    if {f"{PREFIX}{name}" for name in files} - set(state):
        return None
    names: dict[str, str] = {}
    for group in tied.values():
        if group[0] in trained:
            continue
        stored = [name.removeprefix(PREFIX) for name in group if name.removeprefix(PREFIX) in files]
        shape = tuple(state[group[0]].shape)
        if len(stored) != 1 or tuple(files[stored[0]].get_slice(stored[0]).get_shape()) != shape:
            return None  # training's own way compares tied ones, and knows other names
        names |= dict.fromkeys(group, stored[0])
    return BaseWeights(trained, files, names, state)
