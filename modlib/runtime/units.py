"""Quantities as people read them, and the loss in its other units."""

from __future__ import annotations

import math

_THOUSANDS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def format_count(count: float) -> str:
    """A number of tokens, parameters or steps: 950, 1.2k, 124M, 3.4B, 15T."""
    return _scaled(count, 1000.0, ("", "k", "M", "B", "T"))


def format_both(count: int) -> str:
    """A number exactly and in short, where these are not the same: "4,915,200 = 4.92M", "384"."""
    short = format_count(count)
    return f"{count:,}" if short == str(count) else f"{count:,} = {short}"


def counted(count: int, noun: str) -> str:
    """A number of things: "1 run", "2 runs", "1,200 files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_flops(flops: float, per_second: bool = False) -> str:
    """Floating-point operations: "3.4 PFLOP", or with `per_second` a rate: "989 TFLOP/s"."""
    number, prefix = _scaled_parts(flops, 1000.0, _THOUSANDS)
    return f"{number} {prefix}FLOP" + ("/s" if per_second else "")


def format_bytes(num_bytes: float) -> str:
    """Bytes in powers of 1024: "512 B", "1.2 GiB"."""
    number, unit = _scaled_parts(num_bytes, 1024.0, _BINARY)
    return f"{number} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units: "0.42s", "59s", "3m 12s", "5h 07m", "12d 03h"; "?" when it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if seconds < 9.95:
        return f"{seconds:.2f}s" if seconds < 0.995 else f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def format_percent(share: float) -> str:
    """A share of 1 as percent: 0.341 -> "34.1%"."""
    return f"{100 * share:.1f}%"


def perplexity(loss: float) -> float:
    """exp(loss) for a mean loss in nats per token; infinity where that overflows a float, NaN stays NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """The mean loss in nats per token as bits per UTF-8 byte of the text: comparable between tokenizers.

    Args:
        loss: Mean negative log-likelihood in nats per token.
        bytes_per_token: Bytes of source text per token of the same data; at least above 0.
    """
    if not bytes_per_token > 0:
        raise ValueError(
            f"bytes_per_token ({bytes_per_token}) must be greater than 0; use the packed file's bytes / tokens"
        )
    return loss / (math.log(2) * bytes_per_token)


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    number, unit = _scaled_parts(value, step, units)
    return number + unit


def _scaled_parts(value: float, step: float, units: tuple[str, ...]) -> tuple[str, str]:
    """The number with three significant digits, and its unit; rounding up to the next unit is taken into account."""
    if not math.isfinite(value):
        return str(value), units[0]
    index, size = 0, float(abs(value))
    while index < len(units) - 1 and round(size) >= step:
        size /= step
        index += 1
    sign = "-" if value < 0 else ""
    if size == round(size) and size < 1e15:
        return f"{sign}{size:.0f}", units[index]
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    digits = f"{size:.{decimals}f}"
    return sign + (digits.rstrip("0").rstrip(".") if "." in digits else digits), units[index]
