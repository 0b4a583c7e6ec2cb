# SPDX-License-Identifier: Apache-2.0
"""report.py, figures.py, baselines.py and port-eval --report: baselines' known answers, intervals, a whole page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from port_deploy import metrics
from port_deploy.baselines import LinearCompletion, neighbour_mean
from port_deploy.cli.evaluate import main
from port_deploy.errors import InputError
from port_deploy.predictions import load_poses
from port_deploy.skeleton import Skeleton

HAND = Skeleton.load("hand21")
CHAIN = Skeleton("chain6", tuple("abcdef"), tuple((i, i + 1) for i in range(5)))


def test_neighbours_mean_is_the_middle_of_the_nearest_visible_ones() -> None:
    joints = np.stack([np.arange(6.0), np.zeros(6)], -1)[None].astype(np.float32)
    mask = np.zeros((1, 6), bool)
    mask[0, [0, 3]] = True
    answer = neighbour_mean(CHAIN, np.where(mask[..., None], 99, joints), mask)
    np.testing.assert_allclose(answer[0, :, 0], [1, 1, 2, 3, 4, 5])
    mask[0, 2:5] = True  # c and e see one neighbour, d none: its nearest visible ones are two bones away
    answer = neighbour_mean(CHAIN, joints, mask)
    np.testing.assert_allclose(answer[0, 2:5, 0], [1, 3, 5])
    everything = np.ones((1, 6), bool)
    np.testing.assert_array_equal(neighbour_mean(CHAIN, joints, everything), joints)


def test_linear_completion_finds_what_is_linear() -> None:
    """Poses of three components: any unmasked half tells the rest exactly, in any place and scale."""
    rng = np.random.default_rng(0)
    basis, mean = rng.normal(size=(3, 12)), rng.normal(size=12) * 5
    poses = (mean + rng.normal(size=(400, 3)) @ basis).reshape(-1, 6, 2)
    moved = poses * rng.uniform(20, 80, (400, 1, 1)) + rng.uniform(0, 500, (400, 1, 2))
    completion = LinearCompletion(moved[:300], rank=5)
    mask = np.zeros((100, 6), bool)
    mask[:, 4] = True
    given = np.where(mask[..., None], np.nan, moved[300:])
    answer = completion(given, mask)
    size = moved[300:].std((1, 2))
    error = np.linalg.norm(answer - moved[300:], axis=-1)
    assert (error[~mask] < 1e-3).all()
    worst = np.linalg.norm(neighbour_mean(CHAIN, given, mask) - moved[300:], axis=-1)
    assert np.median(error[mask] / size) < 0.1
    assert np.median(error[mask]) < 0.2 * np.median(worst[mask])
    with pytest.raises(InputError, match="at least 20 poses"):
        LinearCompletion(moved[:10], rank=5)


def test_bootstrap_interval_is_that_of_the_mean_over_poses() -> None:
    rng = np.random.default_rng(0)
    before = rng.exponential(10, (400, 8))
    after = before - 1 + rng.normal(0, 3, (400, 1))
    before[0], after[0] = np.nan, np.nan
    one, two, change = metrics.bootstrap_interval(before, after)
    centre, half = metrics.change_interval(before, after)
    assert change[0] < centre < change[1]
    assert (change[1] - change[0]) / 2 == pytest.approx(half, rel=0.1)
    assert one[0] < np.nanmean(before) < one[1]
    assert two[0] < np.nanmean(after) < two[1]
    assert metrics.bootstrap_interval(before, after) == (one, two, change)
    assert all(np.isnan(v).all() for v in metrics.bootstrap_interval(before[:2], after[:2]))


def test_poses_to_learn_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.array(HAND.names[::-1])
    np.savez(tmp_path / "3d.npz", joints3d=rng.normal(size=(50, 21, 3)), names=names)
    seen = load_poses(tmp_path / "3d.npz", HAND, count=30)
    assert seen.shape == (30, 21, 2)
    flat, labelled = rng.normal(size=(50, 21, 2)), np.ones((50, 21), bool)
    labelled[:20, 3] = False
    np.savez(tmp_path / "2d.npz", joints=flat, labelled=labelled, names=names)
    poses = load_poses(tmp_path / "2d.npz", HAND)
    assert sorted(poses[:, 20, 0]) == sorted(flat[20:, 0, 0].astype(np.float32))
    np.savez(tmp_path / "short.npz", joints=flat[:, :20], names=names[:20])
    with pytest.raises(InputError, match=r"has no wrist: a linear completion"):
        load_poses(tmp_path / "short.npz", HAND)


@pytest.fixture
def files(tmp_path: Path, make_model: Callable[..., Any]) -> dict[str, str]:
    rng = np.random.default_rng(0)
    paths = {}
    for name in ("hand21", "mpii16"):
        skeleton = Skeleton.load(name)
        joints = rng.normal(100, 40, (60, len(skeleton.names), 2)).astype(np.float32)
        conf = rng.uniform(0, 1, joints.shape[:2]).astype(np.float32)
        pred = joints + rng.normal(size=joints.shape).astype(np.float32) * 9
        np.savez(tmp_path / f"{name}.npz", joints=joints, pred=pred, conf=conf, names=np.array(skeleton.names))
        (tmp_path / f"{name}.safetensors").write_bytes(make_model("soft", name).data)
        paths[name] = str(tmp_path / name)
    np.savez(tmp_path / "poses.npz", joints=rng.normal(100, 40, (300, 21, 2)), names=np.array(HAND.names))
    return paths


def test_a_whole_page(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "ablations.json").write_text(json.dumps([{"K": "{1, 2}", "P-EPE": 7.36}]))
    out = tmp_path / "report"
    models = [a for name in files for a in ("--model", f"{files[name]}.safetensors")]
    more = ["--poses", str(tmp_path / "poses.npz"), "--ablations", str(tmp_path / "ablations.json"), "--threads", "1"]
    assert main([*(f"{p}.npz" for p in files.values()), *models, "--report", str(out), *more]) == 0
    assert f"report: {out / 'index.html'}" in capsys.readouterr().out
    page = (out / "index.html").read_text("utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[0] == "hand21 · random"
    assert headings[1] == "mpii16 · random", "a model meets only files with its joints"
    assert headings[2].startswith("Parameters")
    assert page.count("linear completion") == 1, "the poses are hands: no completion of bodies"
    assert page.count("mean of the neighbours") == 2
    assert "{1, 2}" in page
    assert 'src="http' not in page, "self-contained"
    pictures = sorted(p.name for p in out.glob("*.png"))
    kinds = ("attention", "confidence", "occlusion")
    assert pictures == [f"0{i}-{kind}.png" for i in (1, 2) for kind in kinds]
    assert page.count("data:image/png;base64,") == 6
    assert all((out / p).read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_attention_is_that_of_the_network(make_model: Callable[..., Any]) -> None:
    pytest.importorskip("torch")
    from port_deploy.nn.attention import mean_attention

    model = make_model("soft", "hand21")
    rng = np.random.default_rng(0)
    joints = rng.normal(100, 30, (5, 21, 2)).astype(np.float32)
    confidence = rng.uniform(0, 1, (5, 21)).astype(np.float32)
    maps = mean_attention(model, joints, confidence, 0.3)
    assert maps.shape == (4, 21, 21)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert not np.allclose(maps[0], maps[1])


def test_mistakes(files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand, body = (f"{files[n]}.npz" for n in ("hand21", "mpii16"))
    model = f"{files['hand21']}.safetensors"
    out = str(tmp_path / "r")
    for arguments, message in (
        ([hand, body, "--model", model], "--report takes several"),
        ([body, "--model", model, "--report", out], "none of the joints"),
        ([hand, "--model", model, "--report", out, "--ablations", hand], "cannot read"),
        ([hand, "--model", model, "--report", str(tmp_path / "poses.npz")], "cannot write"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()
