"""The only package that parses gin: a strict front end, the resolved configuration, its origins and its hash."""

from modlib.config.config import Config, load
from modlib.config.diff import Difference, diff, render_diff

__all__ = ["Config", "Difference", "diff", "load", "render_diff"]
