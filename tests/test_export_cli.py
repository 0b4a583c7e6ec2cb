# SPDX-License-Identifier: Apache-2.0
"""port-export from the command line: exit codes, one-line errors, JSON, and no half file."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from conftest import random_model

from port_deploy.cli.export import main
from port_deploy.export import run as export_run
from port_deploy.weights import save_model

pytest.importorskip("torch")


@pytest.fixture
def source(tmp_path: Path) -> str:
    model = random_model("soft", layers=1, head_dim=16)
    save_model(tmp_path / "m.safetensors", model.spec, model.tensors)
    return str(tmp_path / "m.safetensors")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def test_json_describes_what_was_written(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([source, "-o", str(tmp_path / "out"), "--torchscript", "--input", "joints", "--json"]) == 0
    (artefact,) = json.loads(capsys.readouterr().out)["artefacts"]
    assert artefact["path"] == str(tmp_path / "out" / "m.ts")
    assert Path(artefact["sidecar"]).is_file()
    assert artefact["size_bytes"] == Path(artefact["path"]).stat().st_size
    assert artefact["verification"]["max_error_px"] < 1e-3


def test_the_table_shows_the_error_in_pixels(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([source, "-o", str(tmp_path), "--torchscript", "--precision", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "max px" in out
    assert "m.ts" in out
    assert (tmp_path / "m.ts.json").is_file()


def test_above_the_bound_it_exits_1(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [source, "-o", str(tmp_path / "out"), "--torchscript", "--precision", "bf16", "--max-px-error", "0.001"]
    assert main(arguments) == 1
    assert "disagrees with the float64 oracle" in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write"),
        (["--torchscript", "--batch", "8,4,2"], "expected a batch"),
        (["--torchscript", "--max-px-error", "-1"], "expected a max px error"),
        (["--torchscript", "--target", "sm_89"], "--target and other ways to build are for engines"),
    ],
)
def test_mistakes_exit_2(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([source, "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--batch", "1,2"], ["--heatmap-size", "big"], ["--precision", "int3"]])
def test_options_that_do_not_parse(source: str, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main([source, "--torchscript", *arguments]) == 2
    assert arguments[0] in one_line(capsys)


@pytest.mark.parametrize("name", ["nothing", "nothing.safetensors", "nothing.onnx", "../etc/passwd"])
def test_a_model_that_is_not_there(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "-o", str(tmp_path / "out"), "--trt"]) == 2
    one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([source, "-o", str(tmp_path / "file" / "below"), "--torchscript"]) == 2
    assert "cannot write to" in one_line(capsys)


def test_a_full_disk(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([source, "-o", str(tmp_path / "out"), "--torchscript"]) == 2
    assert "No space left on device: free space" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_interruption(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_run, "compare", interrupt)
    assert main([source, "-o", str(tmp_path / "out"), "--torchscript"]) == 130
    assert not (tmp_path / "out").exists()
