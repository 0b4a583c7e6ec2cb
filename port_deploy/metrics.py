# SPDX-License-Identifier: Apache-2.0
"""Pose errors in pixels: EPE, P-EPE both ways, PCK, AUC. NumPy only, whole batches at once, float64 inside.

Every function takes joints [B, N, K] (K = 2 or 3) and an optional ``scored`` [B, N] bool, True where the joint has a
label; a joint whose coordinates are not finite is never scored. What has nothing to score answers NaN, never 0.
May use: errors, NumPy. Test: tests/test_metrics.py (against MMPose's and SciPy's figures and a plain loop).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from port_deploy.errors import InputError

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def joint_errors(
    predicted: ArrayLike, truth: ArrayLike, scored: ArrayLike | None = None, root: int | None = None
) -> Float64Array:
    """Distance of each joint from its label.

    Args:
        predicted: [B, N, K], pixels.
        truth: [B, N, K], pixels.
        scored: [B, N] bool, True where the joint counts; absent: every joint.
        root: Joint subtracted from both sides first (Table I of the paper uses joint 0). A pose whose root is not
            scored has no root-relative error.

    Returns:
        [B, N] pixels; NaN where the joint is not scored.

    Raises:
        InputError: Shapes do not agree.
    """
    a, b, keep = _pair(predicted, truth, scored)
    if root is not None:
        if not 0 <= root < a.shape[1]:
            raise InputError(f"expected root to be a joint from 0 to {a.shape[1] - 1}, got {root}")
        keep = keep & keep[:, root, None]
        a, b = a - a[:, root, None], b - b[:, root, None]
    return np.where(keep, np.linalg.norm(np.where(keep[..., None], a - b, 0.0), axis=-1), np.nan)


def epe(predicted: ArrayLike, truth: ArrayLike, scored: ArrayLike | None = None, root: int | None = None) -> float:
    """End-point error: the mean of `joint_errors` over all scored joints of all poses, pixels."""
    return mean(joint_errors(predicted, truth, scored, root))


def procrustes(source: ArrayLike, target: ArrayLike, scored: ArrayLike | None = None) -> Float64Array:
    """Move, turn and scale each source pose onto its target: the least-squares similarity, without reflection.

    Umeyama's solution, one batched SVD. Only scored joints decide the fit; all joints are moved by it. Where the scored
    source joints all lie in one place there is no turn or scale to find: they land on the target's mean.

    Args:
        source: [B, N, K].
        target: [B, N, K].
        scored: [B, N] bool; absent: every joint.

    Returns:
        The source poses in the target's place, [B, N, K]; NaN where the source is, or where a pose has no scored joint.
    """
    a, b, keep = _pair(source, target, scored)
    weight = keep[..., None].astype(np.float64)  # [B, N, 1]
    count = weight.sum(1, keepdims=True)  # [B, 1, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_a = np.where(keep[..., None], a, 0.0).sum(1, keepdims=True) / count
        mean_b = np.where(keep[..., None], b, 0.0).sum(1, keepdims=True) / count
        centred_a = np.where(keep[..., None], a - mean_a, 0.0)
        centred_b = np.where(keep[..., None], b - mean_b, 0.0)
    # a -> scale * a @ rotation, with rotation = U diag(1, .., sign) V^T of the SVD of A^T B
    u, singular, vt = np.linalg.svd(centred_a.transpose(0, 2, 1) @ centred_b)  # [B, K, K], [B, K], [B, K, K]
    sign = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    u[..., -1] *= sign[:, None]
    singular[:, -1] *= sign
    variance = (centred_a**2).sum((1, 2))
    scale = np.where(variance > 0, singular.sum(1) / np.where(variance > 0, variance, 1.0), 0.0)
    moved = scale[:, None, None] * ((a - mean_a) @ (u @ vt)) + mean_b
    return np.asarray(moved, np.float64)


def p_errors(
    predicted: ArrayLike, truth: ArrayLike, scored: ArrayLike | None = None, swapped: bool = False
) -> Float64Array:
    """Distance of each joint after Procrustes alignment, [B, N] pixels; NaN where the joint is not scored.

    Args:
        predicted: [B, N, K], pixels.
        truth: [B, N, K], pixels.
        scored: [B, N] bool; absent: every joint.
        swapped: False aligns the prediction to the truth (the usual way). True aligns the truth to the prediction,
            which is what the script behind Table I of the paper does: a prediction that is too small looks better.
    """
    a, b, keep = _pair(predicted, truth, scored)
    if swapped:
        return joint_errors(a, procrustes(b, a, keep), keep)
    return joint_errors(procrustes(a, b, keep), b, keep)


def p_epe(predicted: ArrayLike, truth: ArrayLike, scored: ArrayLike | None = None, swapped: bool = False) -> float:
    """The mean of `p_errors` over all scored joints of all poses, pixels."""
    return mean(p_errors(predicted, truth, scored, swapped))


def pck_per_joint(
    predicted: ArrayLike,
    truth: ArrayLike,
    threshold: float,
    size: ArrayLike = 1.0,
    scored: ArrayLike | None = None,
) -> Float64Array:
    """Share of each joint's labels that the prediction came nearer to than ``threshold`` times ``size``.

    Args:
        predicted: [B, N, 2], pixels.
        truth: [B, N, 2], pixels.
        threshold: Fraction of ``size``; with size 1, pixels. The comparison is strict.
        size: Pixels that count as 1: one number, [B] (box, head or image size of each pose), or [B, 2] (width and
            height, each axis by its own). A pose whose size is not above 0 is left out.
        scored: [B, N] bool; absent: every joint.

    Returns:
        [N] from 0 to 1; NaN for a joint that is never scored.
    """
    hit, keep = _hits(predicted, truth, threshold, size, scored)
    counts = keep.sum(0)
    return np.where(counts > 0, hit.sum(0) / np.maximum(counts, 1), np.nan)


def pck(
    predicted: ArrayLike,
    truth: ArrayLike,
    threshold: float,
    size: ArrayLike = 1.0,
    scored: ArrayLike | None = None,
) -> float:
    """Percentage of correct keypoints as a share from 0 to 1: the mean over joints of `pck_per_joint`."""
    return mean(pck_per_joint(predicted, truth, threshold, size, scored))


def auc(
    predicted: ArrayLike,
    truth: ArrayLike,
    limit: float,
    size: ArrayLike = 1.0,
    scored: ArrayLike | None = None,
    steps: int = 20,
) -> float:
    """Area under the PCK curve from 0 up to ``limit`` (same unit as `pck`'s threshold): the mean over ``steps`` points.

    The points are ``limit * i / steps`` for i = 0 .. steps - 1, as MMPose counts them.
    """
    if steps < 1:
        raise InputError(f"expected at least 1 step, got {steps}")
    return mean(np.array([pck(predicted, truth, limit * i / steps, size, scored) for i in range(steps)]))


def change_interval(before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """How much the mean error changed, and half the width of its 95 % interval when poses, not joints, are the sample.

    Joints of one pose err together, so the interval comes from the poses' sums (a ratio estimate's standard error).

    Args:
        before: [B, N] errors as `joint_errors` gives them.
        after: [B, N], NaN in the same places.

    Returns:
        The mean of after - before over all scored joints, and the half-width; NaN with fewer than 2 poses.
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    counts = np.isfinite(change).sum(1)
    total, poses = counts.sum(), int((counts > 0).sum())
    if not total:
        return float("nan"), float("nan")
    sums = np.where(np.isfinite(change), change, 0.0).sum(1)
    centre = float(sums.sum() / total)
    if poses < 2:
        return centre, float("nan")
    spread = ((sums - centre * counts) ** 2).sum() * poses / (poses - 1)
    return centre, float(1.96 * np.sqrt(spread) / total)


