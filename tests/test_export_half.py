# SPDX-License-Identifier: Apache-2.0
"""A float32 graph in float16: the same answers but for rounding, the same ends, sums and exponentials left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from port_deploy.errors import InputError
from port_deploy.export.detector.half import to_half

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)


def graph(nodes: list[Any], constants: dict[str, Any], outputs: dict[str, int] | None = None) -> Any:
    from onnx import helper, numpy_helper

    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["B", 4, 8, 8])],
        [helper.make_tensor_value_info(n, t, None) for n, t in (outputs or {"y": 1}).items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)  # the outputs' shapes
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    names = ["" if n == "-" else n for n in inputs.split()]
    return onnx.helper.make_node(operator, names, outputs.split(), **attributes)


def run(model: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype(np.float32)}))


W = RNG.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32)
GRAPHS: dict[str, Any] = {
    "convolution and clip": (
        [node("Conv", "x w", "a", pads=[1] * 4), node("Clip", "a zero six", "y")],
        {"w": W, "zero": np.float32(0), "six": np.float32(6)},
    ),
    "resize keeps its scales": (
        [node("Resize", "x - s", "a", mode="linear"), node("Mul", "a two", "y")],
        {"s": np.float32([1, 1, 2, 2]), "two": np.float32(2)},
    ),
    "softmax and exponentials": (
        [
            node("Conv", "x w", "a", pads=[1] * 4),
            node("Softmax", "a", "p", axis=1),
            node("Exp", "p", "e"),
            node("ReduceMean", "e axes", "m", keepdims=0),
            node("Add", "m one", "y"),
        ],
        {"w": W, "axes": np.int64([2, 3]), "one": np.float32(1)},
    ),
    "constants in nodes": (
        [
            node("Constant", "", "half", value_float=0.5),
            node("Constant", "", "w", value=onnx.numpy_helper.from_array(W)),
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "zeros"),
            node("ConstantOfShape", "s", "threes", value=onnx.numpy_helper.from_array(np.float32([3]))),
            node("Conv", "x w", "a", pads=[1] * 4),
            node("Mul", "a half", "b"),
            node("Add", "b zeros", "c"),
            node("Add", "c threes", "y"),
        ],
        {},
    ),
    "casts and comparisons": (
        [
            node("Shape", "x", "s"),
            node("Cast", "s", "f", to=1),
            node("ReduceMax", "f", "m", keepdims=0),
            node("Div", "x m", "d"),
            node("Greater", "d zero", "g"),
            node("Where", "g d zero", "y"),
        ],
        {"zero": np.float32(0)},
    ),
    "an output that is read, too": (
        [node("Relu", "x", "y"), node("Mul", "y two", "z"), node("ArgMax", "z", "i", axis=1)],
        {"two": np.float32(2)},
        {"y": 1, "z": 1, "i": 7},
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_the_same_answers(case: str) -> None:
    nodes, constants, *outputs = GRAPHS[case]
    full = graph(nodes, constants, *outputs)
    low = to_half(full, "d")
    onnx.checker.check_model(low, full_check=True)
    assert [v.type.tensor_type.elem_type for v in (*low.graph.input, *low.graph.output)] == [
        v.type.tensor_type.elem_type for v in (*full.graph.input, *full.graph.output)
    ]
    for got, wanted in zip(run(low), run(full), strict=True):
        assert got.dtype == wanted.dtype
        if wanted.dtype == np.float32:
            np.testing.assert_allclose(got, wanted, atol=0.01)
            assert "w" not in constants or (got != wanted).any()
        else:
            assert (got == wanted).mean() > 0.97


def test_what_stays_in_float32() -> None:
    low = to_half(graph(*GRAPHS["softmax and exponentials"]), "d")
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(low).graph.value_info}
    for n in low.graph.node:
        if n.op_type in ("Softmax", "Exp", "ReduceMean"):
            assert types[n.output[0]] == onnx.TensorProto.FLOAT, n.op_type
        if n.op_type == "Conv":
            assert types[n.output[0]] == onnx.TensorProto.FLOAT16
    weights = {i.name: i.data_type for i in low.graph.initializer}
    assert weights == {"w": 10, "axes": 7, "one": 10}


def test_the_graph_that_came_is_not_changed() -> None:
    full = graph(*GRAPHS["convolution and clip"])
    before = full.SerializeToString()
    to_half(full, "d")
    assert full.SerializeToString() == before


def test_weights_beyond_float16() -> None:
    nodes = [node("Mul", "x k", "y")]
    with pytest.raises(InputError, match=r"weight 'k' of detector d reaches 100000, and fp16 ends at 65504"):
        to_half(graph(nodes, {"k": np.float32(1e5)}), "d")
    limits = {"low": np.float32(-3.4e38), "high": np.float32(3.4e38)}  # no limits at all
    low = to_half(graph([node("Clip", "x low high", "y")], limits), "d")
    np.testing.assert_allclose(run(low)[0], run(graph([node("Identity", "x", "y")], {}))[0], atol=2e-3)


def test_graphs_in_graphs() -> None:
    from onnx import helper

    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    with pytest.raises(InputError, match="detector d has graphs inside its graph"):
        to_half(graph(nodes, {"c": np.array(True)}), "d")
