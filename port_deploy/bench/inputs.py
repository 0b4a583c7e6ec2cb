# SPDX-License-Identifier: Apache-2.0
"""The poses that are timed: the same for every backend, each of them refined, none turned away early.

May use: config, NumPy. Test: tests/test_bench.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from port_deploy.config import ModelSpec

CROP_PX = 256.0


@dataclass(frozen=True)
class Poses:
    """Inputs of one measurement.

    Attributes:
        kind: ``joints`` or ``heatmaps``.
        first: Joints [B, N, 2] in pixels of a 256-pixel crop, or heatmaps [B, N, H, W]; float32, contiguous.
        second: Confidence [B, N], or affine [B, 2, 3]; float32, contiguous.
        threshold: δ, the model's own.
    """

    kind: str
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    threshold: float


def make_poses(spec: ModelSpec, kind: str, batch: int, side: int, masked_share: float, seed: int = 0) -> Poses:
    """Random poses in a 256-pixel crop; the same share of joints is masked in each of them.

    Args:
        spec: The model's specification.
        kind: ``joints`` or ``heatmaps``.
        batch: B.
        side: Height and width of the heatmaps.
        masked_share: Share of the joints below the threshold.
        seed: Of the poses.
    """
    rng = np.random.default_rng(seed)
    n, delta = spec.joints, spec.threshold
    masked = min(max(round(n * masked_share), 1), spec.max_masked, n - spec.min_visible)
    order = rng.random((batch, n)).argsort(-1)
    hidden = order < masked
    high = delta + (0.98 - delta) * rng.uniform(0.2, 1.0, (batch, n)) if delta < 0.98 else np.full((batch, n), delta)
    confidence = np.where(hidden, delta * rng.uniform(0.2, 0.8, (batch, n)), high).astype(np.float32)
    joints = rng.uniform(0.1, 0.9, (batch, n, 2)) * CROP_PX
    if kind == "joints":
        return Poses(kind, joints.astype(np.float32), confidence, delta)
    scale = CROP_PX / side
    place = joints / scale  # [B, N, 2] in heatmap pixels
    grid = np.arange(side)
    across = np.exp(-0.125 * (grid - place[..., :1]) ** 2)  # [B, N, W], blobs of sigma 2
    down = np.exp(-0.125 * (grid - place[..., 1:]) ** 2)
    peak = confidence / np.maximum(across.max(-1) * down.max(-1), 1e-6)
    maps = (down[..., :, None] * across[..., None, :] * peak[..., None, None]).astype(np.float32)
    affine = np.tile(np.array([[scale, 0, 0], [0, scale, 0]], np.float32), (batch, 1, 1))
    return Poses(kind, maps, affine, delta)
