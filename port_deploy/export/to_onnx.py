# SPDX-License-Identifier: Apache-2.0
"""``NAME.onnx``: the line as ONNX that ONNX Runtime, OpenVINO, TensorRT 10, 11 and TensorRT-RTX all take.

Precision is carried by the types in the graph. The threshold is an input with a default (an initializer of the same
name), so callers may leave it out. May use: graph, nn.onnx_graph, sidecar. Test: tests/test_export.py.
"""

from __future__ import annotations

from pathlib import Path

from port_deploy.export.graph import Graph
from port_deploy.nn.onnx_graph import onnx_graph
from port_deploy.sidecar import INPUTS, InputKind


def write_onnx(graph: Graph, kind: InputKind, path: Path) -> dict[str, str]:
    """Write the artefact; returns the versions of what wrote it.

    Raises:
        BackendUnavailableError: onnx or onnxscript is not installed.
        ExportError: The exporter or ONNX's own checker refuses the graph.
    """
    free = {0: "B", 2: "H", 3: "W"}
    proto, versions = onnx_graph(graph.module, graph.examples, INPUTS[kind], graph.outputs, graph.dynamic_shapes, free)
    from onnx import TensorProto, helper

    threshold = float(graph.examples[2])
    proto.graph.initializer.append(helper.make_tensor(INPUTS[kind][2], TensorProto.FLOAT, [1], [threshold]))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return versions
