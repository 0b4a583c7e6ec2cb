# SPDX-License-Identifier: Apache-2.0
"""A detector's ONNX graph with explicit quantization: QuantizeLinear and DequantizeLinear around what computes most.

TensorRT 10 and 11, TensorRT-RTX and ONNX Runtime all read it, and none decides for itself what becomes INT8. Inputs and
weights of convolutions and matrix products are quantized (weights per channel, both symmetric, as TensorRT wants
them); sums, activations, biases, depthwise convolutions and what makes the heatmaps stay in floating point. Ranges come
from real images.
May use: errors, onnx, ONNX Runtime's quantizer, NVIDIA ModelOpt where it is installed. Test: tests/test_quantize.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.artefact import first_line
from port_deploy.errors import BackendUnavailableError, ExportError, InputError, missing_extra

Mode = Literal["int8", "fp8"]

MODES: tuple[Mode, ...] = ("int8", "fp8")

QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose inputs and weights are quantized."""

MIN_IMAGES = 8
"""Fewer say too little of the ranges."""

MIN_OPSET = 13
"""Of the first QuantizeLinear with a scale per channel."""


def quantize_detector(
    proto: Any, mode: Mode, images: NDArray[Any], outputs: tuple[str, ...], keep: tuple[str, ...] = ()
) -> Any:
    """Insert Q/DQ into a detector.

    Args:
        proto: Its ModelProto, one input, in float32.
        mode: ``int8``, or ``fp8`` (needs NVIDIA ModelOpt).
        images: [B, …] as the graph takes them: real ones, as many kinds as there are; 100 to 500 are usual.
        outputs: Names of the outputs that are used: the convolutions that make them stay in floating point.
        keep: Names of more nodes that stay.

    Returns:
        A new ModelProto with the same inputs and outputs.

    Raises:
        InputError: Too few images, or a graph that is quantized already or has nothing to quantize.
        BackendUnavailableError: The quantizer is not installed.
        ExportError: The quantizer refuses the graph.
    """
    if mode not in MODES:
        raise InputError(f"unknown quantization {mode!r}: use {' or '.join(MODES)}")
    import onnx

    name = check_quantizable(proto, images)
    given = onnx.ModelProto()
    given.CopyFrom(proto)
    for index, node in enumerate(given.graph.node):
        node.name = node.name or f"node{index}"  # the quantizers know nodes by their names
    proto, kept = given, [*keep, *_makers(given, outputs), *_depthwise(given)]
    with tempfile.TemporaryDirectory(prefix="port-quantize-") as temporary:
        target = Path(temporary) / "quantized.onnx"
        try:
            if mode == "int8":
                _with_onnxruntime(proto, name, images, kept, target)
            else:
                _with_modelopt(proto, name, images, kept, target)
            result = onnx.load(str(target))
            onnx.checker.check_model(result, full_check=True)
        except (BackendUnavailableError, InputError):
            raise
        except Exception as error:  # the quantizers' own exceptions share no base class
            raise ExportError(f"the detector could not be quantized ({first_line(error)}): export it anew") from error
    if not is_quantized(result):
        raise ExportError("the quantizer left the detector as it was: its convolutions have no constant weights")
    return result


def is_quantized(proto: Any) -> bool:
    """Whether a graph has explicit quantization."""
    return any(node.op_type == "QuantizeLinear" for node in proto.graph.node)


def check_quantizable(proto: Any, images: NDArray[Any]) -> str:
    """Find out whether a graph and its calibration images will do; returns the name of its input.

    Raises:
        InputError: They will not.
    """
    constants = {i.name for i in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"expected a detector with one input to quantize, got {len(inputs)}")
    if is_quantized(proto):
        raise InputError("the detector is quantized already: leave out --quantize")
    if not any(node.op_type in QUANTIZED for node in proto.graph.node):
        raise InputError(f"nothing to quantize: the detector has none of {', '.join(QUANTIZED)}")
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version < MIN_OPSET:
        raise InputError(
            f"expected a detector of opset {MIN_OPSET} or later to quantize, got {version}: export it anew"
        )
    if len(images) < MIN_IMAGES:
        raise InputError(f"expected at least {MIN_IMAGES} calibration images, got {len(images)}: 100 to 500 are usual")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise InputError("expected calibration images of finite values")
    return str(inputs[0].name)


def _makers(proto: Any, outputs: tuple[str, ...]) -> list[str]:
    """Names of the last quantizable nodes before the outputs, and of what upscales their answers."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    found, front, seen = [], list(outputs), set()
    while front:
        node = makers.get(front.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in QUANTIZED:
            found.append(str(node.name))
        if node.op_type not in QUANTIZED or node.op_type == "ConvTranspose":  # often the upscaling of the last one
            front += list(node.input)
    return found


def _depthwise(proto: Any) -> list[str]:
    """Names of the convolutions of one channel at a time: little work, and most of what quantization costs.

    EfficientPose II Lite, joints with a confidence above 0.3 on 12 crops: INT8 everywhere moves them by 2.5 px in the
    mean, without these by 0.7 px.
    """
    shapes = {i.name: tuple(i.dims) for i in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1 and shapes.get(node.input[1], (0, 0))[1] == 1:
            found.append(str(node.name))
    return found


def _with_onnxruntime(proto: Any, name: str, images: NDArray[Any], kept: list[str], target: Path) -> None:
    if find_spec("onnxruntime") is None:
        raise missing_extra("quantizing a detector", "export")
    from port_deploy.backends.onnxruntime_ import quantize_static

    source = target.with_name("source.onnx")  # from a ModelProto it would move the weights into files
    source.write_bytes(proto.SerializeToString())
    quantize_static(source, target, _feeds(name, images), QUANTIZED, kept)


def _feeds(name: str, images: NDArray[Any]) -> Iterator[Mapping[str, NDArray[Any]]]:
    """One image at a time: a detector may have a fixed batch."""
    for image in images:
        yield {name: image[None]}


def _with_modelopt(proto: Any, name: str, images: NDArray[Any], kept: list[str], target: Path) -> None:
    if find_spec("modelopt") is None:
        raise BackendUnavailableError('--quantize fp8 needs NVIDIA ModelOpt: pip install "nvidia-modelopt[onnx]"')
    from importlib import import_module

    source = target.with_name("source.onnx")
    source.write_bytes(proto.SerializeToString())
    import_module("modelopt.onnx.quantization").quantize(
        onnx_path=str(source),
        quantize_mode="fp8",
        calibration_data={name: images},
        calibration_method="max",
        nodes_to_exclude=kept,
        output_path=str(target),
    )
