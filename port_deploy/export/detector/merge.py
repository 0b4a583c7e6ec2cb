# SPDX-License-Identifier: Apache-2.0
"""Two ONNX graphs joined into one: the detector, then what `nn.detector_line` makes of its outputs.

Names begin with ``lead/`` (what is done to uint8 crops), ``detector/`` or ``port/``, so that nothing can collide; only
the inputs and outputs have their plain names. May use: detector_info, source, head, onnx, NumPy.
Test: tests/test_export_detector.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from port_deploy.backends.artefact import first_line
from port_deploy.detector_info import IMAGENET_MEAN, IMAGENET_STD, DetectorInfo
from port_deploy.errors import ExportError
from port_deploy.export.detector.head import Head
from port_deploy.export.detector.source import IR_VERSION, Source
from port_deploy.sidecar import INPUTS, OUTPUTS, STD

RAW = {"heatmaps": ("heatmaps",), "simcc": ("simcc_x", "simcc_y")}
"""Names of the detector's outputs as the second graph's inputs."""

_LEAD, _DETECTOR, _PORT = "lead/", "detector/", "port/"


def opset_of(proto: Any) -> int:
    """Version of the standard operators in a graph."""
    return next(int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx"))


def merge(detector: Any, tail: Any, source: Source, head: Head, info: DetectorInfo, threshold: float) -> Any:
    """Join the graphs.

    Args:
        detector: ModelProto of the detector, in its final precision.
        tail: ModelProto of what follows: inputs RAW, affine, threshold; outputs joints, confidence, mask, perhaps std.
        source: The detector as it was read.
        head: Its outputs that are used.
        info: What the artefact's sidecar will say.
        threshold: Default of the threshold.

    Returns:
        The joined ModelProto, checked.

    Raises:
        ExportError: ONNX's checker refuses it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image, affine, delta = INPUTS["image"]
    types = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
    ends = {*OUTPUTS["image"], STD, affine, delta}
    first = onnx.compose.add_prefix(detector, _DETECTOR)
    second = onnx.compose.add_prefix(_at_opset(tail, opset_of(detector)), _PORT)
    _rename(second.graph, {f"{_PORT}{name}": name for name in ends})
    casts = [  # a detector may answer float16 or float64
        helper.make_node(
            "Cast", [f"{_DETECTOR}{output}"], [f"{_PORT}{raw}"], name=f"{_PORT}{raw}", to=TensorProto.FLOAT
        )
        for raw, output in zip(RAW[head.kind], head.outputs, strict=True)
    ]
    lead: tuple[list[Any], list[Any]] = ([], [])
    if info.image_type == source.dtype:
        _rename(first.graph, {f"{_DETECTOR}{source.image}": image})
    else:
        lead = _lead(info, f"{_DETECTOR}{source.image}", types[source.dtype])
    joints = len(info.order)
    outputs = [
        helper.make_tensor_value_info("joints", TensorProto.FLOAT, ["B", joints, 2]),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["B", joints]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, ["B", joints]),
    ]
    if any(o.name == STD for o in tail.graph.output):
        outputs.append(helper.make_tensor_value_info(STD, TensorProto.FLOAT, ["B", joints]))
    graph = helper.make_graph(
        [],
        "port_deploy",
        [
            helper.make_tensor_value_info(image, types[info.image_type], ["B", *info.image_shape]),
            helper.make_tensor_value_info(affine, TensorProto.FLOAT, ["A", 2, 3]),  # A: B, or 1 for all
            helper.make_tensor_value_info(delta, TensorProto.FLOAT, [1]),
        ],
        outputs,
    )
    graph.initializer.extend(lead[1])
    for part, before in ((first.graph, lead[0]), (second.graph, casts)):
        graph.node.extend(before)
        graph.node.extend(part.node)
        graph.initializer.extend(part.initializer)
        graph.sparse_initializer.extend(part.sparse_initializer)
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    if info.image_type == "uint8":
        _cast_first(graph, image)
    _prune(graph)
    imports = {o.domain: o.version for model in (first, second) for o in model.opset_import}
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION if not first.functions else max(IR_VERSION, first.ir_version),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in imports.items()],
        producer_name="port_deploy",
        functions=list(first.functions),
    )
    for name, default in ((affine, np.eye(2, 3)[None]), (delta, np.array([threshold]))):  # may be left out
        model.graph.initializer.append(numpy_helper.from_array(default.astype(np.float32), name))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise ExportError(
            f"detector {source.name} could not be joined to PORT ({first_line(error)}): export the detector again"
        ) from error
    return model


