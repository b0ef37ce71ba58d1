"""What a run says about itself holds no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching_command import launch

TOKEN = "not-like-any-key-that-is-known"
LOOKS_LIKE_ONE = "hf_" + "a1B2c3D4" * 4
FROM_ENVIRONMENT = "sentinel-of-a-variable"
SUBSCRIBER = f"""
import json
from modlib.components import component

@component("results_subscriber", "writes_down", runtime_args=("run_path",))
class WritesDown:
    def __init__(self, run_path, *, service_token: str = {TOKEN!r}, hint: str = {LOOKS_LIKE_ONE!r}, note: str = ""):
        self.path = run_path / "written.txt"

    def receive(self, message):
        if type(message).__name__ == "RunStarted":
            self.path.write_text(message.config_text + json.dumps(message.resolved, default=str))

    def close(self):
        pass
"""


def test_no_tracker_gets_a_secret_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret in a gin file is refused; a default of a user's component, or a variable's value, may be one."""
    (tmp_path / "writes_down.py").write_text(SUBSCRIBER)
    (tmp_path / "own.gin").write_text(
        "import writes_down\ninclude 'debug/tiny.gin'\ntrain.subscribers += [@WritesDown]\n"
        f"WritesDown.note = '{FROM_ENVIRONMENT} and words'\n"
    )
    monkeypatch.setenv("SOME_API_KEY", FROM_ENVIRONMENT)
    done = launch(str(tmp_path / "own.gin"), ["NUM_STEPS=1"], "--runs_dir", str(tmp_path), "--name", "run")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "written.txt").read_text()
    assert "    service_token = '***'\n" in text
    assert "    hint = '***'\n" in text
    assert "    note = '*** and words'\n" in text
    assert '"WritesDown.service_token": "***"' in text
    assert '"WritesDown.note": "*** and words"' in text
    assert '"train.num_steps": 1' in text
    trackers = [*(tmp_path / "run" / "tb").iterdir(), tmp_path / "run" / "written.txt"]
    assert len(trackers) == 2
    for path in trackers:
        assert b"WritesDown" in path.read_bytes()
        for secret in (TOKEN, LOOKS_LIKE_ONE, FROM_ENVIRONMENT):
            assert secret.encode() not in path.read_bytes(), path
