# SPDX-License-Identifier: Apache-2.0
"""metrics.py against a plain loop, SciPy's Procrustes, MMPose's figures and Table I's row."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from port_deploy import metrics
from port_deploy.errors import InputError


def poses(seed: int = 0, batch: int = 7, joints: int = 9, dims: int = 2) -> tuple[NDArray[np.float64], ...]:
    """Truth, a noisy prediction of another place, turn and size, and which joints have labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(batch, joints, dims)) * 40 + 200
    turn = np.linalg.qr(rng.normal(size=(batch, dims, dims)))[0]
    turn[..., 0] *= np.sign(np.linalg.det(turn))[:, None]
    predicted = truth @ turn * rng.uniform(0.5, 2, (batch, 1, 1)) + rng.normal(size=truth.shape) * 5 - 30
    return predicted, truth, rng.random((batch, joints)) < 0.7


def kabsch_loop(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """One pose, 2D, by complex numbers: the best similarity without reflection is a complex least-squares slope."""
    a, b = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    da, db = a - a.mean(), b - b.mean()
    moved = da * (np.vdot(da, db) / np.vdot(da, da)) + b.mean()
    return np.stack([moved.real, moved.imag], -1)


def test_epe_equals_a_plain_loop() -> None:
    predicted, truth, scored = poses()
    distances = [np.hypot(*(predicted[b, n] - truth[b, n])) for b in range(7) for n in range(9) if scored[b, n]]
    assert metrics.epe(predicted, truth, scored) == pytest.approx(np.mean(distances), rel=1e-12)
    relative = [
        np.hypot(*(predicted[b, n] - predicted[b, 2] - truth[b, n] + truth[b, 2]))
        for b in range(7)
        for n in range(9)
        if scored[b, n] and scored[b, 2]
    ]
    assert len(relative) < len(distances), "the seed must leave a root unlabelled for this test to mean anything"
    assert metrics.epe(predicted, truth, scored, root=2) == pytest.approx(np.mean(relative), rel=1e-12)


def test_procrustes_equals_a_plain_loop_and_ignores_unlabelled_joints() -> None:
    predicted, truth, scored = poses(3)
    predicted[0, ~scored[0]] = np.nan
    truth[1, ~scored[1]] = 1e9
    moved = metrics.procrustes(predicted, truth, scored)
    for b in range(7):
        keep = scored[b]
        np.testing.assert_allclose(moved[b, keep], kabsch_loop(predicted[b, keep], truth[b, keep]), atol=1e-8)


@pytest.mark.parametrize("dims", [2, 3])
def test_procrustes_agrees_with_scipy_where_no_reflection_is_wanted(dims: int) -> None:
    spatial = pytest.importorskip("scipy.spatial", reason="SciPy is not installed")
    predicted, truth, _ = poses(5, dims=dims)
    error = metrics.p_errors(predicted, truth)
    for b in range(len(truth)):
        _, _, disparity = spatial.procrustes(truth[b], predicted[b])  # of poses of unit norm
        norm = ((truth[b] - truth[b].mean(0)) ** 2).sum()
        assert (error[b] ** 2).sum() == pytest.approx(disparity * norm, rel=1e-9)


def test_procrustes_never_reflects() -> None:
    _, truth, _ = poses(1)
    mirrored = truth * [-1, 1]
    assert metrics.p_epe(mirrored, truth) > 5
    assert metrics.p_epe(truth @ np.array([[0.0, 2.0], [-2.0, 0.0]]) + 5, truth) == pytest.approx(0, abs=1e-9)


def test_swapped_alignment_is_measured_in_the_prediction() -> None:
    predicted, truth, scored = poses(2)
    there_and_back = metrics.p_epe(truth, predicted, scored)
    assert metrics.p_epe(predicted, truth, scored, swapped=True) == pytest.approx(there_and_back, rel=1e-12)
    assert metrics.p_epe(predicted * 0.01, truth, scored, swapped=True) < 0.02 * there_and_back
    usual = metrics.p_epe(predicted, truth, scored)
    assert metrics.p_epe(predicted * 0.01, truth, scored) == pytest.approx(usual, rel=1e-9)


def test_degenerate_poses_stay_their_own_problem() -> None:
    predicted, truth, _ = poses(4)
    clean = metrics.p_errors(predicted, truth)
    predicted[0] = 17.0  # one point
    predicted[1] = np.nan
    truth[2, 1:] = np.nan  # one labelled joint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = metrics.p_errors(predicted, truth)
        np.testing.assert_allclose(error[0], np.linalg.norm(truth[0] - truth[0].mean(0), axis=-1), atol=1e-9)
        assert np.isnan(error[1]).all()
        assert error[2, 0] == pytest.approx(0, abs=1e-12)
        assert np.isnan(error[2, 1:]).all()
        np.testing.assert_allclose(error[3:], clean[3:], rtol=1e-12)
        assert np.isnan(metrics.epe(predicted[1:2], truth[1:2]))
        assert np.isnan(metrics.p_epe(predicted[:0], truth[:0]))
        assert np.isnan(metrics.pck(predicted[:0], truth[:0], 5))


def test_pck_counts_strictly_and_per_joint() -> None:
    truth = np.zeros((4, 2, 2))
    predicted = np.array([[[3, 4], [0, 0]], [[0, 4.9], [0, 9]], [[0, 5], [0, 0]], [[30, 0], [0, 0]]], np.float64)
    assert metrics.pck_per_joint(predicted, truth, 5).tolist() == [0.25, 0.75]
    scored = np.array([[1, 0], [1, 0], [1, 0], [0, 0]], bool)
    share = metrics.pck_per_joint(predicted, truth, 5, scored=scored)
    assert share[0] == pytest.approx(1 / 3)
    assert np.isnan(share[1])
    assert metrics.pck(predicted, truth, 0.5, size=[10, 10, 10, 100], scored=scored) == pytest.approx(1 / 3)
    assert metrics.pck(predicted[:1], truth[:1], 0.5, size=[[10, 8]]) == 0.5  # 0.3 wide, 0.5 high: 0.58
    assert metrics.pck(predicted[:1], truth[:1], 0.6, size=[[10, 8]]) == 1.0
    assert metrics.pck(predicted, truth, 0.5, size=[0, np.nan, 0, 100], scored=None) == 1.0, "poses without size"


def test_auc_is_the_mean_of_the_pck_curve() -> None:
    predicted, truth, scored = poses(6)
    curve = [metrics.pck(predicted, truth, t, 300.0, scored) for t in np.arange(10) / 10]
    assert metrics.auc(predicted, truth, 1.0, 300.0, scored, steps=10) == pytest.approx(np.mean(curve), rel=1e-12)


def test_the_interval_of_a_change_is_that_of_resampled_poses() -> None:
    rng = np.random.default_rng(8)
    before = rng.gamma(2, 5, (200, 9))
    after = before + rng.normal(size=(200, 1)) + 0.3 * rng.normal(size=(200, 9)) - 0.4
    before[rng.random(before.shape) < 0.3] = np.nan
    centre, half = metrics.change_interval(before, after)
    assert centre == pytest.approx(np.nanmean(after - before))
    draws = rng.integers(0, 200, (2000, 200))
    resampled = [np.nanmean((after - before)[d]) for d in draws]
    assert half == pytest.approx(1.96 * np.std(resampled), rel=0.08)
    alone = 1.96 * np.nanstd(after - before) / np.sqrt(np.isfinite(before).sum())
    assert half > 1.8 * alone, "joints of one pose are no independent sample"
    assert np.isnan(metrics.change_interval(before[:1], after[:1])[1])
    assert np.isnan(metrics.change_interval(before[:0], after[:0])).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.epe(np.zeros((2, 3, 2)), np.zeros((2, 4, 2))), r"got \[2, 3, 2\] and \[2, 4, 2\]"),
        (lambda: metrics.epe(np.zeros((3, 2)), np.zeros((3, 2))), r"\[B, N, 2\]"),
        (lambda: metrics.epe(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), np.ones((2, 4))), r"scored \[2, 3\]"),
        (lambda: metrics.epe(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), root=3), "root"),
        (lambda: metrics.pck(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), 0.1, np.ones(3)), "size"),
        (lambda: metrics.auc(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), 1, steps=0), "step"),
    ],
)
def test_bad_input_says_what_was_expected(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_mmpose_figures(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("reference/mmpose")
    golden = json.loads((folder / "metric_goldens.json").read_text())["values"]
    with np.load(folder / "metric_goldens.npz", allow_pickle=False) as data:
        a = {name: data[name] for name in data.files}
    flat = (a["pred2d"], a["gt2d"])
    for fraction in (0.05, 0.1, 0.2, 0.5):
        expected = np.array(golden[f"pck@{fraction}"]["per_keypoint"])
        share = metrics.pck_per_joint(*flat, fraction, a["norm2d"], a["mask2d"])
        np.testing.assert_allclose(share, np.where(expected < 0, np.nan, expected), atol=1e-12)
        average = metrics.pck(*flat, fraction, a["norm2d"], a["mask2d"])
        assert average == pytest.approx(golden[f"pck@{fraction}"]["avg"], abs=1e-12)
    assert metrics.auc(*flat, 1, 30.0, a["mask2d"]) == pytest.approx(golden["auc_norm30_20thr"], abs=1e-12)
    assert metrics.auc(*flat, 1, 100.0, a["mask2d"]) == pytest.approx(golden["auc_norm100_20thr"], abs=1e-12)
    assert metrics.epe(*flat, a["mask2d"]) == pytest.approx(golden["epe"], rel=1e-7)  # float32 there
    solid = (a["pred3d"], a["gt3d"])
    assert metrics.epe(*solid, a["mask3d"]) == pytest.approx(golden["mpjpe_none"], rel=1e-12)
    assert metrics.p_epe(*solid) == pytest.approx(golden["mpjpe_procrustes_full_mask"], rel=1e-12)
    # MMPose fits on labelled and unlabelled joints alike, and averages over the labelled ones
    moved = metrics.procrustes(*solid)
    assert metrics.epe(moved, a["gt3d"], a["mask3d"]) == pytest.approx(golden["mpjpe_procrustes"], rel=1e-12)


def test_the_row_of_table_one_on_half_of_its_test_set(shared_data: Callable[[str], Path]) -> None:
    with np.load(shared_data("data/panoptic_dev_hand21.npz"), allow_pickle=False) as data:
        predicted, truth = data["pred"], data["joints"]
    figures = (
        metrics.epe(predicted, truth, root=0),
        metrics.epe(predicted, truth),
        metrics.p_epe(predicted, truth),
        metrics.p_epe(predicted, truth, swapped=True),
    )
    assert [f"{f:.2f}" for f in figures] == ["15.62", "9.87", "7.63", "7.79"]
