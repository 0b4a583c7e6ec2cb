# SPDX-License-Identifier: Apache-2.0
"""Small detectors as ONNX files: real convolutions with random weights, in every layout that detectors come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

IMAGE = (64, 48)
"""(H, W)."""
MAP = (16, 12)


_TAILS: dict[Any, Any] = {}


def remember_tails(monkeypatch: Any) -> None:
    """What follows a detector is traced once for the same specification and precision, not once an export."""
    from port_deploy.export.detector import run

    trace = run.tail_of

    def remembered(model: Any, info: Any, precision: Any) -> Any:
        key = (str(model.spec), precision, info.head, info.map_layout, info.order, str(info.to_crop()), info.score)
        if key not in _TAILS:
            _TAILS[key] = trace(model, info, precision)
        return _TAILS[key]

    monkeypatch.setattr(run, "tail_of", remembered)


def tiny_detector(
    path: Path,
    joints: int = 21,
    *,
    kind: str = "heatmaps",
    image_layout: str = "nchw",
    map_layout: str = "nchw",
    batch: Any = "B",
    opset: int = 17,
    dtype: str = "float32",
    size: tuple[Any, Any] = IMAGE,
    names: str | None = None,
    more_outputs: bool = False,
    inner_batch: int | None = None,
    node: Any = None,
    external: bool = False,
    gain: float = 6.0,
) -> Path:
    """Write ``path``: strided convolutions to ``joints`` maps of a quarter of the image, a sigmoid, and the layout.

    Args:
        path: The ONNX file.
        joints: Channels.
        kind: ``heatmaps``, ``simcc``, or ``boxes`` (no heatmaps at all).
        image_layout: Of the input ``input.1``, a name with a dot as PyTorch writes them.
        map_layout: Of the output ``output``.
        batch: Of the input; a number fixes it.
        opset: Version of the operators.
        dtype: Of input and output.
        size: (H, W) of the input; names leave it open.
        names: Joint names in the metadata.
        more_outputs: A second output of the same shape, and one of features.
        inner_batch: The batch inside a Reshape.
        node: Put behind the convolutions: a NodeProto from ``feature`` to ``feature2``.
        external: Weights in a file of their own.
        gain: On what the sigmoid sees: how far from each other the values lie.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[dtype]
    inner = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    real = np.float16 if dtype == "float16" else np.float32
    weights = {
        "w1": rng.normal(0, 0.4, (16, 3, 3, 3)),
        "b1": rng.normal(0, 0.3, 16),
        "w2": rng.normal(0, gain / 12, (joints, 16, 3, 3)),
        "b2": rng.normal(-1.5, 0.5, joints),
    }
    nodes, x = [], "input.1"
    if dtype == "uint8":
        weights["byte"] = np.array(255.0)
        nodes += [helper.make_node("Cast", [x], ["real"], to=inner), helper.make_node("Div", ["real", "byte"], ["in"])]
        x = "in"
    if image_layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [x], ["planes"], perm=[0, 3, 1, 2]))
        x = "planes"
    nodes += [
        helper.make_node("Conv", [x, "w1", "b1"], ["c1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["feature"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    ]
    last = "feature"
    if node is not None:
        nodes.append(node)
        last = "feature2"
    nodes.append(helper.make_node("Sigmoid", [last], ["maps"]))
    shape = [batch if isinstance(batch, str) else 1, joints, *MAP]
    integers = {}
    if inner_batch is not None:
        integers["shape"] = np.array([inner_batch, joints, *MAP], np.int64)
        nodes.append(helper.make_node("Reshape", ["maps", "shape"], ["maps2"]))
        nodes[-2].output[0], nodes[-1].input[0], nodes[-1].output[0] = "maps0", "maps0", "maps"
    outputs = []
    if kind == "boxes":
        nodes.append(helper.make_node("GlobalMaxPool", ["maps"], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["output"]))
        outputs.append(helper.make_tensor_value_info("output", inner, [batch, joints]))
    elif kind == "simcc":
        for name, axis, length in (("simcc_x", 2, MAP[1]), ("simcc_y", 3, MAP[0])):
            attributes: dict[str, Any] = {"axes": [axis], "keepdims": 0}
            given = ["maps"]
            if opset >= 18:
                integers[f"axes{axis}"] = np.array([axis], np.int64)
                given.append(f"axes{axis}")
                del attributes["axes"]
            nodes.append(helper.make_node("ReduceMax", given, [name], **attributes))
            outputs.append(helper.make_tensor_value_info(name, inner, [batch, joints, length]))
    elif map_layout == "nhwc":
        nodes.append(helper.make_node("Transpose", ["maps"], ["output"], perm=[0, 2, 3, 1]))
        outputs.append(helper.make_tensor_value_info("output", inner, [shape[0], *MAP, joints]))
    else:
        nodes.append(helper.make_node("Identity", ["maps"], ["output"]))
        outputs.append(helper.make_tensor_value_info("output", inner, shape))
    if more_outputs:
        nodes.append(helper.make_node("Neg", ["maps"], ["coarse"]))
        outputs.append(helper.make_tensor_value_info("coarse", inner, shape))
        outputs.append(helper.make_tensor_value_info("r1", inner, [batch, 16, MAP[0] * 2, MAP[1] * 2]))
    planes = [3, *size] if image_layout == "nchw" else [*size, 3]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input.1", element, [batch, *planes])],
        outputs,
        [numpy_helper.from_array(np.asarray(v, real), k) for k, v in weights.items()]
        + [numpy_helper.from_array(v, k) for k, v in integers.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if node is not None and node.domain:
        imports.append(helper.make_opsetid(node.domain, 1))
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    if names is not None:
        helper.set_model_props(model, {"joint_names": names})
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    onnx.save_model(model, str(path), **options)
    return path
