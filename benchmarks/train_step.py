"""One training step of GPT-2's shape against the same model in other libraries' manner, in one interleaved run.

    python benchmarks/train_step.py [--rounds 20] [--dtype float32|bfloat16] [--compile] [--peers_default]

Peers: nanoGPT's model (its architecture and optimizer settings, written here in its manner, since it is not on the
package index), transformers' GPT2LMHeadModel, and litgpt's GPT where it is installed. Every variant gets the same
batch, AdamW with fused=True where the peer's own setting allows it, and the same number of threads. All share one
process and modlib's allocator setting; with --peers_default every variant has a process of its own, in which the peers
keep malloc's defaults and compile where their own training scripts do (nanoGPT and litgpt do, transformers does not),
and modlib does what its training does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from interleave import interleave, report
from torch import Tensor, nn

VOCAB, DIM, LAYERS, HEADS, SEQ_LEN, BATCH = 50304, 256, 4, 4, 256, 8
Step = Callable[[], object]


class NanoBlock(nn.Module):
    """A block in nanoGPT's manner: fused qkv, SDPA, exact GELU, no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(DIM, bias=False), nn.LayerNorm(DIM, bias=False)
        self.c_attn, self.c_proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.c_fc, self.mlp_proj = nn.Linear(DIM, 4 * DIM, bias=False), nn.Linear(4 * DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).split(DIM, dim=2)
        q, k, v = (t.view(batch, length, HEADS, dim // HEADS).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(batch, length, dim))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """The model of nanoGPT with tied embeddings; returns the mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, DIM), nn.Embedding(SEQ_LEN, DIM)
        self.h = nn.ModuleList(NanoBlock() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(DIM, bias=False)
        self.lm_head = nn.Linear(DIM, VOCAB, bias=False)
        self.wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = 0.02 / math.sqrt(2 * LAYERS) if "proj" in name else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)


def peer_step(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    options: argparse.Namespace,
) -> Step:
    """The usual loop body around a peer's model: autocast, backward, clip, step."""
    optimizer = adamw(model)
    compiled = torch.compile(loss_of) if options.compile else loss_of

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = compiled(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(batch: tuple[Tensor, Tensor], options: argparse.Namespace) -> Step:
    model = NanoGPT()
    return peer_step(model, model, batch, options)


def transformers_gpt2(batch: tuple[Tensor, Tensor], options: argparse.Namespace) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_positions=SEQ_LEN, n_embd=DIM, n_layer=LAYERS, n_head=HEADS,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)  # fmt: skip
    model = GPT2LMHeadModel(config)

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).logits.view(-1, VOCAB), targets.view(-1))

    return peer_step(model, loss_of, batch, options)


def litgpt(batch: tuple[Tensor, Tensor], options: argparse.Namespace) -> Step:
    from litgpt import GPT, Config

    config = Config(block_size=SEQ_LEN, vocab_size=VOCAB, padded_vocab_size=VOCAB, n_layer=LAYERS, n_head=HEADS,
                    n_embd=DIM, rotary_percentage=1.0, bias=False, intermediate_size=4 * DIM)  # fmt: skip
    model = GPT(config)

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).reshape(-1, VOCAB), targets.view(-1))

    return peer_step(model, loss_of, batch, options)


def modlib(batch: tuple[Tensor, Tensor], options: argparse.Namespace) -> Step:
    """modlib's own step: the same update that training runs."""
    from modlib.distributed.process_group import World
    from modlib.models.gpt2 import GPT2
    from modlib.models.initialization import ComposedInitializer
    from modlib.nn.losses import CLMCrossEntropyLoss
    from modlib.optim.groups import DecayGroups
    from modlib.training.parts import assemble
    from modlib.training.step import update

    model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=LAYERS, num_heads=HEADS, dim=DIM, bias=False)
    ComposedInitializer()(model, 0)
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=1e-4, betas=(0.9, 0.95), fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    parts = assemble(model, CLMCrossEntropyLoss(), optimizer, scheduler, None, world, options.dtype, options.compile)
    return lambda: update(parts, [batch], 1)


VARIANTS = {build.__name__: build for build in (nanogpt, transformers_gpt2, litgpt, modlib)}
COMPILED_BY_DEFAULT = ("nanogpt", "litgpt", "modlib")


def make_step(name: str, options: argparse.Namespace) -> Step:
    """One variant's step, on the same model size and batch as the others."""
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCAB, (BATCH, SEQ_LEN + 1))
    return VARIANTS[name]((tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), options)


def serve(name: str, options: argparse.Namespace) -> None:
    """Do one step per line on stdin, in this variant's default environment."""
    options.compile = name in COMPILED_BY_DEFAULT
    if name == "modlib":
        from modlib.runtime.allocator import keep_freed_memory

        keep_freed_memory()
    step = make_step(name, options)
    for _ in sys.stdin:
        step()
        print("done", flush=True)


@contextmanager
def in_own_process(name: str, options: argparse.Namespace) -> Iterator[Step]:
    """A variant that runs in a process of its own, step by step."""
    command = [sys.executable, __file__, "--serve", name, "--dtype", options.dtype]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def step() -> None:
            print("step", file=requests, flush=True)
            if answers.readline() != "done\n":
                raise ImportError(f"its process ended with exit code {process.wait()}")

        yield step
        requests.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peers_default", action="store_true", help="peers in their own default environment")
    parser.add_argument("--serve", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options)
        return
    how = "compiled" if options.compile else "eager"
    with ExitStack() as stack:
        variants: dict[str, Step] = {}
        for name in VARIANTS:
            try:
                if options.peers_default:
                    how = "peers in their default environment"
                    step = stack.enter_context(in_own_process(name, options))
                else:
                    from modlib.runtime.allocator import keep_freed_memory

                    keep_freed_memory()
                    step = make_step(name, options)
                step()
                variants[name] = step
            except ImportError as error:
                print(f"{name} left out: {error}")
        seconds = interleave(variants, options.rounds, warmup=2)
    medians = {name: statistics.median(seconds[name]) for name in variants if name != "modlib"}
    report(
        f"train step, {options.dtype}, {how}, {BATCH} x {SEQ_LEN} tokens",
        seconds,
        min(medians, key=medians.__getitem__),
        f"reference: the best peer; {torch.get_num_threads()} threads, torch {torch.__version__}",
    )


if __name__ == "__main__":
    main()
