"""`modlib plot`: what is drawn, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modlib.cli.plot import draw, read_curves
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder
from tests.cli.commands import modlib


def run_with(folder: Path, name: str, scale: float) -> RunFolder:
    run = RunFolder(folder / name)
    run.create()
    run.update(name=name, status="finished")
    lines = [{"step": step, "train/loss": scale / step, "val/a/loss": scale, "x/y": 1.0} for step in range(1, 9)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_curves_are_what_was_logged(tmp_path: Path) -> None:
    run = run_with(tmp_path, "one", 4.0)
    curves = read_curves(run, ["val/*/loss", "train/loss"])
    assert list(curves) == ["val/a/loss", "train/loss"]
    assert curves["train/loss"] == (list(range(1, 9)), [4.0 / step for step in range(1, 9)])


def test_a_picture_of_two_runs(tmp_path: Path) -> None:
    for name, scale in (("one", 4.0), ("two", 2.0)):
        run_with(tmp_path, name, scale)
    out = tmp_path / "new" / "curves.png"
    done = modlib("plot", "one", "two", "--runs_dir", tmp_path, "--out", out, "--title", "Two runs", "--log_x")
    assert done.stdout == f"{out}: 4 curves of 2 runs\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_every_curve_is_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path: saved.append(self))
    curves = {name: read_curves(run_with(tmp_path, name, 3.0), ["*/loss"]) for name in ("one", "two")}
    draw(tmp_path / "x.svg", curves, title="T", log_y=True)
    (axes,) = saved[0].axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == [f"{run}: {metric}" for run in ("one", "two") for metric in ("train/loss", "val/a/loss")]
    assert (axes.get_title(), axes.get_yscale(), axes.get_ylabel()) == ("T", "log", "loss [nats]")


def test_what_is_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path, "one", 4.0)
    wrong = modlib("plot", "one", "--runs_dir", tmp_path, "--out", "x.txt", code=2)
    assert "--out (x.txt) must end in .png, .pdf, .svg" in wrong.stderr
    with pytest.raises(ConfigError, match=r"--metric \(train/los\) must be a metric of one; did you mean train/loss\?"):
        read_curves(run, ["train/los"])
    with pytest.raises(ConfigError, match=r"must be a metric of one; it has train/loss, val/a/loss, x/y$"):
        read_curves(run, ["nothing_like_it"])
    run.metrics_path.write_text(
        json.dumps({"step": 1, "val/a/loss": 1.0} | {f"a/{number}": 1.0 for number in range(9)})
    )
    with pytest.raises(ConfigError, match=r"it has val/a/loss, a/0, a/1, a/2, a/3, among others$"):
        read_curves(run, ["nothing_like_it"])
    run.metrics_path.write_text("")
    with pytest.raises(ConfigError, match=r"RUN \(one\) must have one of train/loss, val/\*/loss; it has logged none"):
        read_curves(run, ["train/loss", "val/*/loss"])
