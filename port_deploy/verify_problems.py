# SPDX-License-Identifier: Apache-2.0
"""Poses and heatmaps that a backend is tried on: random ones, and every case that has ever hurt one.

Everything is a function of the seed through PCG64's raw bits, which NumPy keeps the same for ever (its distributions
may change): a sidecar can hold a seed and the oracle's answers, and any machine can make the questions again.
May use: config, NumPy. Test: tests/test_verify.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from port_deploy.config import MAX_COORDINATE, ModelSpec

Floats = NDArray[np.float32]
Image = NDArray[np.float64]

CROP_PX = 256.0
"""Side of the crop that errors in pixels refer to."""


@dataclass(frozen=True)
class Questions:
    """Inputs of an artefact.

    Attributes:
        input: ``joints`` or ``heatmaps``.
        first: Joints [B, N, 2] in pixels, or heatmaps [B, N, H, W]; float32.
        second: Confidence [B, N], or affine [B, 2, 3]; float32.
        threshold: δ.
        seed: What they were made from.
    """

    input: str
    first: Floats
    second: Floats
    threshold: float
    seed: int


class _Random:
    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self, low: float, high: float, *shape: int) -> NDArray[np.float64]:
        raw = self._bits.random_raw(int(np.prod(shape)) if shape else 1)
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit.reshape(shape)


def joint_questions(spec: ModelSpec, poses: int = 64, seed: int = 0) -> Questions:
    """Joints and confidence: the awkward poses first, random ones after them."""
    random = _Random(seed)
    size = random(20, CROP_PX, poses, 1, 1)
    joints = random(300, 1700, poses, 1, 2) + _shapes(random, spec, poses) * size
    confidence = _confidence(random, spec, poses)
    for pose, spoil in zip(range(poses), _AWKWARD, strict=False):
        spoil(spec, joints[pose], confidence[pose])
    return Questions("joints", joints.astype(np.float32), confidence.astype(np.float32), spec.threshold, seed)


def heatmap_questions(spec: ModelSpec, size: tuple[int, int], poses: int = 32, seed: int = 0) -> Questions:
    """Heatmaps (H, W) with blobs as a detector emits them, ripples around zero, and the crop's place in the image."""
    random, n = _Random(seed), spec.joints
    height, width = size
    peak = _confidence(random, spec, poses)
    filled = random(0.3, 1, poses, 1, 1)
    place = (np.array([width, height]) - 1) * (0.5 + _shapes(random, spec, poses) * filled)
    spread = random(1.2, 2.5, poses, n)
    rows, columns = np.arange(height), np.arange(width)
    maps = random(-0.02, 0.02, poses, n, height, width)
    across = np.exp(-0.5 * ((columns - place[..., :1]) / spread[..., None]) ** 2)  # [B, N, W]
    down = np.exp(-0.5 * ((rows - place[..., 1:]) / spread[..., None]) ** 2)  # [B, N, H]
    maps += peak[..., None, None] * down[..., :, None] * across[..., None, :]
    for pose, spoil in zip(range(poses), _AWKWARD_MAPS, strict=False):
        spoil(maps[pose])
    turn, scale = random(-0.3, 0.3, poses), CROP_PX / np.array([width, height])
    affine = np.empty((poses, 2, 3))
    affine[:, 0, 0], affine[:, 0, 1] = np.cos(turn) * scale[0], -np.sin(turn) * scale[1]
    affine[:, 1, 0], affine[:, 1, 1] = np.sin(turn) * scale[0], np.cos(turn) * scale[1]
    affine[..., 2] = random(0, 1500, poses, 2)
    return Questions("heatmaps", maps.astype(np.float32), affine.astype(np.float32), spec.threshold, seed)


def _shapes(random: _Random, spec: ModelSpec, poses: int) -> NDArray[np.float64]:
    """[B, N, 2]: a walk along the bones, as bodies are, centred and scaled into a square of side 1."""
    n = spec.joints
    steps = random(-1, 1, poses, n, 2)
    joints = np.zeros((poses, n, 2))
    reached = [spec.skeleton.root]
    for joint in reached:
        for a, b in spec.skeleton.bones:
            other = b if a == joint else a if b == joint else joint
            if other not in reached:
                joints[:, other] = joints[:, joint] + steps[:, other]
                reached.append(other)
    for joint in set(range(n)) - set(reached):  # of a skeleton in several pieces
        joints[:, joint] = steps[:, joint]
    low, high = joints.min(1, keepdims=True), joints.max(1, keepdims=True)
    centred: Image = (joints - (low + high) / 2) / (high - low).max(-1, keepdims=True)
    return centred


