"""modlib: gin-config experiments for training language models on HPC clusters."""

from modlib.moved import understand_old_names

__version__ = "0.1.0"

understand_old_names()
