"""Strict gin: reading, checking, resolving and comparing configurations."""

from modlib.config.comparison import Difference, diff, render_diff
from modlib.config.config import Config, load

__all__ = ["Config", "Difference", "diff", "load", "render_diff"]
