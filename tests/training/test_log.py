"""What a run leaves behind holds no secret: neither of its environment nor of a default in the user's code."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pytest

from tests.launching_command import launch

FROM_ENVIRONMENT = f"canary-{uuid.uuid4().hex}"
OTHER_FROM_ENVIRONMENT = f"canary-{uuid.uuid4().hex}"
TOKEN = f"canary-{uuid.uuid4().hex}"
LOOKS_LIKE_ONE = f"hf_{uuid.uuid4().hex}"
CODE = f"""
import base64, json, os, sys, warnings
from modlib.components import component
from modlib.nn.losses import CLMCrossEntropyLoss

@component("results_subscriber", "writes_down", runtime_args=("run_path",))
class WritesDown:
    def __init__(self, run_path, *, service_token: str = {TOKEN!r}, hint: str = {LOOKS_LIKE_ONE!r}, note: str = ""):
        assert service_token == {TOKEN!r}  # the default in the code is the one that counts
        self.path = run_path / "written.txt"

    def receive(self, message):
        with open(self.path, "a") as file:
            file.write(str(getattr(message, "config_text", "")) + json.dumps(str(message)) + chr(10))

    def close(self):
        pass

@component("loss", "fails")
class Fails(CLMCrossEntropyLoss):
    def __call__(self, outputs, targets):
        secret = os.environ["GITHUB_PAT"]
        print("printed", secret, file=sys.stderr)
        warnings.warn("warned " + secret)
        encoded = base64.b64encode(("user:" + secret).encode()).decode()
        error = ConnectionError(f"403 for https://user:{{os.environ['DB_PASSWORD']}}@example.org/x?token={{secret}}")
        error.add_note("Authorization: Basic " + encoded)
        raise error
"""


def test_no_trace_of_a_run_that_fails_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_code.py").write_text(CODE)
    (tmp_path / "own.gin").write_text(
        "import own_code\ninclude 'debug/tiny.gin'\ntrain.subscribers += [@WritesDown]\ntrain.loss = @Fails\n"
        "WritesDown.note = 'words'\n"
    )
    monkeypatch.setenv("GITHUB_PAT", FROM_ENVIRONMENT)
    monkeypatch.setenv("DB_PASSWORD", OTHER_FROM_ENVIRONMENT)
    flags = ("--runs_dir", str(tmp_path / "runs"), "--name", "run")
    done = launch(str(tmp_path / "own.gin"), ["NUM_STEPS=1"], *flags)
    assert done.returncode == 1, done.stderr
    run = tmp_path / "runs" / "run"
    terminal = done.stdout + done.stderr
    assert "printed ***" in terminal
    assert "warned ***" in terminal
    assert "ConnectionError: 403 for https://user:***@example.org/x?token=***" in terminal
    assert "end reason='failed: 403 for https://user:***@example.org/x?token=***'" in terminal
    text = (run / "written.txt").read_text()
    assert "    # service_token = '***' (default; a secret, which is not written down)\n" in text
    assert "    # hint = '***' (default; a secret, which is not written down)\n" in text
    assert "    note = 'words'\n" in text
    assert "'WritesDown.service_token': '***'" in text
    assert "failed: 403" in text

    texts = [terminal.encode()]
    texts += [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert len(texts) > 6
    for secret in (FROM_ENVIRONMENT, OTHER_FROM_ENVIRONMENT, TOKEN, LOOKS_LIKE_ONE):
        for way in (secret.encode(), base64.b64encode(b"user:" + secret.encode())[8:40]):
            assert not [text for text in texts if way in text]
