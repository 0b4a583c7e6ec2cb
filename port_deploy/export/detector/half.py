# SPDX-License-Identifier: Apache-2.0
"""A float32 ONNX graph in float16, with float32 images and heatmaps: for graphs that carry their precision themselves.

Sums over many values, exponentials and norms stay in float32 (KEPT), and so does whatever an operator's own definition
does not allow in float16. May use: errors, onnx. Test: tests/test_export_half.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from port_deploy.errors import InputError

KEPT = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "Exp", "Log",
        "Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "CumSum", "Range",
        "QuantizeLinear", "DequantizeLinear", "Softplus", "Reciprocal", "RandomNormalLike", "Einsum",
    }
)  # fmt: skip
"""Operators whose float32 values stay float32."""

_LARGEST = 65504.0


def to_half(proto: Any, name: str) -> Any:
    """A copy of a detector with float16 inside.

    Args:
        proto: Its ModelProto, weights inside.
        name: For messages.

    Returns:
        The same graph with the same inputs and outputs, cast at its ends.

    Raises:
        InputError: It has graphs inside graphs, functions, or weights beyond float16's range.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=False)
    if proto.functions or any(a.HasField("g") or len(a.graphs) for n in proto.graph.node for a in n.attribute):
        raise InputError(
            f"detector {name} has graphs inside its graph (If, Loop, functions), which are not turned into fp16: "
            "export it in half precision and give that file, or use --precision fp32"
        )
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    _Halver(onnx, result, inferred, name).convert()
    return result


class _Halver:
    """One conversion. A tensor keeps its name in the precision that most readers want: float16."""

    def __init__(self, onnx: Any, proto: Any, inferred: Any, name: str) -> None:
        self.onnx, self.graph, self.name = onnx, proto.graph, name
        self.version = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
        values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types |= {i.name: i.data_type for i in self.graph.initializer}
        self.half: set[str] = set()  # tensors that were float32 and are float16 now
        self.full: dict[str, str] = {}  # a float16 tensor's float32 twin
        self.nodes: list[Any] = []

    def convert(self) -> None:
        onnx, graph = self.onnx, self.graph
        single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        ends = {}
        for value in graph.input:
            if self.types[value.name] == single:
                ends[value.name] = f"{value.name}.fp16"
                self._cast(value.name, ends[value.name], half)
                self.half.add(ends[value.name])
        for tensor in graph.initializer:
            if tensor.data_type == single:
                self._halve(tensor)
                self.half.add(tensor.name)
        outputs = {v.name for v in graph.output if self.types[v.name] == single}
        for node in graph.node:
            node.input[:] = [ends.get(n, n) for n in node.input]
            self._node(node, {n: f"{n}.fp16" for n in node.output if n in outputs}, ends)
        for name in outputs:
            if ends.get(name, name) in self.half:
                self._cast(ends[name], name, single)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)

    def _node(self, node: Any, renamed: dict[str, str], ends: dict[str, str]) -> None:
        """Append a node, with casts around it where it reads or writes float32."""
        single, half = self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.FLOAT16
        schema: Any = None
        if self.onnx.defs.has(node.op_type, node.domain):
            schema = self.onnx.defs.get_schema(node.op_type, self.version if not node.domain else 1, node.domain)
        keep = node.op_type in KEPT or schema is None
        wide = [keep or not _allows(schema.inputs, i) for i in range(len(node.input))]
        node.input[:] = [self._full(n) if w and n in self.half else n for n, w in zip(node.input, wide, strict=True)]
        becomes_half = False
        # A Constant of bare numbers, or zeros without a type, is float32 by definition.
        bare = node.op_type in ("Constant", "ConstantOfShape") and not any(a.HasField("t") for a in node.attribute)
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == single and node.op_type != "Range":
                attribute.i, becomes_half = half, True
            elif attribute.HasField("t") and attribute.t.data_type == single and not keep:
                self._halve(attribute.t)
        self.nodes.append(node)
        ends |= renamed
        for i, name in enumerate(node.output):
            if self.types.get(name) != single:
                continue
            if not becomes_half and (keep or bare or not _allows(schema.outputs, i)):
                node.output[i] = f"{name}.fp32"
                self.full[renamed.get(name, name)] = node.output[i]
                self._cast(node.output[i], renamed.get(name, name), half)
            else:
                node.output[i] = renamed.get(name, name)
            self.half.add(renamed.get(name, name))

    def _full(self, name: str) -> str:
        if name not in self.full:
            self.full[name] = f"{name}.fp32"
            self._cast(name, self.full[name], self.onnx.TensorProto.FLOAT)
        return self.full[name]

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(self.onnx.helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to))

    def _halve(self, tensor: Any) -> None:
        values = self.onnx.numpy_helper.to_array(tensor)
        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
        if largest > _LARGEST and largest < 1e30:  # larger ones mean infinity, in a Clip or a mask
            raise InputError(
                f"weight {tensor.name!r} of detector {self.name} reaches {largest:g}, and fp16 ends at {_LARGEST:g}: "
                "use --precision fp32"
            )
        name = tensor.name
        lowered = values.clip(-_LARGEST, _LARGEST).astype(np.float16)
        tensor.CopyFrom(self.onnx.numpy_helper.from_array(lowered, name))


def _allows(parameters: Any, index: int) -> bool:
    """Whether an operator's definition lets a parameter be float16."""
    if not parameters:
        return True
    return "tensor(float16)" in parameters[min(index, len(parameters) - 1)].types
