# SPDX-License-Identifier: Apache-2.0
"""A PyTorch module as an ONNX graph that names its inputs, outputs and free dimensions, and nothing of the exporter's.

Every ONNX file that this project writes comes from here. May use: errors, onnx, torch. Test: tests/test_export.py,
tests/test_detectors_onnx.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from port_deploy.errors import ExportError, missing_extra

OPSET = 18
"""Old enough for the TensorRT 10 of Jetsons, new enough for LayerNormalization."""


def onnx_graph(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: Sequence[Mapping[int, Any] | None],
    free: Mapping[int, str],
    opset: int = OPSET,
) -> tuple[Any, dict[str, str]]:
    """Export a module.

    Args:
        module: In evaluation mode.
        examples: One tensor for each input.
        inputs: Their names in the graph; none may be the name of a parameter.
        outputs: Names of the outputs.
        dynamic_shapes: Which dimensions of each input are free, as torch.export wants them.
        free: Names for free dimensions of the first input, e.g. ``{0: "B"}``.
        opset: Version of ONNX's operators.

    Returns:
        An ``onnx.ModelProto`` that ONNX's checker passed, and the versions of what wrote it.

    Raises:
        BackendUnavailableError: onnx or onnxscript is not installed.
        ExportError: The exporter or ONNX's own checker refuses the graph.
    """
    try:
        import onnx
        import onnxscript
        from onnx.shape_inference import InferenceError
    except ModuleNotFoundError as error:
        raise missing_extra("exporting to ONNX", "export") from error
    level = logging.getLogger("torch").level
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(examples),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(dynamic_shapes),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        assert program is not None  # with dynamo=True it always answers a program
        proto = program.model_proto
        _tidy(proto, free)
        onnx.checker.check_model(proto, full_check=True)
    except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError, InferenceError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:300] if lines else type(error).__name__
        raise ExportError(f"PyTorch {torch.__version__} could not export to ONNX: {reason}") from error
    finally:
        logging.getLogger("torch").setLevel(level)
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    return proto, versions | {"opset": str(opset)}


def _tidy(proto: Any, free: Mapping[int, str]) -> None:
    """Names for the free dimensions, and nothing of the machine that exported it."""
    graph = proto.graph
    graph.name = "port_deploy"
    names = {}
    first = graph.input[0].type.tensor_type.shape.dim
    for index, name in free.items():
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
