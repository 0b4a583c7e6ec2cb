# SPDX-License-Identifier: Apache-2.0
"""What may be said about a detector that its file does not say. May use: detector_info, errors.

Test: tests/test_export_detector.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from port_deploy.detector_info import MAX_SIDE, Layout, Scale, ScoreRule, Values
from port_deploy.errors import InputError
from port_deploy.export.quantize import Mode


@dataclass(frozen=True)
class DetectorOptions:
    """Which detector, and what is known of it; None: found in the file, or the usual.

    Attributes:
        source: An ``.onnx`` file, or a name of the family of detectors (with ``checkpoint``).
        checkpoint: The weights of a detector of the family.
        outputs: Names of the heatmap output, or of SimCC's x and y.
        joints: Joint names in channel order: a bundled skeleton, a JSON file, or names with commas.
        layout: Of the heatmaps, ``nchw`` or ``nhwc``.
        scale: Heatmap to crop pixels; see `DetectorInfo`.
        score: SimCC's confidence from its two peaks.
        values: What the detector reads: RGB in 0..1, in 0..255, or normalised as for ImageNet.
        uint8: The graph takes uint8 crops and turns them into ``values`` itself.
        image_size: (H, W) of the crops, where the file leaves it open.
        images: A file or folder of photographs (or an ``.npy``) to verify on, beside random images.
        quantize: ``int8`` or ``fp8`` inside the detector, from the ranges of ``calibration``.
        calibration: Photographs likewise (or an ``.npz`` with ``images``).
    """

    source: str
    checkpoint: str | None = None
    outputs: tuple[str, ...] = ()
    joints: str | None = None
    layout: Layout | None = None
    scale: Scale | None = None
    score: ScoreRule = "min"
    values: Values | None = None
    uint8: bool = False
    image_size: tuple[int, int] | None = None
    images: str | None = None
    quantize: Mode | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (
            ("layout", self.layout, Layout),
            ("scale", self.scale, Scale),
            ("score", self.score, ScoreRule),
            ("values", self.values, Values),
            ("quantize", self.quantize, Mode),
        ):
            if value not in (None, *get_args(kind)):
                raise InputError(f"unknown detector {name} {value!r}: use one of {', '.join(get_args(kind))}")
        if (self.quantize is None) != (self.calibration is None):
            raise InputError("--quantize finds its ranges on --calibration images: give both")
        if len(self.outputs) > 2:
            raise InputError(f"expected one heatmap output or SimCC's x and y, got {', '.join(self.outputs)}")
        if self.image_size is not None and not all(8 <= v <= MAX_SIDE for v in self.image_size):
            raise InputError(f"expected an image size H,W from 8 to {MAX_SIDE}, got {self.image_size}")
        if self.is_file and self.checkpoint is not None:
            raise InputError("--checkpoint goes with a named detector: an .onnx holds its weights already")

    @property
    def is_file(self) -> bool:
        """The detector is an ONNX file, not a name of the family."""
        return Path(self.source).suffix == ".onnx"
