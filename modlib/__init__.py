"""modlib: gin-config experiments for training language models on HPC clusters."""

__version__ = "0.1.0"
