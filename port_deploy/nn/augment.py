# SPDX-License-Identifier: Apache-2.0
"""Poses as a camera may see them: random views of 3D poses, turns of 2D ones, mirroring. All randomness by generator.

Poses come and go as [B, N, 2] with y down, centred, with a root-mean-square coordinate of 1 over the labelled joints.
May use: nn.data, skeleton, torch. Test: tests/test_data.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from port_deploy.nn.data import Source
from port_deploy.skeleton import Skeleton

NEAREST, FARTHEST = 4.0, 40.0
"""Distance of the camera in sizes (root-mean-square coordinate) of the pose: a body at 1.5 to 15 m; the farthest is as
good as weak perspective."""


def rotation(axis: int, angle: Tensor) -> Tensor:
    """Matrices [B, 3, 3] that turn by ``angle`` [B] radians about x (0), y (1) or z (2)."""
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.zeros(len(angle), 3, 3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, axis, axis] = 1.0
    matrix[:, i, i] = matrix[:, j, j] = cos
    matrix[:, j, i], matrix[:, i, j] = sin, -sin
    return matrix


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Uniform rotations [B, 3, 3], from normal quaternions."""
    q = torch.randn(count, 4, generator=generator)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(r, -1) for r in rows], -2)


def project(points: Tensor, distance: Tensor) -> Tensor:
    """Perspective view along -z of poses around the origin: [B, N, 3] with y up, camera at z = ``distance`` [B].

    Returns:
        [B, N, 2] with y down; a point in the plane of the origin keeps its size.
    """
    depth = (1.0 - points[..., 2] / distance[:, None]).clamp(min=0.2)
    return torch.stack([points[..., 0], -points[..., 1]], -1) / depth.unsqueeze(-1)


def view(points: Tensor, upright: bool, generator: torch.Generator) -> Tensor:
    """A random camera's picture [B, N, 2] of poses [B, N, 3]: from around and tilted, anyhow if not ``upright``."""
    count = len(points)
    if upright:
        yaw = rotation(1, torch.rand(count, generator=generator) * 2 * math.pi)
        pitch = rotation(0, torch.randn(count, generator=generator) * 0.25)
        roll = rotation(2, torch.randn(count, generator=generator) * 0.15)
        turn = roll @ pitch @ yaw
    else:
        turn = random_rotations(count, generator)
    low, high = math.log(NEAREST), math.log(FARTHEST)
    distance = torch.exp(low + (high - low) * torch.rand(count, generator=generator))
    return project(points @ turn.transpose(-1, -2), distance)


def turn_flat(points: Tensor, upright: bool, generator: torch.Generator) -> Tensor:
    """2D poses [B, N, 2] turned, a little if ``upright``, anyhow if not, and stretched by some per cent."""
    count = len(points)
    angle = torch.randn(count, generator=generator) * 0.2
    if not upright:
        angle = torch.rand(count, generator=generator) * 2 * math.pi
    stretch = torch.exp(torch.randn(count, 1, 2, generator=generator) * 0.06)
    return (points * stretch) @ rotation(2, angle)[:, :2, :2].transpose(-1, -2)


def mirror(joints: Tensor, labelled: Tensor, skeleton: Skeleton, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every second pose mirrored left to right; its left and right joints change places (a hand has no such pairs)."""
    flip = torch.rand(len(joints), generator=generator) < 0.5
    order = torch.from_numpy(skeleton.mirror_permutation())
    flipped = joints[:, order] * torch.tensor([-1.0, 1.0])
    return (
        torch.where(flip[:, None, None], flipped, joints),
        torch.where(flip[:, None], labelled[:, order], labelled),
    )


def normalise(joints: Tensor, labelled: Tensor) -> Tensor:
    """Centre [B, N, 2] and scale to a root-mean-square coordinate of 1 over the labelled joints; others become 0."""
    weight = labelled.unsqueeze(-1).to(joints.dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1.0)
    centred = (joints - (joints * weight).sum(1, keepdim=True) / count) * weight
    size = (centred.square().sum((1, 2), keepdim=True) / (2.0 * count)).sqrt()
    return centred / size.clamp(min=1e-6)


def draw(source: Source, index: Tensor, skeleton: Skeleton, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The poses ``index`` [B] of a source as a random camera sees them: joints [B, N, 2] and labelled [B, N]."""
    points, labelled = source.points[index], source.labelled[index]
    upright = bool(skeleton.mirror)
    seen = view if points.shape[-1] == 3 else turn_flat
    joints, labelled = mirror(seen(points, upright, generator), labelled, skeleton, generator)
    return normalise(joints, labelled), labelled


def draw_batch(
    sources: list[Source], batch: int, skeleton: Skeleton, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A training batch from the mixture of sources: joints [B, N, 2] and labelled [B, N]."""
    weights = torch.tensor([s.weight for s in sources])
    chosen = torch.multinomial(weights, batch, replacement=True, generator=generator)
    parts = []
    for i, source in enumerate(sources):
        count = int((chosen == i).sum())
        if count:
            pick = torch.randint(len(source.training), (count,), generator=generator)
            parts.append(draw(source, source.training[pick], skeleton, generator))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
