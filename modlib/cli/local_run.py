"""A run on this machine: plan, announce, train here or in several processes, sum up."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import gin
from rich.console import Console

from modlib.checkpointing import preflight
from modlib.cli.worker import work
from modlib.config import Config
from modlib.distributed.process_group import World
from modlib.launching.local import Local, run_local
from modlib.launching.prepare import prepare
from modlib.runtime.hardware import disk_free_bytes
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.banner import start_banner
from modlib.tracking.plan import Plan
from modlib.tracking.summary import RunSummary, end_summary
from modlib.training.experiment import Experiment
from modlib.training.plan import build, data_is_ready, make_plan

WORKER = [sys.executable, "-m", "modlib.cli.worker"]