def _confidence(random: _Random, spec: ModelSpec, poses: int) -> NDArray[np.float64]:
    """[B, N]: from pose to pose another share of the joints lies below δ."""
    n, delta = spec.joints, spec.threshold
    share = random(0, 0.7, poses, 1)
    hidden = random(0, 1, poses, n) < share
    low = random(0, 1, poses, n) * delta * 0.98
    high = delta + random(0.02, 1, poses, n) * max(1.0 - delta, 0.02)
    return np.where(hidden, low, high)


def _visible(spec: ModelSpec, confidence: NDArray[np.float64], count: int) -> None:
    confidence[:] = spec.threshold * 0.5
    confidence[: max(count, 0)] = spec.threshold + 0.1


def _all_masked(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    _visible(spec, confidence, 0)


def _none_masked(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    _visible(spec, confidence, spec.joints)


def _nan_joint(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[spec.joints // 2, 0] = np.nan


def _infinite_joint(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[spec.joints // 2] = (np.inf, -np.inf)


def _beyond_the_limit(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[-1, 1] = -2 * MAX_COORDINATE


def _outlier(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[-1] = (1e5, -3e4)


def _one_place(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[:] = joints[:1].copy()


def _just_enough_visible(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    _visible(spec, confidence, spec.min_visible)


def _one_visible_too_few(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    _visible(spec, confidence, spec.min_visible - 1)


def _nan_confidence(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    confidence[spec.joints // 3] = np.nan


def _confidence_out_of_range(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    confidence[: min(4, spec.joints)] = (-1.0, 2.0, np.inf, -np.inf)[: min(4, spec.joints)]


def _no_root_no_axis(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[[spec.skeleton.root, spec.skeleton.axis]] = np.nan


def _root_on_axis(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[spec.skeleton.axis] = joints[spec.skeleton.root]


def _tiny_pose(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[:] = joints.mean(0) + (joints - joints.mean(0)) / np.abs(joints - joints.mean(0)).max()


def _nothing_there(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    joints[:] = np.nan
    confidence[:] = 0


def _confidence_at_threshold(spec: ModelSpec, joints: Image, confidence: Image) -> None:
    confidence[::2] = np.float32(spec.threshold)


_AWKWARD: tuple[Callable[[ModelSpec, Image, Image], None], ...] = (
    _all_masked,
    _none_masked,
    _nan_joint,
    _infinite_joint,
    _beyond_the_limit,
    _outlier,
    _one_place,
    _just_enough_visible,
    _one_visible_too_few,
    _nan_confidence,
    _confidence_out_of_range,
    _no_root_no_axis,
    _root_on_axis,
    _tiny_pose,
    _nothing_there,
    _confidence_at_threshold,
)


def _empty_map(maps: Image) -> None:
    maps[0] = 0


def _all_empty(maps: Image) -> None:
    maps[:] = 0


def _nan_pixel(maps: Image) -> None:
    maps[1, -1, -1] = np.nan


def _infinite_pixel(maps: Image) -> None:
    maps[1, 0, 0] = np.inf


def _masked_pixels(maps: Image) -> None:
    maps[1, 0] = -np.inf


def _nan_everywhere(maps: Image) -> None:
    maps[:] = np.nan


def _negative(maps: Image) -> None:
    maps[-1] = -np.abs(maps[-1])


def _corner(maps: Image) -> None:
    maps[1] = 0
    maps[1, 0, 0] = 1


def _percent(maps: Image) -> None:
    maps *= 10


_AWKWARD_MAPS: tuple[Callable[[Image], None], ...] = (
    _empty_map,
    _all_empty,
    _nan_pixel,
    _infinite_pixel,
    _masked_pixels,
    _nan_everywhere,
    _negative,
    _corner,
    _percent,
)
