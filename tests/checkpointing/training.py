"""A small training run for the checkpoint tests: a model with tied and frozen parameters and a buffer."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

NUM_STEPS = 10


class Small(nn.Module):
    """Tied embedding and head, one frozen layer, a buffer; odd sizes so that shards are uneven."""

    def __init__(self, dim: int = 12, num_layers: int = 2, vocab_size: int = 37, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.frozen = nn.Linear(dim, dim, bias=False).requires_grad_(False)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.scale: Tensor
        self.register_buffer("scale", torch.full((3,), 0.5))
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) of tokens (B,)."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = hidden + torch.dropout(torch.tanh(block(hidden)), 0.1, self.training)
        return self.head(self.frozen(self.norm(hidden))) * self.scale[0]


class Run:
    """A model, its optimizer and its scheduler; `train` draws its data from torch's global generator."""

    def __init__(self, seed: int, optimizer: str = "AdamW", sharded: bool = False, **model: Any) -> None:
        torch.manual_seed(seed)
        self.model = Small(**model)
        if sharded:
            for block in self.model.blocks:
                fully_shard(block)
            fully_shard(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        settings: dict[str, dict[str, Any]] = {
            "AdamW": {"lr": 1e-2},
            "SGD": {"lr": 1e-2, "momentum": 0.9},
            "Muon": {"lr": 1e-2},
        }
        if optimizer == "Muon":
            trained = [parameter for parameter in trained if parameter.ndim == 2]
        wide = [parameter for parameter in trained if parameter.ndim == 2]
        narrow = [parameter for parameter in trained if parameter.ndim != 2]
        groups = [{"params": wide}, {"params": narrow, "weight_decay": 0.0}] if narrow else [{"params": wide}]
        self.optimizer: Optimizer = getattr(torch.optim, optimizer)(groups, **settings.get(optimizer, {}))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    @property
    def parts(self) -> dict[str, Any]:
        """What save and load take."""
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def train(self, num_steps: int) -> None:
        """Update so many times."""
        for _ in range(num_steps):
            self.model(torch.randint(0, 37, (8,))).logsumexp(-1).sum().backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def fingerprint(run: Run) -> str:
    """A hash of every number in the model, the optimizer and the scheduler, the same on any number of ranks."""
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            value = whole(value)
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(f"{name} {value!r}".encode())

    for name, tensor in run.model.state_dict().items():
        add(name, tensor)
    for index, group in enumerate(run.optimizer.param_groups):
        for name, value in sorted(group.items()):
            if name == "params":
                for position, parameter in enumerate(value):
                    for entry, state in sorted(run.optimizer.state.get(parameter, {}).items()):
                        add(f"{index}.{position}.{entry}", state)
            else:
                add(f"{index}.{name}", value)
    add("scheduler", run.scheduler.state_dict())
    return digest.hexdigest()
