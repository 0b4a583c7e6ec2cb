# SPDX-License-Identifier: Apache-2.0
"""A detector of the family with a checkpoint, read as any other detector: its graph, and itself in PyTorch to ask.

May use: options, source, nn.detectors, errors, torch. Test: tests/test_export_family.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.detector.source import Source, from_bytes
from port_deploy.nn.detectors import DETECTORS, Detector, export_detector_onnx, load_detector
from port_deploy.nn.detectors.family import member
from port_deploy.nn.detectors.spec import Target

TARGETS: dict[str, Target] = {"corner": "msra", "udp": "udp"}
"""What a scale is called where labels are encoded."""


def family_source(options: DetectorOptions) -> Source:
    """Load the checkpoint and export the detector.

    Raises:
        InputError: No such detector, no checkpoint, or an option that a checkpoint decides.
        ModelFileError: The checkpoint is not one of this detector.
    """
    try:
        name, _ = member(options.source)
    except InputError as error:
        names = ", ".join(DETECTORS)
        raise InputError(f"no detector {options.source!r}: expected an .onnx file or one of {names}") from error
    if options.checkpoint is None:
        raise InputError(
            f"detector {name} needs its weights: add --checkpoint FILE.pth, of MMPose's model zoo or yours"
        )
    fixed = {
        "--detector-layout": options.layout,
        "--image-values": options.values,
        "--detector-output": options.outputs,
    }
    for flag, value in fixed.items():
        if value:
            raise InputError(f"{flag} is known of detector {name}: leave it out")
    if options.scale == "half-pixel":
        raise InputError(
            f"detector {name} has --detector-scale corner or udp, as it was trained: half-pixel is neither"
        )
    detector = load_detector(
        name,
        options.checkpoint,
        skeleton=options.joints,
        input_size=options.image_size,
        target=TARGETS.get(options.scale or ""),
    )
    spec = detector.spec
    source = from_bytes(export_detector_onnx(detector), name, DetectorOptions(name))
    metadata = {
        "joint_names": json.dumps(spec.skeleton.names),
        "port_deploy.scale": "udp" if spec.target == "udp" else "corner",
    }

    def lower(precision: str) -> Any:
        return from_bytes(export_detector_onnx(detector, precision=precision), name, DetectorOptions(name)).proto

    digest = hashlib.sha256(Path(options.checkpoint).read_bytes()).hexdigest()
    return replace(source, sha256=digest, metadata=metadata, in_pytorch=_InTorch(detector), lower=lower)


class _InTorch:
    """The detector in PyTorch, asked as `head.Alone` is."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def __call__(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            answers = self.detector(torch.from_numpy(np.array(images)))
        return {n: a.numpy() for n, a in zip(self.detector.spec.output_names, answers, strict=True)}
