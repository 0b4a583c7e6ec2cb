# SPDX-License-Identifier: Apache-2.0
"""How far a build is, and what an interrupt does to one: a real TensorRT-RTX build is interrupted in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from port_deploy.cli.progress import Lines
from port_deploy.export.engine_progress import Monitor, run_cancellable


class Seen:
    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []

    def step(self, what: str, fraction: float) -> None:
        self.steps.append((what, round(fraction, 3)))

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_nested_phases_make_one_fraction_that_never_falls() -> None:
    seen = Seen()
    monitor = Monitor(seen)
    monitor.start("build", None, 2)
    monitor.start("tune", "build", 4)
    assert monitor.step("tune", 0)
    monitor.step("tune", 1)
    monitor.finish("tune")
    monitor.step("build", 0)
    monitor.start("write", "build", 0)  # a phase may have no steps
    monitor.step("write", 0)
    monitor.finish("write")
    monitor.step("build", 1)
    monitor.finish("build")
    assert seen.steps == [
        ("build", 0),
        ("tune", 0),
        ("tune", 0.125),
        ("tune", 0.25),
        ("build", 0.5),
        ("write", 0.5),
        ("write", 1.0),
        ("build", 1.0),
    ]
    monitor.cancelled = True
    assert monitor.step("build", 0) is False


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("building m.engine", every_seconds=0.05)
    lines.step("first", 0.1)
    time.sleep(0.06)
    lines.step("second", 0.2)
    lines.step("third", 0.3)
    lines.note("a note")
    captured = capsys.readouterr()
    assert captured.err == "building m.engine: 20%, second\na note\n"
    assert captured.out == ""


def test_work_runs_elsewhere_and_its_error_comes_here() -> None:
    here = threading.get_ident()
    assert run_cancellable(threading.get_ident, Monitor()) != here

    def fail() -> None:
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"):
        run_cancellable(fail, Monitor())


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
from port_deploy.export import engine_progress
from port_deploy.cli.export import main
step = engine_progress.Monitor.step
def slow(self, name, index):
    print("step", flush=True)
    time.sleep(0.02)  # the small graph has some 330 steps: long enough to be caught in the middle
    return step(self, name, index)
engine_progress.Monitor.step = slow
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupted_build_exits_130_and_leaves_nothing(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("PORT_CACHE", str(tmp_path / "cache"))
    arguments = [
        str(small_onnx / "joints" / "m.onnx"),
        "-o",
        str(tmp_path / "out"),
        "--trt",
        "--tensorrt",
        "tensorrt-rtx",
    ]
    command = [sys.executable, "-c", INTERRUPTED, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(20)] == ["step\n"] * 20
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == "interrupted: nothing half-written was left\n"
    assert out.count("step") < 100
    assert not (tmp_path / "out").exists()
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
