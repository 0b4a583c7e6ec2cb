# SPDX-License-Identifier: Apache-2.0
"""A detector in front of PORT with INT8 or FP8 inside; decode and PORT stay as they are.

It is quantized alone, before it is joined, so that nothing behind its heatmaps can be. What the graph is then verified
against is the quantized detector apart; how far that lies from the detector as it was is measured on images that the
ranges were not taken from, and told. May use: apart, head, quantize, detector_info, errors.
Test: tests/test_quantize.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from port_deploy.detector_info import DetectorInfo
from port_deploy.errors import InputError, VerificationError
from port_deploy.export.detector.apart import Apart, load_photographs
from port_deploy.export.detector.head import Alone, raw_images
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.detector.source import Source
from port_deploy.export.quantize import MIN_IMAGES, quantize_detector
from port_deploy.verify_images import SURE, ImageProblem
from port_deploy.weights import Model

MAX_IMAGES = 512
"""Calibration images that are used: more add nothing but time."""

HELD_OUT = 5
"""Every so many images are kept from calibration, to measure on."""

_SEED = 21


def quantized(
    source: Source, alone: Alone, info: DetectorInfo, given: DetectorOptions, model: Model, bound: float | None = None
) -> tuple[Source, Alone, DetectorInfo, str]:
    """Quantize a detector that is understood.

    Args:
        source: The detector.
        alone: The same in ONNX Runtime.
        info: Its description.
        given: With ``quantize`` and ``calibration``.
        model: The refiner behind it.
        bound: Largest way that a joint may move, crop pixels; None: any, it is only told.

    Returns:
        The quantized detector, the same in ONNX Runtime, its description, and what quantization costs, in a line.

    Raises:
        InputError: Too few images, or a detector that cannot be quantized.
        VerificationError: A joint that it is sure of moves further than the bound.
    """
    assert given.quantize is not None  # DetectorOptions saw to both
    assert given.calibration is not None
    if info.precision != "fp32":
        raise InputError(f"expected a float32 detector to quantize, got {info.precision}: export it in float32")
    images = load_photographs(given.calibration, info.image_size, MAX_IMAGES)
    held = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    if len(images) - held.sum() < MIN_IMAGES:
        raise InputError(
            f"expected at least {MIN_IMAGES * HELD_OUT // (HELD_OUT - 1)} calibration images in {given.calibration}, "
            f"got {len(images)}: 100 to 500 of the kind that the detector will see are usual"
        )
    raw = raw_images(images[~held], source, info.values)
    proto = quantize_detector(source.proto, given.quantize, raw, info.outputs)
    after = replace(source, proto=proto, lower=None, in_pytorch=None)  # from here on it is this graph
    there = Alone(after)
    info = replace(info, quantized=given.quantize)
    first, second = (
        Apart(a, s, info, model).problems(images[held], _SEED)[0] for a, s in ((alone, source), (there, after))
    )
    return after, there, info, _cost(first, second, given, len(raw), bound)


def _cost(before: ImageProblem, after: ImageProblem, given: DetectorOptions, count: int, bound: float | None) -> str:
    """How far the quantized detector's own joints lie from the detector's, crop pixels."""
    confidence = before.confidence
    sure = confidence >= min(SURE, float(np.quantile(confidence, 0.9)))
    sure &= ~before.mask & ~after.mask  # a joint that PORT rebuilt is not the detector's
    moved = np.linalg.norm(before.joints - after.joints, axis=-1)[sure]
    moved = moved[np.isfinite(moved)]
    name = Path(given.calibration or "").name
    told = f"{(given.quantize or '').upper()} from {count} images of {name}"
    if not len(moved):
        return f"{told}; the detector is sure of no joint in the others, so what it costs is not known"
    if bound is not None and moved.max() > bound:
        raise VerificationError(
            f"{told} moves joints by up to {moved.max():.2g} px, allowed are {bound:g} px: give other --calibration "
            "images, allow more with --max-px-error, or leave out --quantize"
        )
    return (
        f"{told}; on the other {len(before.joints)}, the {len(moved)} joints that the detector is sure of move by "
        f"{moved.mean():.2g} px in the mean and {moved.max():.2g} px at most"
    )
