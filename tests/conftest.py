"""What holds for every test: clean gin state, random numbers, a cache of its own, no process left, reasons to skip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modlib.runtime.hardware import num_cores

SESSION_VARIABLE = "MODLIB_TEST_SESSION"  # inherited by every process the tests start: finds those left behind
IDS_VARIABLE = "MODLIB_TEST_IDS"  # a file for the ids of all tests, in the order in which they were found
COLLECTED = pytest.StashKey[list[str]]()  # the ids of all tests that this process found
ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run_slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--forbid_skips", action="store_true", help="fail when a test is skipped, but for want of a GPU")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each core that this process may use, up to 8: each more costs imports and a collection of its own."""
    return min(8, num_cores())


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores
    if hasattr(config, "workerinput"):
        return  # an xdist worker inherits the controller's environment
    os.environ[SESSION_VARIABLE] = uuid.uuid4().hex
    if kept := os.environ.get("MODLIB_TEST_CACHE"):  # a cache kept between sessions, for quicker work
        os.environ["MODLIB_CACHE"] = kept
    else:
        config._modlib_cache = os.environ["MODLIB_CACHE"] = tempfile.mkdtemp(prefix="modlib-cache-")  # type: ignore[attr-defined]
        # what a killed compiler left half written in the user's cache is not for tests to stumble over
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(os.environ["MODLIB_CACHE"], "inductor")


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "_modlib_cache"):
        shutil.rmtree(config._modlib_cache, ignore_errors=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Property tests are not timed, since a busy machine is no fault of theirs; fixtures serve all their examples."""
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        import hypothesis

        allowed = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
        hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=allowed)
        hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before -k and -m leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = [item.nodeid for item in items]
    if IDS_VARIABLE in os.environ:
        Path(os.environ[IDS_VARIABLE]).write_text(json.dumps(config.stash[COLLECTED]))
    markers = config.getoption("-m")
    run_slow = config.getoption("--run_slow") or "slow" in markers
    reasons: dict[str, str | None] = {"slow": None if run_slow else "slow; run with -m slow or --run_slow"}
    for item in items:
        for marker, reason_of in (("gpu", _no_gpu), ("slurm", _no_slurm)):
            if item.get_closest_marker(marker) and marker not in reasons:
                # jobs of tests that run at once would meet on the one cluster
                alone = marker != "slurm" or "slurm" in markers
                reasons[marker] = reason_of() if alone else "submits to a SLURM cluster; run with -m slurm -n 0"
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device; torch.cuda.is_available() is false here"


def _no_slurm() -> str | None:
    try:
        asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        asked = None
    if asked is None or asked.returncode != 0:
        return "needs a running SLURM cluster; scontrol does not answer here (start slurm/testcluster)"
    if "= modlibtest" not in asked.stdout:
        return "cancels all jobs and cuts nodes: only for the cluster of slurm/testcluster, which this one is not"
    return None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if "tests.workers" in sys.modules:
        sys.modules["tests.workers"].stop_pools()
    if "tests.forked" in sys.modules:
        sys.modules["tests.forked"].stop()
    if hasattr(session.config, "workerinput"):
        return  # the controller looks when all its workers are done
    left = left_behind(os.environ[SESSION_VARIABLE])
    deadline = time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = left_behind(os.environ[SESSION_VARIABLE])
    if left:
        lines = "".join(f"  {process_line}\n" for process_line in left)
        sys.stderr.write(f"\ntests left processes behind:\n{lines}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--forbid_skips"):
        return
    reports = terminalreporter.stats.get("skipped", [])
    skipped = [report for report in reports if "CUDA device" not in str(report.longrepr)]
    for report in skipped:
        terminalreporter.write_line(f"skipped, which --forbid_skips forbids: {report.nodeid}: {report.longrepr}")
    if skipped:
        session = terminalreporter._session
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def left_behind(session: str) -> list[str]:
    """The processes that carry this session's mark, without this one and what Python itself keeps until exit."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = " ".join(process.cmdline())
            kept_by_python = "resource_tracker" in command or "multiprocessing.forkserver" in command
            if process.environ().get(SESSION_VARIABLE) == session and not kept_by_python:
                found.append(f"{process.pid} {command[:200]}")
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(autouse=True)
def _clean_gin() -> Iterator[None]:
    """No binding of one test is seen by the next."""
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()
    yield
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in every run of a test, whichever ran before it: one that fails, fails again."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test data beside the repository; the test is skipped where there is none."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def embedded_corpus() -> None:
    """Make the corpus of Python's library, once for all workers: a dry run leaves out checks of data not yet made."""
    from modlib.data.corpora.corpus import prepare

    prepare("stdlib:train")


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file of 101 windows of 32 tokens, made with the embedded corpus's vocabulary."""
    import numpy as np

    from modlib.data.packed.writer import PackedFileWriter

    path = tmp_path_factory.mktemp("corpus") / "small.packed"
    with PackedFileWriter(path, vocab_size=4096, tokenizer_fingerprint="") as writer:
        tokens = np.random.default_rng(0).integers(0, 4096, 101 * 32 + 1)
        writer.write(tokens, num_bytes_of_text=4 * len(tokens))
    return path
