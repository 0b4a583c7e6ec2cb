# SPDX-License-Identifier: Apache-2.0
"""port-info: says what there is, names the remedy for what is not, and survives broken libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from port_deploy import backends, info
from port_deploy.backends.base import Availability
from port_deploy.cli.info import headline, main
from port_deploy.weights import bundled_models


def test_json_names_every_backend_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [b["name"] for b in facts["backends"]] == list(backends.names())
    assert [m["name"] for m in facts["models"]] == list(bundled_models())
    for backend in facts["backends"]:
        assert backend["detail"], backend
    for model in facts["models"]:
        assert model["size_bytes"] <= 2.5e6
        assert model["licence"] != "unknown"
        assert model["parameters"] > 0
    assert facts["version"]
    assert facts["libraries"]["numpy"]


def test_text_says_what_mends_a_missing_backend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Availability:
        if name == "openvino":
            raise OSError("libopenvino.so: cannot open shared object file\nand more")
        return Availability(False, f"{name} is not installed", f'pip install "port-deploy[{name}]"')

    monkeypatch.setattr(backends, "availability", absent)
    assert main([]) == 0
    text = capsys.readouterr().out
    assert 'pip install "port-deploy[onnxruntime]"' in text
    line = next(row for row in text.splitlines() if row.split()[:1] == ["openvino"])
    assert "OSError: libopenvino.so: cannot open shared object file" in line
    assert "and more" not in text


def test_gpus_are_read_from_the_driver_and_a_failing_driver_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.1, 81559 MiB, 9.0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    expected = {"name": "NVIDIA H100 80GB HBM3", "driver": "570.1", "memory": "81559 MiB", "compute_capability": "9.0"}
    assert info.gpus() == [expected]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert info.gpus() == []
    monkeypatch.setenv("PATH", "")
    assert info.gpus() == []


def test_a_broken_bundled_model_does_not_stop_the_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "bundled_models", lambda: ("no-such-model",))
    assert main([]) == 0
    assert "no-such-model" in capsys.readouterr().out


def test_headline_averages_the_held_out_sources_and_joins_the_rest() -> None:
    sources = {
        "a": {"error_masked": 30.0, "detector_masked": 70.0},
        "b": {"error_masked": 40.0, "detector_masked": 80.0},
    }
    line = headline({"held_out": {"score": 1.0, "sources": sources}, "real": {"epe": 9.53991, "n": 423}, "list": [1]})
    assert line == (
        "hidden joints 35 % of the pose's size off, simulated detector 75 % (held-out), real epe 9.54, real n 423"
    )
    assert headline({}) == ""


def test_markdown_goes_between_the_markers_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| model |")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- models:start -->\nold\n<!-- models:end -->\nafter\n")
    assert main(["--markdown", str(page)]) == 0
    assert page.read_text() == f"before\n<!-- models:start -->\n{printed}<!-- models:end -->\nafter\n"
    page.write_text("no markers")
    assert main(["--markdown", str(page)]) == 2
    assert page.read_text() == "no markers"
    assert main(["--markdown", str(tmp_path / "absent.md")]) == 2
