# SPDX-License-Identifier: Apache-2.0
"""``NAME.onnx``: the line as ONNX that ONNX Runtime, OpenVINO, TensorRT 10, 11 and TensorRT-RTX all take.

Precision is carried by the types in the graph. The threshold is an input with a default (an initializer of the same
name), so callers may leave it out. May use: graph, sidecar, onnx, torch. Test: tests/test_export.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from port_deploy.backends.artefact import first_line
from port_deploy.errors import ExportError, missing_extra
from port_deploy.export.graph import Graph, quiet
from port_deploy.sidecar import INPUTS, OUTPUTS, InputKind

OPSET = 18
"""Old enough for the TensorRT 10 of Jetsons, new enough for LayerNormalization."""


def write_onnx(graph: Graph, kind: InputKind, path: Path) -> dict[str, str]:
    """Write the artefact; returns the versions of what wrote it.

    Raises:
        BackendUnavailableError: onnx or onnxscript is not installed.
        ExportError: The exporter or ONNX's own checker refuses the graph.
    """
    try:
        import onnx
        import onnxscript
    except ModuleNotFoundError as error:
        raise missing_extra("exporting to ONNX", "export") from error
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with quiet(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                graph.module,
                graph.examples,
                input_names=INPUTS[kind],
                output_names=OUTPUTS[kind],
                dynamic_shapes=graph.dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None  # with dynamo=True it always answers a program
        proto = program.model_proto
        _tidy(proto, float(graph.examples[2]), kind)
        onnx.checker.check_model(proto, full_check=True)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise ExportError(f"PyTorch {torch.__version__} could not export to ONNX: {first_line(error)}") from error
    finally:
        logging.getLogger("torch").setLevel(level)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "opset": str(OPSET),
    }


def _tidy(proto: Any, threshold: float, kind: InputKind) -> None:
    """Names for the free dimensions, the threshold's default, and nothing of the machine that exported it."""
    from onnx import TensorProto, helper

    graph = proto.graph
    graph.name = "port_deploy"
    names = {}
    first = graph.input[0].type.tensor_type.shape.dim
    for index, name in ((0, "B"), (2, "H"), (3, "W")):
        if index < len(first) and first[index].dim_param:
            names[first[index].dim_param] = name
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
        del value.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]  # stack traces, with paths
        node.doc_string = ""
    del graph.metadata_props[:]
    del proto.metadata_props[:]
    del proto.functions[:]
    graph.initializer.append(helper.make_tensor(INPUTS[kind][2], TensorProto.FLOAT, [1], [threshold]))
