# SPDX-License-Identifier: Apache-2.0
"""What a detector takes and gives: sizes, joints, normalisation, and how its answers become coordinates.

May use: errors, skeleton, NumPy. Test: tests/test_detectors.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.skeleton import MAX_JOINTS, Skeleton

Target = Literal["msra", "udp", "simcc"]
"""How labels were encoded in training, which decides what a coordinate of the output means."""

STRIDE = 4
"""Crop pixels to a heatmap pixel."""

SPLIT_RATIO = 2.0
"""Bins of a SimCC vector to a crop pixel."""

MAX_SIDE = 2048

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

SKELETONS = {21: "hand21", 17: "coco17", 16: "mpii16"}
"""The skeleton of a checkpoint by its number of joints, where none is named."""


@dataclass(frozen=True)
class DetectorSpec:
    """A detector of the family.

    Attributes:
        name: Its name in the family, e.g. ``hrnet_w32``.
        skeleton: Its joints, in the order of its channels.
        input_size: (H, W) of the crops in pixels, multiples of 32.
        target: ``msra`` and ``udp``: heatmaps, whose pixel i lies at i * W_crop / W, or at i * W_crop / (W - 1), of the
            crop; ``simcc``: a vector for each axis, whose bin i lies at i / split_ratio. The wrong one of the first two
            costs up to a heatmap pixel and more.
        split_ratio: Bins of a SimCC vector to a crop pixel.
        mean: Of R, G and B in 0..255, subtracted in the graph.
        std: Of R, G and B in 0..255, divided by in the graph.
        source: Names of the MMPose configurations whose checkpoints fit.
    """

    name: str
    skeleton: Skeleton
    input_size: tuple[int, int]
    target: Target = "msra"
    split_ratio: float = SPLIT_RATIO
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    source: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.input_size) != 2 or not all(
            isinstance(v, int) and 32 <= v <= MAX_SIDE and v % 32 == 0 for v in self.input_size
        ):
            raise InputError(
                f"expected an input size (H, W) of multiples of 32 up to {MAX_SIDE}, got {self.input_size!r}"
            )
        if self.target not in get_args(Target):
            raise InputError(f"unknown target {self.target!r}: use {', '.join(get_args(Target))}")

    @property
    def joints(self) -> int:
        """N."""
        return len(self.skeleton.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """``("heatmaps",)`` or ``("simcc_x", "simcc_y")``."""
        return ("simcc_x", "simcc_y") if self.target == "simcc" else ("heatmaps",)

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs of one crop: ``((N, H, W),)``, or ``((N, bins_x), (N, bins_y))``."""
        height, width = self.input_size
        if self.target == "simcc":
            return (self.joints, round(width * self.split_ratio)), (self.joints, round(height * self.split_ratio))
        return ((self.joints, height // STRIDE, width // STRIDE),)

    def to_crop(self) -> NDArray[np.float32]:
        """[2, 3] that takes a decoded coordinate (heatmap pixels; crop pixels for SimCC) to crop pixels."""
        affine = np.eye(2, 3, dtype=np.float32)
        if self.target != "simcc":
            height, width = self.input_size
            less = 1 if self.target == "udp" else 0
            affine[0, 0] = width / (width // STRIDE - less)
            affine[1, 1] = height / (height // STRIDE - less)
        return affine


def choose_skeleton(joints: int, skeleton: str | Skeleton | None) -> Skeleton:
    """The skeleton of a detector with ``joints`` channels.

    Args:
        joints: N of its last layer.
        skeleton: A name, file or `Skeleton` with as many joints in the order of the channels. None: hand21 for 21
            channels, coco17 for 17 (Human3.6M has as many: name ``h36m17``), mpii16 for 16.

    Raises:
        InputError: It has another number of joints, or none is known for that number.
    """
    if skeleton is None:
        if joints not in SKELETONS:
            known = ", ".join(f"{n} ({name})" for n, name in SKELETONS.items())
            raise InputError(
                f"expected a detector with {known} joints, got {joints}: name a skeleton with {joints} joints "
                f"(at most {MAX_JOINTS}) in the order of its channels"
            )
        skeleton = SKELETONS[joints]
    chosen = skeleton if isinstance(skeleton, Skeleton) else Skeleton.load(skeleton)
    if len(chosen.names) != joints:
        raise InputError(
            f"expected a skeleton of {joints} joints, as the detector has channels, got {chosen.name!r} with "
            f"{len(chosen.names)}: choose another skeleton"
        )
    return chosen
