# SPDX-License-Identifier: Apache-2.0
"""Test sets from true poses: what the simulated detector says of held-out poses, or of poses with square patches.

The patches are the paper's H36M_masked: squares of 30 pixels centred on joints, their number drawn from B(17, 0.02).
May use: nn.augment, nn.data, nn.detector_model, nn.simulated_detector, skeleton, errors, torch.
Test: tests/test_simulate.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from port_deploy.errors import InputError
from port_deploy.nn.augment import draw
from port_deploy.nn.data import DataSpec, check_hold_out, load_source
from port_deploy.nn.detector_model import detector_model
from port_deploy.nn.simulated_detector import Graph, simulate_detector
from port_deploy.skeleton import Skeleton

CROP = 256.0
"""Pixels of the picture's side."""
EXTENT = (0.55, 0.85)
"""Share of it that the pose's longer side takes."""
PATCH = 30.0
"""Side of a patch, pixels."""
PATCH_DRAWS, PATCH_RATE = 17, 0.02
FULL = 0.9
"""Confidence that the simulated detector gives where it is sure, before the model divides by it."""


def patched(joints: Tensor, generator: torch.Generator) -> Tensor:
    """Joints [B, N] under square patches: each pose has B(17, 0.02) of them, at random joints. Joints are in pixels."""
    batch, count = joints.shape[:2]
    number = (torch.rand(batch, PATCH_DRAWS, generator=generator) < PATCH_RATE).sum(1, keepdim=True)
    order = torch.rand(batch, count, generator=generator).argsort(-1).argsort(-1)
    centre = order < number  # [B, N]
    apart = (joints.unsqueeze(1) - joints.unsqueeze(2)).abs().amax(-1)  # [B, N, N]
    covered: Tensor = ((apart <= PATCH / 2) & centre.unsqueeze(1)).any(-1)
    return covered


def simulate(
    spec: DataSpec,
    skeleton: Skeleton,
    hold_out: Mapping[str, Sequence[float]],
    count: int,
    patches: bool = False,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays of a predictions file: held-out poses of a file as the simulated detector sees them.

    Args:
        spec: The file of poses.
        skeleton: Joints that are wanted.
        hold_out: Field of the file -> values; those poses are used, as training leaves them out.
        count: How many views.
        patches: Hide joints under square patches, and only poses that have one; else as training does.
        seed: Of everything random.
        note: Called with a line where the file has no label of some joint.

    Raises:
        InputError: The file cannot be used or has no such field, or ``count`` is not above 0.
    """
    if count < 1:
        raise InputError(f"expected at least 1 pose to simulate, got {count}")
    source = load_source(spec, skeleton, hold_out)
    check_hold_out(hold_out, [source])
    if not len(source.held_out):
        raise InputError(f"{spec.path}: no pose is held out: choose --hold-out values that the file has")
    if note and (gaps := source.gaps(skeleton)):
        note(gaps)
    generator = torch.Generator().manual_seed(seed)
    graph, detector = Graph.of(skeleton), detector_model(skeleton)
    parts: list[tuple[Tensor, ...]] = []
    done = 0
    while done < count:
        pick = source.held_out[torch.randint(len(source.held_out), (4096,), generator=generator)]
        joints, labelled = draw(source, pick, skeleton, generator)
        extent = _extent(joints, labelled)
        share = EXTENT[0] + (EXTENT[1] - EXTENT[0]) * torch.rand(len(joints), 1, 1, generator=generator)
        scale = CROP * share / extent
        covered = patched(joints * scale, generator) & labelled if patches else None
        detection = simulate_detector(joints, labelled, detector, graph, generator, covered)
        keep = covered.any(1) if covered is not None else torch.ones(len(joints), dtype=torch.bool)
        hidden = covered if covered is not None else torch.zeros_like(labelled)
        pixels, found = joints * scale + CROP / 2, detection.joints * scale + CROP / 2
        parts.append(tuple(v[keep] for v in (pixels, found, detection.confidence * FULL, labelled, hidden)))
        done += int(keep.sum())
    whole = [torch.cat(p)[:count].numpy() for p in zip(*parts, strict=True)]
    arrays: dict[str, NDArray[Any]] = dict(zip(("joints", "pred", "conf", "labelled"), whole[:4], strict=True))
    arrays["image_size"] = np.full((count, 2), CROP)
    arrays["names"] = np.array(skeleton.names)
    return arrays | ({"patched": whole[4]} if patches else {})


def _extent(joints: Tensor, labelled: Tensor) -> Tensor:
    """The longer side [B, 1, 1] of the labelled joints' box."""
    far = torch.tensor(float("inf"))
    low = torch.where(labelled.unsqueeze(-1), joints, far).amin(1)
    high = torch.where(labelled.unsqueeze(-1), joints, -far).amax(1)
    return (high - low).amax(-1).reshape(-1, 1, 1)
