# SPDX-License-Identifier: Apache-2.0
"""nn/simulate.py and port-simulate: held-out poses only, patches as the paper has them, a file that port-eval takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from port_deploy.cli.simulate import main  # noqa: E402
from port_deploy.nn.simulate import CROP, PATCH, patched  # noqa: E402
from port_deploy.predictions import load_predictions  # noqa: E402
from port_deploy.skeleton import Skeleton  # noqa: E402

BODY = Skeleton.load("h36m17")


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    """Bodies of two subjects; the second one's are twice as wide."""
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(200, 17, 2)) * [20, 60]
    joints[100:] *= [8, 1]
    np.savez(tmp_path / "p.npz", joints=joints, subject=np.repeat([1, 9], 100), names=np.array(BODY.names))
    return tmp_path / "p.npz"


def test_patches_are_squares_on_joints_in_the_papers_number() -> None:
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(20000, 17, 2, generator=generator) * 5000
    covered = patched(joints, generator)
    assert covered.any(1).float().mean().item() == pytest.approx(1 - 0.98**17, abs=0.01)
    assert covered.sum(1).float().mean().item() == pytest.approx(17 * 0.02, rel=0.05)
    crowd = torch.zeros(4000, 17, 2)
    crowd[:, 1:9] = PATCH / 2 - 1
    crowd[:, 9:] = PATCH / 2 + 1
    hidden = patched(crowd, generator)
    alone = hidden[:, 0] & ~hidden[:, 9:].any(1)
    assert alone.any()
    assert hidden[alone][:, :9].all()


@pytest.mark.parametrize("patches", [False, True])
def test_a_file_of_held_out_poses(
    poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], patches: bool
) -> None:
    out = tmp_path / "s.npz"
    more = ["--patches"] if patches else []
    arguments = [str(poses), "--skeleton", "h36m17", "--hold-out", "subject=9", "--count", "300", "--json"]
    assert main([*arguments, "-o", str(out), *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["poses"] == 300
    predictions = load_predictions(out, BODY)
    assert predictions.joints.shape == (300, 17, 2)
    extent = np.ptp(predictions.joints, axis=1)
    assert (extent[:, 0] > extent[:, 1]).mean() > 0.9, "subject 9's poses are the wide ones"
    assert extent.max() < 0.86 * CROP
    assert predictions.sizes["image"].tolist() == [CROP] * 300
    error = np.linalg.norm(predictions.detected - predictions.joints, axis=-1)
    low = predictions.confidence < 0.3
    assert np.nanmean(error[low]) > 3 * np.nanmean(error[predictions.confidence > 0.7])
    if patches:
        with np.load(out) as data:
            assert data["patched"].any(1).all(), "only poses that have a patch"
            assert predictions.confidence[data["patched"]].mean() < 0.7 * predictions.confidence.mean()
    again = tmp_path / "again.npz"
    assert main([*arguments, "-o", str(again), *more]) == 0
    capsys.readouterr()
    assert again.read_bytes() == out.read_bytes()


def test_joints_without_labels_are_said(poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(poses) as data:
        arrays = dict(data)
    arrays["names"][3] = "x"
    np.savez(poses, **arrays)
    arguments = [str(poses), "--skeleton", "h36m17", "--count", "9", "--json", "-o", str(tmp_path / "s.npz")]
    assert main(arguments) == 0
    streams = capsys.readouterr()
    assert streams.err == f"p.npz: no labels for {BODY.names[3]} (its names that h36m17 does not have: x)\n"
    assert json.loads(streams.out)["poses"] == 9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--count", "0"], "at least 1 pose"),
        (["--hold-out", "subject=5"], "no pose is held out"),
        (
            ["--hold-out", "sbject=9"],
            "--hold-out sbject: no data file has that field, one number a pose: p.npz has sub",
        ),
        (["-o", "x.txt"], "expected the output"),
        (["--skeleton", "hand21"], "none of the joints"),
    ],
)
def test_mistakes(
    poses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main([str(poses), "--skeleton", "h36m17", "-o", str(tmp_path / "s.npz"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s.npz").exists()
