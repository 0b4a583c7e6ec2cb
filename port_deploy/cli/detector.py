# SPDX-License-Identifier: Apache-2.0
"""The options of port-export about a detector in front.

May use: export, detector_info, errors. Test: tests/test_export_detector.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from port_deploy.detector_info import Layout, Scale, ScoreRule, Values
from port_deploy.errors import InputError
from port_deploy.export import DetectorOptions
from port_deploy.export.quantize import MODES

_OTHERS = (
    "checkpoint",
    "detector_output",
    "detector_joints",
    "detector_layout",
    "detector_scale",
    "simcc_score",
    "image_values",
    "image_size",
    "verify_images",
    "quantize",
    "calibration",
)


def add_options(parser: argparse.ArgumentParser, size: Callable[[str], tuple[int, ...]]) -> None:
    """Add them, in a group of their own; ``size`` reads H,W."""
    group = parser.add_argument_group(
        "a detector in front",
        "With --detector the artefact takes image crops: detector, decode and PORT are one ONNX graph, or one engine.",
    )
    group.add_argument("--detector", metavar="FILE.onnx|NAME", help="an ONNX file with heatmap or SimCC outputs, or a "
                       "detector of the family (with --checkpoint)")  # fmt: skip
    group.add_argument("--checkpoint", metavar="FILE.pth", help="MMPose weights of the named detector")
    group.add_argument("--detector-output", type=_names, default=(), metavar="NAME[,NAME]", help="its heatmap output, "
                       "or SimCC's x and y; found unless given")  # fmt: skip
    group.add_argument("--detector-joints", metavar="JOINTS", help="its joint names in channel order: a bundled "
                       "skeleton, a JSON file, or names with commas; from its metadata unless given")  # fmt: skip
    group.add_argument("--detector-layout", choices=get_args(Layout), help="of its heatmaps; found unless given")
    group.add_argument("--detector-scale", choices=get_args(Scale), help="heatmap to crop pixels: half-pixel, x to "
                       "(x+0.5)f-0.5, the usual for heatmaps; corner, x to xf, MMPose's and SimCC's; udp, x to "
                       "x(W-1)/(w-1)")  # fmt: skip
    group.add_argument("--simcc-score", choices=get_args(ScoreRule), help="SimCC's confidence from the two peaks; min "
                       "unless given")  # fmt: skip
    group.add_argument("--image-values", choices=get_args(Values), help="what it reads: RGB in 0..1 (unless given), in "
                       "0..255, or normalised as for ImageNet")  # fmt: skip
    group.add_argument("--image-uint8", action="store_true", help="crops are uint8; the graph makes --image-values of "
                       "them itself")  # fmt: skip
    group.add_argument("--image-size", type=size, metavar="H,W", help="of the crops, where the file leaves it open")
    group.add_argument("--verify-images", metavar="PATH", help="photographs to verify on beside random images: a "
                       "picture, a folder, or an .npy of uint8 crops")  # fmt: skip
    group.add_argument("--quantize", choices=MODES, help="inside the detector, from the ranges of --calibration; "
                       "decode and PORT stay in floating point")  # fmt: skip
    group.add_argument("--calibration", metavar="PATH", help="photographs likewise, or an .npz with images: 100 to 500 "
                       "of the kind that the detector will see")  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def detector_options(arguments: argparse.Namespace) -> DetectorOptions | None:
    """What was asked for; None without --detector.

    Raises:
        InputError: An option makes no sense, or goes with a --detector that is not there.
    """
    if arguments.detector is None:
        for name in (*_OTHERS, "image_uint8"):
            if getattr(arguments, name):
                raise InputError(f"--{name.replace('_', '-')} says something of a detector: add --detector")
        return None
    return DetectorOptions(
        source=arguments.detector,
        checkpoint=arguments.checkpoint,
        outputs=arguments.detector_output,
        joints=arguments.detector_joints,
        layout=arguments.detector_layout,
        scale=arguments.detector_scale,
        score=arguments.simcc_score or "min",
        values=arguments.image_values,
        uint8=arguments.image_uint8,
        image_size=arguments.image_size,
        images=arguments.verify_images,
        quantize=arguments.quantize,
        calibration=arguments.calibration,
    )
