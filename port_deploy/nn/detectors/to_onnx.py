# SPDX-License-Identifier: Apache-2.0
"""A detector alone as an ONNX file: ``image`` in, ``heatmaps`` or ``simcc_x`` and ``simcc_y`` out, any batch.

May use: detector, nn.onnx_graph, errors, torch. Test: tests/test_detectors_onnx.py.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from port_deploy.errors import InputError
from port_deploy.nn.detectors.detector import Detector
from port_deploy.nn.onnx_graph import OPSET, onnx_graph

ImageKind = Literal["uint8", "float32"]
"""What goes in: uint8 [B, H, W, 3] or float32 [B, 3, H, W], RGB in 0..255."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

BF16_OPSET = 22
"""The first in which a convolution takes bfloat16."""

IMAGE = "image"
"""Name of the input."""

_EXAMPLES = 2  # not 1: torch.export takes a dimension of 1 for a constant


def export_detector_onnx(detector: Detector, *, precision: str = "fp32", image: ImageKind = "uint8") -> bytes:
    """Export a detector.

    Args:
        detector: As `load_detector` gives it; unchanged. Its flip test is in the graph where it is on.
        precision: Of the convolutions: ``fp32``, ``fp16`` or ``bf16``. Input, normalisation, outputs, what follows
            the first convolution of a SimCC head and, in bf16, a head with deconvolutions keep their types.
        image: What the input ``image`` is: ``uint8`` [B, H, W, 3] or ``float32`` [B, 3, H, W]; RGB in 0..255.

    Returns:
        A serialised ONNX model: inputs ``image``, outputs `DetectorSpec.output_names` in float32, B free, batch
        normalisation folded into the convolutions.

    Raises:
        InputError: An option is unusable.
        BackendUnavailableError: onnx or onnxscript is not installed.
        ExportError: The exporter refuses the graph.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: use {', '.join(PRECISIONS)}")
    if image not in get_args(ImageKind):
        raise InputError(f"unknown image {image!r}: use {' or '.join(get_args(ImageKind))}")
    height, width = detector.spec.input_size
    if image == "uint8":
        example = torch.zeros((_EXAMPLES, height, width, 3), dtype=torch.uint8)
    else:
        example = torch.zeros((_EXAMPLES, 3, height, width))
    module = detector.lowered(PRECISIONS[precision])
    names = detector.spec.output_names
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    opset = BF16_OPSET if precision == "bf16" else OPSET
    proto, _ = onnx_graph(module, (example,), (IMAGE,), names, shapes, {0: "B"}, opset)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
