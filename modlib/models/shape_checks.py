"""Which sizes of a decoder fit together, with the nearest that do."""

from __future__ import annotations

import math
from typing import Any

from modlib.nn.feed_forward import ACTIVATIONS
from modlib.runtime.errors import ConfigError

POSITIONS: tuple[str, ...] = ("learned", "rotary", "none")


def nearest_divisors(value: int, total: int) -> str:
    """The divisors of `total` on both sides of `value`, as text: "4 or 8"."""
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    below = [d for d in divisors if d < value][-1:]
    above = [d for d in divisors if d > value][:1]
    return " or ".join(str(d) for d in below + above)


def _range_problems(sizes: dict[str, Any]) -> list[str]:
    problems = [
        f"{name} ({sizes[name]}) must be at least 1"
        for name in ("vocab_size", "seq_len", "num_layers", "num_heads", "dim", "num_kv_heads", "ffn_dim")
        if sizes[name] is not None and sizes[name] < 1
    ]
    if not 0.0 <= sizes["dropout"] < 1.0:
        problems.append(f"dropout ({sizes['dropout']}) must be in [0, 1); 0 turns it off")
    for name, allowed in (("activation", ACTIVATIONS), ("position", POSITIONS)):
        if sizes[name] not in allowed:
            problems.append(f"{name} ({sizes[name]!r}) must be one of {', '.join(map(repr, allowed))}")
    if not (math.isfinite(sizes["rope_theta"]) and sizes["rope_theta"] > 1.0):
        problems.append(f"rope_theta ({sizes['rope_theta']}) must be above 1; RoFormer uses 10000")
    if not 0.0 < sizes["rope_fraction"] <= 1.0:
        problems.append(
            f"rope_fraction ({sizes['rope_fraction']}) must be in (0, 1]; for no rotation set position = 'none'"
        )
    return problems


def _rotary_problem(head_dim: int, rope_fraction: float) -> str | None:
    rotary_dim = rope_fraction * head_dim
    if round(rotary_dim) >= 2 and abs(rotary_dim - 2 * round(rotary_dim / 2)) < 1e-3:  # a share such as 0.888889
        return None
    if head_dim < 2:
        return (
            f"head_dim ({head_dim} = dim / num_heads) must be at least 2 for position ('rotary'); use fewer num_heads"
        )
    below = max(2, 2 * math.floor(rotary_dim / 2))
    above = min(2 * (head_dim // 2), below + 2)
    nearest = " or ".join(f"{size / head_dim:.6g}" for size in sorted({below, above}))
    return (
        f"rope_fraction ({rope_fraction}) x head_dim ({head_dim} = dim / num_heads) = {rotary_dim:g} must be even for "
        f"position ('rotary'); nearest valid rope_fraction: {nearest}"
    )


def check_shape(**sizes: Any) -> None:
    """Check the sizes of a decoder against each other.

    Raises:
        ConfigError: With every problem found, each naming both values and the nearest valid one.
    """
    problems = _range_problems(sizes)
    if problems:
        raise ConfigError(problems)
    dim, num_heads, num_kv_heads = sizes["dim"], sizes["num_heads"], sizes["num_kv_heads"]
    if dim % num_heads:
        problems.append(
            f"num_heads ({num_heads}) must divide dim ({dim}); nearest valid: {nearest_divisors(num_heads, dim)}"
        )
    elif sizes["position"] == "rotary" and (problem := _rotary_problem(dim // num_heads, sizes["rope_fraction"])):
        problems.append(problem)
    if num_kv_heads is not None and num_heads % num_kv_heads:
        problems.append(
            f"num_kv_heads ({num_kv_heads}) must divide num_heads ({num_heads}); "
            f"nearest valid: {nearest_divisors(num_kv_heads, num_heads)}"
        )
    if problems:
        raise ConfigError(problems)