def bootstrap_interval(
    before: ArrayLike, after: ArrayLike, draws: int = 2000, seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """95 % intervals of the mean error before, after, and of its change, by drawing poses again with replacement.

    Args:
        before: [B, N] errors as `joint_errors` gives them.
        after: [B, N], NaN in the same places.
        draws: How often.
        seed: Of the draws.

    Returns:
        Three pairs (low, high): percentiles 2.5 and 97.5 over the draws; NaN with fewer than 2 poses.
    """
    sides = [np.asarray(v, np.float64) for v in (before, after)]
    counted = np.isfinite(sides[0]) & np.isfinite(sides[1])
    counts = counted.sum(1)
    rows = np.flatnonzero(counts)
    if len(rows) < 2:
        nothing = (float("nan"), float("nan"))
        return nothing, nothing, nothing
    sums = np.stack([np.where(counted, v, 0.0).sum(1)[rows] for v in sides])  # [2, P]
    random = np.random.default_rng(seed)
    means = np.empty((2, draws))
    for i in range(draws):
        drawn = random.integers(len(rows), size=len(rows))
        means[:, i] = sums[:, drawn].sum(1) / counts[rows][drawn].sum()

    def interval(values: Float64Array) -> tuple[float, float]:
        low, high = np.percentile(values, (2.5, 97.5))
        return float(low), float(high)

    return interval(means[0]), interval(means[1]), interval(means[1] - means[0])


def mean(values: ArrayLike) -> float:
    """Mean of the values that are numbers; NaN where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nanmean warns where it answers NaN, which is our answer
        return float(np.nanmean(np.asarray(values, np.float64))) if np.size(values) else float("nan")


def _pair(a: ArrayLike, b: ArrayLike, scored: ArrayLike | None) -> tuple[Float64Array, Float64Array, BoolArray]:
    """Both poses as float64 and the joints that count: labelled, and finite on both sides."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 3 or first.shape != second.shape or first.shape[2] not in (2, 3):
        raise InputError(
            f"expected two arrays of joints of one shape [B, N, 2], got {list(first.shape)} and {list(second.shape)}"
        )
    keep: BoolArray = np.asarray(np.isfinite(first).all(-1) & np.isfinite(second).all(-1), np.bool_)
    if scored is not None:
        labelled = np.asarray(scored)
        if labelled.shape != keep.shape:
            raise InputError(f"expected scored {list(keep.shape)}, got {list(labelled.shape)}")
        keep = np.asarray(keep & labelled.astype(np.bool_), np.bool_)
    return first, second, keep


def _hits(
    predicted: ArrayLike, truth: ArrayLike, threshold: float, size: Any, scored: ArrayLike | None
) -> tuple[BoolArray, BoolArray]:
    """Which joints are near enough, and which count, both [B, N]."""
    a, b, keep = _pair(predicted, truth, scored)
    unit = np.asarray(size, np.float64)
    if unit.ndim == 1:
        unit = unit[:, None]
    if unit.ndim not in (0, 2) or (unit.ndim == 2 and unit.shape not in ((len(a), 1), (len(a), 2))):
        raise InputError(f"expected size to be a number, [{len(a)}] or [{len(a)}, 2], got {list(np.shape(size))}")
    columns = a.shape[2] if unit.size == 1 or unit.shape[-1] == 1 else 2
    unit = np.broadcast_to(unit, (len(a), columns))
    usable: BoolArray = np.asarray((np.isfinite(unit) & (unit > 0)).all(-1), np.bool_)
    keep = keep & usable[:, None]
    scaled = np.where(keep[..., None], a - b, 0.0) / np.where(usable[:, None], unit, 1.0)[:, None]
    return keep & (np.linalg.norm(scaled, axis=-1) < threshold), keep
