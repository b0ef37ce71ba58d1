"""`modlib generate`: text from a run's checkpoint, on stdout and alone there."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from modlib.cli.models.trained_run import load_run, tokenizer_of
from modlib.cli.options import RUNS, RunArgument, RunsDir, Step
from modlib.cli.report import reported
from modlib.cli.watch.runs import find_run
from modlib.runtime.errors import ConfigError


def command(
    run: RunArgument,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue; empty starts a document.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Most tokens to add.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the most likely token each time; 1 the model's own odds.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top_k", help="Sample among this many most likely tokens; 0: among all.")
    ] = 50,
    top_p: Annotated[
        float, typer.Option("--top_p", help="Sample among the most likely tokens that have this probability together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the first sample; the next one's is one higher.")] = 0,
    num_samples: Annotated[int, typer.Option("--num_samples", help="Texts to write, a blank line between two.")] = 1,
    stop: Annotated[
        str | None,
        typer.Option("--stop", help="Token that ends a text, such as '<|im_end|>'; the end of a document always does."),
    ] = None,
    step: Step = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Let a run's model continue a prompt. The text goes to stdout, everything else to stderr."""
    with reported():
        _check(max_new_tokens, temperature, top_k, top_p, seed, num_samples)
        with contextlib.redirect_stdout(sys.stderr):  # a user's module may print while it is imported
            trained = load_run(find_run(run, runs_dir), step)
            tokenizer, end_of_document = tokenizer_of(trained)
            stop_token = None if stop is None else tokenizer.token_id(stop)
        from modlib.inference.generation import sample_text

        for number in range(num_samples):
            if num_samples > 1:
                print(f"sample {number + 1} of {num_samples}, seed {seed + number}", file=sys.stderr, flush=True)
            text = sample_text(
                trained.model,
                tokenizer,
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k or None,
                top_p=top_p,
                seed=seed + number,
                end_of_document=end_of_document,
                stop_token=stop_token,
            )
            print(("\n" if number else "") + text, flush=True)


def _check(max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int, num_samples: int) -> None:
    """Refuse wrong values before anything slow is imported."""
    problems = []
    if max_new_tokens < 0:
        problems.append(f"--max_new_tokens ({max_new_tokens}) must be at least 0")
    if not temperature >= 0:
        problems.append(f"--temperature ({temperature}) must be at least 0; 0 is greedy")
    if top_k < 0:
        problems.append(f"--top_k ({top_k}) must be at least 0; 0 samples among all tokens")
    if not 0 < top_p <= 1:
        problems.append(f"--top_p ({top_p}) must be in (0, 1]; 1 samples among all tokens")
    if num_samples < 1:
        problems.append(f"--num_samples ({num_samples}) must be at least 1")
    if not 0 <= seed < 2**63 - max(num_samples, 1):
        problems.append(f"--seed ({seed}) must be in [0, 2^63 - num_samples)")
    if problems:
        raise ConfigError(problems)