def _at_opset(proto: Any, version: int) -> Any:
    """Both graphs have one version of the operators: the detector's, which is the later one."""
    import onnx

    return proto if opset_of(proto) == version else onnx.version_converter.convert_version(proto, version)


def _lead(info: DetectorInfo, target: str, dtype: int) -> tuple[list[Any], list[Any]]:
    """Nodes that turn uint8 crops into what the detector reads, and their initializers."""
    from onnx import TensorProto, helper, numpy_helper

    mean, deviation = np.zeros(3), np.full(3, 1.0)
    if info.values != "byte":
        deviation = deviation * 255
    if info.values == "imagenet":
        mean, deviation = np.array(IMAGENET_MEAN) * 255, np.array(IMAGENET_STD) * 255
    shape = (1, 1, 1, 3) if info.image_layout == "nhwc" else (1, 3, 1, 1)
    constants = {f"{_LEAD}mean": mean, f"{_LEAD}deviation": deviation}
    initializers = [numpy_helper.from_array(v.astype(np.float32).reshape(shape), n) for n, v in constants.items()]
    nodes = [
        helper.make_node("Cast", ["image"], [f"{_LEAD}image"], name=f"{_LEAD}cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", [f"{_LEAD}image", f"{_LEAD}mean"], [f"{_LEAD}centred"], name=f"{_LEAD}centre"),
        helper.make_node("Div", [f"{_LEAD}centred", f"{_LEAD}deviation"], [f"{_LEAD}scaled"], name=f"{_LEAD}scale"),
        helper.make_node("Cast", [f"{_LEAD}scaled"], [target], name=f"{_LEAD}lead", to=dtype),
    ]
    return nodes, initializers


_MOVES = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Slice", "Gather"})
"""Operators that only move values about."""


def _cast_first(graph: Any, image: str) -> None:
    """Turn uint8 crops into floats before they are moved about: TensorRT takes uint8 for nothing but a Cast.

    Done only where every path from the image leads over _MOVES to a Cast: then the values are the same.
    """
    from onnx import TensorProto, helper

    reached = [image]
    for name in reached:
        for node in graph.node:
            if name not in node.input or node.op_type == "Cast":
                continue
            if node.op_type not in _MOVES or node.input[0] != name or node.domain:
                return
            reached.append(node.output[0])
    for node in graph.node:
        node.input[:] = [f"{_LEAD}real" if n == image else n for n in node.input]
    cast = helper.make_node("Cast", [image], [f"{_LEAD}real"], name=f"{_LEAD}real", to=TensorProto.FLOAT)
    nodes = [cast, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename tensors in a graph and in the graphs inside it."""
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _rename(inner, names)
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)


def _read(nodes: Sequence[Any]) -> set[str]:
    """Names that nodes read, those inside their graphs included."""
    found: set[str] = set()
    for node in nodes:
        found.update(n for n in node.input if n)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                found |= _read(inner.node) | {o.name for o in inner.output}
    return found


def _prune(graph: Any) -> None:
    """Drop what leads to none of the outputs: the detector's other heads."""
    wanted = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):  # a valid graph is sorted
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= _read([node])
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for field in (graph.initializer, graph.sparse_initializer):
        used = [i for i in field if (i.values.name if hasattr(i, "values") else i.name) in wanted]
        del field[:]
        field.extend(used)
