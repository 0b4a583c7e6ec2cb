# SPDX-License-Identifier: Apache-2.0
"""``port-train`` (cli/train.py): what it prints and writes, and what it says of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chains import CHAIN, SMALL, write_chains

pytest.importorskip("torch")

from port_deploy.cli.train import main
from port_deploy.weights import load_model


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    return write_chains(tmp_path)


def command(poses: Path, tmp_path: Path, *more: str) -> list[str]:
    skeleton = tmp_path / "chain.json"
    skeleton.write_text(json.dumps(CHAIN.to_json()))
    small = [f"--config={k}={v}" for k, v in SMALL.items()]
    base = ["--data", str(poses), "--skeleton", str(skeleton), "-o", str(tmp_path / "out"), "--min-visible", "3"]
    return [*base, *small, "--epochs", "1", "--epoch-poses", "128", "--batch", "64", *more]


def test_command(poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--name", "mine", "--licence", "CC0", "--threshold", "0.2", "--fusion", "0.5", "--store", "fp16")
    assert main(command(poses, tmp_path, "--json", *more)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["epochs"] == 1
    model = load_model(printed["model"])
    spec = model.spec
    assert (spec.name, spec.licence, spec.threshold, spec.fusion) == ("mine", "CC0", 0.2, 0.5)
    assert all(np.array_equal(v, v.astype(np.float16)) for v in model.tensors.values())
    assert main(command(poses, tmp_path, *more, "--resume")) == 0
    assert "best of 1 epochs" in capsys.readouterr().out


def test_joints_without_labels_are_said(poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(poses) as data:
        np.savez(tmp_path / "odd.npz", joints=data["joints"], names=["a", "b", "c", "d", "e", "g"])
    assert main(command(poses, tmp_path, "--json", "--data", str(tmp_path / "odd.npz"))) == 0
    streams = capsys.readouterr()
    assert [line for line in streams.err.splitlines() if "no labels" in line] == [
        "odd.npz: no labels for f (its names that chain6 does not have: g)"
    ]
    assert json.loads(streams.out)["epochs"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "none.npz"], "no data file"),
        (["--skeleton", "nobody"], "no skeleton"),
        (["--skeleton", "hand21"], "none of the joints"),
        (["--hold-out", "subject"], "error: expected --hold-out FIELD=VALUE, got 'subject'\n"),
        (["--hold-out", "subject=x"], "expected --hold-out FIELD=NUMBER,NUMBER: could not"),
        (["--hold-out", "subjct=1"], "--hold-out subjct: no data file has that field"),
        (["--simulate", "error=wide,wider"], "expected --simulate"),
        (["--simulate", "blur=1"], "no number 'blur'"),
        (["--simulate", "error=1"], "expected 2 number(s) for error"),
        (["--config", "depth=3"], "no field 'depth'"),
        (["--config", "layers=0"], "expected layers"),
        (["--lr", "-1"], "expected lr"),
        (["--epochs", "0"], "expected epochs"),
        (["--threshold", "nan"], "threshold"),
        (["--resume"], "no checkpoint"),
        (["--start", "none.safetensors"], "cannot read model"),
        (["--threads", "-1"], "expected --threads"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(command(poses, tmp_path, *more)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_overwritten(poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(poses, tmp_path)
    assert main(arguments) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
