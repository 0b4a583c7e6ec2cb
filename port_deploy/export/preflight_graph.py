# SPDX-License-Identifier: Apache-2.0
"""What a builder would say of an ONNX graph: asked of its parser where one is here, and read off the graph itself.

May use: to_engine, onnx_bytes, sidecar, errors, onnx where it is installed. Test: tests/test_preflight.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from port_deploy.backends.tensorrt_ import make_logger, why
from port_deploy.errors import PortError
from port_deploy.export.run import ExportOptions
from port_deploy.export.to_engine import Toolchain, parser_reason
from port_deploy.onnx_bytes import without_initializer
from port_deploy.sidecar import DEFAULTS, Sidecar

BUILDABLE = ("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL", "FLOAT8E4M3FN", "INT4")
"""ONNX element types that TensorRT has."""

MIN_OPSET, MAX_OPSET = 9, 25
"""Of ONNX's own domain, as TensorRT's parsers of 10 and 11 take it."""


Status = Literal["ok", "note", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        status: ``ok``; ``note``: worth knowing; ``error``: the export would fail.
        text: What was found, and what mends it.
    """

    check: str
    status: Status
    text: str


def check_graph(
    model: bytes, side: Sidecar | None, tools: Toolchain | None, options: ExportOptions
) -> Iterator[Finding]:
    """What stands between a graph and an engine."""
    proto: Any = None
    if find_spec("onnx") is None:
        yield Finding("graph", "note", "types and shapes were not looked at: onnx is not installed")
    else:
        import onnx

        try:
            proto = onnx.load_model_from_string(model)
            onnx.checker.check_model(proto)
        except Exception as error:  # protobuf's and the checker's own, no common base
            text = " ".join(str(error).split())[:200]
            yield Finding("graph", "error", f"not a valid ONNX model ({text}): export it again")
            return
        yield from _opset(proto)
        yield from _types(proto)
        yield from _shapes(proto, side, options)
    if tools is not None:
        yield from _operators(model, proto, side, tools)


def _opset(proto: Any) -> Iterator[Finding]:
    versions = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    own = versions.get("ai.onnx", 0)
    text = ", ".join(f"{domain} {number}" for domain, number in versions.items())
    known = MIN_OPSET <= own <= MAX_OPSET
    beyond = f": TensorRT's parsers know {MIN_OPSET} to {MAX_OPSET}; export with one of these if they refuse the graph"
    yield Finding("opset", "ok" if known else "note", text if known else text + beyond)


def _types(proto: Any) -> Iterator[Finding]:
    import onnx

    name = onnx.TensorProto.DataType.Name
    tensors = [(i.name, name(i.type.tensor_type.elem_type)) for i in (*proto.graph.input, *proto.graph.output)]
    wrong = [f"{tensor} ({kind})" for tensor, kind in tensors if kind not in BUILDABLE]
    if wrong:
        few = ", ".join(wrong[:4])
        yield Finding("types", "error", f"TensorRT has no such type: {few}: export them as FLOAT or INT64")
    weights: Counter[str] = Counter()
    for initializer in proto.graph.initializer:
        weights[name(initializer.data_type)] += math.prod(initializer.dims)
    quantized = sum(n.op_type == "QuantizeLinear" for n in proto.graph.node)
    text = ", ".join(f"{count:,} {kind}" for kind, count in weights.most_common(4)) or "none"
    if quantized:
        text += f"; {quantized} tensors are quantized"
    yield Finding("weights", "ok", f"{text} (strongly typed: the precision is the graph's own)")


def _shapes(proto: Any, side: Sidecar | None, options: ExportOptions) -> Iterator[Finding]:
    constants = {i.name for i in proto.graph.initializer} - set(DEFAULTS[side.input] if side is not None else ())
    problems: list[str] = []
    shown: list[str] = []
    for tensor in proto.graph.input:
        if tensor.name in constants:
            continue
        dims = [d.dim_value or d.dim_param or "?" for d in tensor.type.tensor_type.shape.dim]
        shown.append(f"{tensor.name} {dims}".replace("'", ""))
        free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
        sized = tensor.name == "heatmaps" and side is not None  # their H and W come from --heatmap-size
        if [i for i in free if i > 0 and not (sized and i in (2, 3))]:
            problems.append(f"{tensor.name} has a free axis beside the batch: fix it in the exporter")
        if dims and isinstance(dims[0], int) and len(dims) > 1 and set(options.batch) != {dims[0]}:
            problems.append(
                f"{tensor.name} has a fixed batch of {dims[0]}: export it with a free one, or ask for "
                f"--batch {dims[0]},{dims[0]},{dims[0]}"
            )
    profile = "batch {}, {}, {}".format(*options.batch)
    if problems:
        yield Finding("shapes", "error", "; ".join(problems))
    else:
        yield Finding("shapes", "ok", f"{', '.join(shown)}; {profile}")


def _operators(model: bytes, proto: Any, side: Sidecar | None, tools: Toolchain) -> Iterator[Finding]:
    library = tools.module
    said = f"{tools.name} {library.__version__}"
    names = DEFAULTS[side.input] if side is not None else ()
    logger = make_logger(library)
    try:
        graph = without_initializer(model, *names) if names else model
    except PortError as error:
        yield Finding("operators", "error", str(error))
        return
    strongly_typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = tools.builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = library.OnnxParser(network, logger)
    ask = getattr(parser, "supports_model_v2", None)
    supported = ask(graph) if ask is not None else parser.parse(graph)
    used = Counter(n.op_type for n in proto.graph.node) if proto is not None else Counter()
    if supported and parser.num_errors == 0:
        kinds = f"{len(used)} kinds in {sum(used.values())} nodes" if used else "all"
        yield Finding("operators", "ok", f"{kinds}, all taken by {said}")
        return
    reasons = [parser_reason(parser.get_error(i)) for i in range(parser.num_errors)]
    lacking = [op for op in used if hasattr(parser, "supports_operator") and not parser.supports_operator(op)]
    parts = [*reasons[:5], *([f"no operator {', '.join(lacking)}"] if lacking else [])] or [why(logger)]
    yield Finding("operators", "error", f"{said} does not take the graph: {'; '.join(parts)}")
