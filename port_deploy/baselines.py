# SPDX-License-Identifier: Apache-2.0
"""Two honest ways to rebuild a masked joint without a network, to hold PORT against.

`neighbour_mean` puts it amid its neighbours along the bones; `LinearCompletion` is the best linear guess from the
visible joints: a principal component model of poses (probabilistic PCA), conditioned on what is seen.
May use: skeleton, errors, NumPy. Test: tests/test_report.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.skeleton import Skeleton

Float64Array = NDArray[np.float64]
ROUNDS = 6
"""Of finding the pose's place and scale from the completed joints, and completing them anew."""


def neighbour_mean(skeleton: Skeleton, joints: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Masked joints in the middle of their neighbours: those nearest along bones among the unmasked ones.

    Args:
        skeleton: Bones.
        joints: [B, N, 2] pixels.
        mask: [B, N] bool, joints to rebuild.

    Returns:
        [B, N, 2] float32; joints that no unmasked joint leads to stay where they are.
    """
    answer = np.array(joints, np.float64)
    edges = skeleton.adjacency() > 0
    visible = ~mask & np.isfinite(joints).all(-1)
    reach = np.eye(len(skeleton.names), dtype=bool)
    todo = np.array(mask)
    for _ in skeleton.names:
        reach = (reach.astype(np.int64) @ edges.astype(np.int64)) > 0
        weight = reach[None] & visible[:, None] & todo[..., None]  # [B, N, N]
        count = weight.sum(-1)
        total = weight.astype(np.float64) @ np.where(visible[..., None], joints, 0.0)
        hit = count > 0
        answer[hit] = (total / np.maximum(count, 1)[..., None])[hit]
        todo &= ~hit
    return answer.astype(np.float32)


class LinearCompletion:
    """Probabilistic PCA of poses, conditioned on the visible joints.

    Args:
        poses: [M, N, 2] poses to learn from, any place and scale; every joint finite.
        rank: Components kept; what they leave out is the noise.

    Raises:
        InputError: Too few poses for the rank.
    """

    def __init__(self, poses: NDArray[Any], rank: int = 20) -> None:
        if len(poses) < 4 * rank:
            raise InputError(f"expected at least {4 * rank} poses to find {rank} components in, got {len(poses)}")
        whole = np.ones(poses.shape[:2], bool)
        framed, _, _ = _frame(np.asarray(poses, np.float64), whole)
        flat = framed.reshape(len(framed), -1)
        self.mean = flat.mean(0)
        values, vectors = np.linalg.eigh(np.cov(flat.T))
        rank = min(rank, flat.shape[1] - 1)
        self.noise = max(float(values[:-rank].mean()), 1e-6)
        kept = vectors[:, -rank:]
        self.covariance = (kept * np.maximum(values[-rank:] - self.noise, 0)) @ kept.T

    def __call__(self, joints: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Rebuild masked joints.

        Args:
            joints: [B, N, 2] pixels; what stands at a masked joint is not read.
            mask: [B, N] bool. A pose with fewer than 2 unmasked joints stays as it is.

        Returns:
            [B, N, 2] float32.
        """
        seen = ~mask & np.isfinite(joints).all(-1)
        answer = np.where(seen[..., None], joints, 0.0).astype(np.float64)
        _, centre, _ = _frame(answer, seen)
        answer = np.where(seen[..., None], answer, centre)
        whole = np.ones(mask.shape, bool)
        todo = np.flatnonzero(~seen.all(1) & (seen.sum(1) >= 2))
        for _ in range(ROUNDS):
            framed, centre, unit = _frame(answer, whole)
            for b in todo:
                known = np.repeat(seen[b], 2)
                inner = self.covariance[np.ix_(known, known)] + self.noise * np.eye(known.sum())
                gap = framed[b].reshape(-1)[known] - self.mean[known]
                guess = self.mean + self.covariance[:, known] @ np.linalg.solve(inner, gap)
                rebuilt = guess.reshape(-1, 2) * unit[b] + centre[b]
                answer[b][~seen[b]] = rebuilt[~seen[b]]
        result = np.array(joints, np.float64)
        changed = np.zeros(mask.shape, bool)
        changed[todo] = mask[todo]
        result[changed] = answer[changed]
        return result.astype(np.float32)


def _frame(joints: Float64Array, seen: NDArray[np.bool_]) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Poses centred and scaled by their seen joints, with centre [B, 1, 2] and unit [B, 1, 1]."""
    weight = seen[..., None].astype(np.float64)
    count = np.maximum(weight.sum(1, keepdims=True), 1)
    centre = (joints * weight).sum(1, keepdims=True) / count
    offset = (joints - centre) * weight
    unit = np.sqrt((offset**2).sum((1, 2), keepdims=True) / (2 * count))
    unit = np.where(unit > 1e-9, unit, 1.0)
    return offset / unit, centre, unit
