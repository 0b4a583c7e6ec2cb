# SPDX-License-Identifier: Apache-2.0
"""A face for motion capture, which has none: nose, eyes and ears on a head of average measures, turned at random.

May use: errors, joint_names, NumPy. Test: tests/test_face.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.joint_names import canonical_name

NEEDED = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
"""Joints that place the head."""

FACE = {
    "nose": (0.0, -0.03, 0.31),
    "left_eye": (0.095, 0.07, 0.25),
    "right_eye": (-0.095, 0.07, 0.25),
    "left_ear": (0.21, 0.0, 0.0),
    "right_ear": (-0.21, 0.0, 0.0),
}
"""Where they lie from the middle between the ears, to the left, up and forward, in widths of the shoulders.

An adult's face, with 0.34 m between the shoulder joints: ears 14 cm apart, eyes 6.5 cm apart and 8.5 cm before them,
the nose's tip 10.5 cm before them."""

HEIGHT, FORWARD = 0.62, 0.08
"""The middle between the ears lies so far above and before that between the shoulders, in widths of the shoulders."""

HEIGHT_SPREAD, SIZE_SPREAD = 0.08, 0.08
"""Standard deviation of the logarithm of the height and of the face's size."""

YAW, PITCH, ROLL = 0.5, 0.25, 0.12
"""Standard deviation of the head's turns against the trunk, radians: to a side, nodding, tilting."""


def with_face(points: NDArray[np.float32], names: Sequence[str], seed: int) -> tuple[NDArray[np.float32], list[str]]:
    """Poses with nose, eyes and ears behind their other joints.

    Args:
        points: [M, n, 3], any unit, y up.
        names: [n].
        seed: Of the heads' turns and measures.

    Returns:
        [M, n + 5, 3], NaN where a shoulder or hip is not finite; and the names.

    Raises:
        InputError: Shoulders or hips are missing, or a joint of the face is there already.
    """
    known = [canonical_name(n) for n in names]
    lacking = [n for n in NEEDED if n not in known]
    if lacking:
        raise InputError(f"a face is placed by shoulders and hips, and there is no {lacking[0]}: leave :face out")
    twice = [n for n in FACE if n in known]
    if twice:
        raise InputError(f"there is a {twice[0]} already: leave :face out")
    random = np.random.default_rng(seed)
    left, right, left_hip, right_hip = (points[:, known.index(n)].astype(np.float64) for n in NEEDED)
    middle, width = (left + right) / 2, np.linalg.norm(left - right, axis=-1)[:, None, None]
    trunk = _axes(left - right, middle - (left_hip + right_hip) / 2)
    head = _turned(trunk, *(spread * random.standard_normal(len(points)) for spread in (YAW, PITCH, ROLL)))
    height = HEIGHT * np.exp(HEIGHT_SPREAD * random.standard_normal((len(points), 1, 1)))
    size = np.exp(SIZE_SPREAD * random.standard_normal((len(points), 1, 1)))
    offsets = np.array(list(FACE.values()))[None] * size @ head  # [M, 5, 3]
    neck = height * (trunk[:, 1:2] + head[:, 1:2]) / 2 + FORWARD * head[:, 2:3]
    face = middle[:, None] + width * (neck + offsets)
    return np.concatenate([points, face.astype(np.float32)], 1), [*names, *FACE]


def _axes(across: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows left, up, forward [M, 3, 3] of trunks from their shoulders [M, 3] and spines [M, 3]; orthonormal."""
    left = across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-12)
    up = up - (up * left).sum(-1, keepdims=True) * left
    up = up / np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-12)
    return np.stack([left, up, np.cross(left, up)], 1)


def _turned(
    axes: NDArray[np.float64], yaw: NDArray[np.float64], pitch: NDArray[np.float64], roll: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The rows of ``axes`` [M, 3, 3] turned about up, then left, then forward by angles [M] in radians."""
    for (first, second), angle in (((2, 0), yaw), ((1, 2), pitch), ((0, 1), roll)):
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = axes[:, first].copy(), axes[:, second].copy()
        axes = axes.copy()
        axes[:, first], axes[:, second] = cos * a + sin * b, cos * b - sin * a
    return axes
