# SPDX-License-Identifier: Apache-2.0
"""A detector's ONNX file, read and checked: one image input, a free batch, operators and versions that are known.

May use: options, files, errors, onnx. Test: tests/test_export_detector.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from port_deploy.backends.artefact import first_line
from port_deploy.detector_info import Arithmetic, ImageType, Layout
from port_deploy.errors import InputError, ModelFileError, missing_extra
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.nn.onnx_graph import OPSET

IR_VERSION = 10
"""That ONNX Runtime from 1.18 and TensorRT from 10 read; the opset says more."""

MAX_BYTES = (1 << 31) - (64 << 20)
"""An ONNX file is one protobuf message of less than 2 GiB, and PORT needs a little room."""

_STANDARD = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


Ask = Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
"""Images as the detector takes them to its outputs by name."""


@dataclass(frozen=True)
class Source:
    """A detector that was read.

    Attributes:
        name: For file names and messages.
        sha256: Of the file, or of the bytes that the family's export made.
        proto: Its ModelProto, weights inside, at opset OPSET or later, initializers no inputs, batch named ``B``.
        image: Name of its image input.
        layout: Of the images.
        dtype: Of the images.
        size: (H, W) of the images.
        metadata: Of the file.
        precision: Of its weights, the lowest of them.
        in_pytorch: Answers its outputs for images in PyTorch, where it came from there.
        lower: Makes its graph in another precision; None: `half.to_half` does.
    """

    name: str
    sha256: str
    proto: Any
    image: str
    layout: Layout
    dtype: ImageType
    size: tuple[int, int]
    metadata: dict[str, str]
    precision: Arithmetic
    in_pytorch: Ask | None = None
    lower: Callable[[str], Any] | None = None


def read_source(options: DetectorOptions) -> Source:
    """Read a detector's file.

    Raises:
        BackendUnavailableError: onnx is not installed.
        InputError: There is no such file, or the detector cannot be joined; the message says what to change.
        ModelFileError: The file is broken, or its external data are not beside it.
    """
    path = Path(options.source)
    if not path.is_file():
        raise InputError(f"no detector {str(path)!r}: expected an ONNX file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than an ONNX graph can be: export the detector in half precision")
    return from_bytes(path.read_bytes(), path.stem, options, path.parent)


def from_bytes(data: bytes, name: str, options: DetectorOptions, folder: Path | None = None) -> Source:
    """The same for ONNX bytes in memory; ``folder`` holds their external data."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise missing_extra("joining a detector", "export") from error
    proto = _parse(onnx, data, name, folder)
    if proto.ByteSize() > MAX_BYTES:
        raise InputError(f"detector {name} with its weights is larger than an ONNX graph can be: use half precision")
    _check_operators(onnx, proto, name)
    metadata = {p.key: p.value for p in proto.metadata_props}
    proto = _at_opset(onnx, proto, name)
    initializers = {i.name for i in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in initializers]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    if len(inputs) != 1:
        listed = ", ".join(v.name for v in inputs) or "none"
        raise InputError(f"expected detector {name} to take one image, it has inputs {listed}: export it with one")
    layout, dtype, size = _check_image(inputs[0], name, options)
    digest = hashlib.sha256(data).hexdigest()
    return Source(name, digest, proto, inputs[0].name, layout, dtype, size, metadata, _precision(onnx, proto))


def _precision(onnx: Any, proto: Any) -> Arithmetic:
    types = {i.data_type for i in proto.graph.initializer}
    types |= {a.t.data_type for n in all_nodes(proto.graph) for a in n.attribute if a.HasField("t")}
    if onnx.TensorProto.BFLOAT16 in types:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in types else "fp32"


def _parse(onnx: Any, data: bytes, name: str, folder: Path | None) -> Any:
    broken = f"detector {name} is not a readable ONNX file"
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own exceptions
        raise ModelFileError(f"{broken} ({first_line(error)}): copy or export it again") from error
    if not proto.graph.node or not proto.opset_import:
        raise ModelFileError(f"{broken} (it holds no graph): copy or export it again")
    if _has_external_data(onnx, proto):
        try:
            onnx.external_data_helper.load_external_data_for_model(proto, str(folder or "."))
        except Exception as error:  # ONNX's own, OSError, or ValueError for a path outside the folder
            raise ModelFileError(
                f"the weights of detector {name} lie in a file of their own that cannot be read "
                f"({first_line(error)}): keep both files together"
            ) from error
    return proto


def _has_external_data(onnx: Any, proto: Any) -> bool:
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer) or any(
        a.t.data_location == onnx.TensorProto.EXTERNAL for n in all_nodes(proto.graph) for a in n.attribute
    )


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)
            for inner in attribute.graphs:
                yield from all_nodes(inner)


def _check_operators(onnx: Any, proto: Any, name: str) -> None:
    own = {(f.domain, f.name) for f in proto.functions}
    for node in all_nodes(proto.graph):
        if (node.domain, node.op_type) in own:
            continue
        standard = node.domain in ("", "ai.onnx")
        if node.domain not in _STANDARD or (standard and not onnx.defs.has(node.op_type, "")):
            where = f" of domain {node.domain!r}" if node.domain else ""
            raise InputError(
                f"detector {name} has an unknown operator {node.op_type!r}{where} (node {node.name!r}): "
                "export it with standard ONNX operators only"
            )


def _at_opset(onnx: Any, proto: Any, name: str) -> Any:
    """The model at opset OPSET at least, checked."""
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    newest = onnx.defs.onnx_opset_version()
    if not 7 <= version <= newest:
        raise InputError(
            f"detector {name} has ONNX opset {version}, and onnx {onnx.__version__} knows 7 to {newest}: "
            f"export it with opset {OPSET}"
        )
    try:
        if version < OPSET:
            proto = onnx.version_converter.convert_version(proto, OPSET)
        proto.ir_version = max(proto.ir_version, IR_VERSION)
        onnx.checker.check_model(proto, full_check=False)
    except Exception as error:  # the converter's RuntimeError and ConvertError, the checker's ValidationError
        raise InputError(
            f"detector {name} (ONNX opset {version}) does not stand up as opset {max(version, OPSET)} "
            f"({first_line(error)}): export it with opset {OPSET}"
        ) from error
    return proto


def _check_image(value: Any, name: str, options: DetectorOptions) -> tuple[Layout, ImageType, tuple[int, int]]:
    types: dict[int, ImageType] = {1: "float32", 10: "float16", 2: "uint8"}  # TensorProto's numbers
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    shown = [d.dim_param or d.dim_value or "?" for d in dims]
    if tensor.elem_type not in types:
        raise InputError(f"expected images of float32, float16 or uint8 for detector {name}, input {value.name!r} has "
                         f"ONNX type {tensor.elem_type}: export it with one of them")  # fmt: skip
    channels = [i for i in (1, 3) if len(dims) == 4 and dims[i].dim_value == 3]
    if len(channels) != 1:
        raise InputError(
            f"expected images [B, 3, H, W] or [B, H, W, 3] for detector {name}, input {value.name!r} is {shown}: "
            "export it for colour images"
        )
    layout: Layout = "nchw" if channels[0] == 1 else "nhwc"
    if dims[0].HasField("dim_value"):
        raise InputError(
            f"detector {name} takes batches of exactly {dims[0].dim_value}, and a batch must be free: export it with "
            f"dynamic_shapes={{{value.name!r}: {{0: 'B'}}}} (torch.onnx.export), or make its first dimension symbolic"
        )
    dims[0].dim_param = "B"
    size = []
    for axis, asked in zip((2, 3) if layout == "nchw" else (1, 2), options.image_size or (0, 0), strict=True):
        fixed = dims[axis].dim_value
        if not (fixed or asked):
            raise InputError(f"detector {name} takes any image size, {shown}: choose one with --image-size H,W")
        if fixed and asked and fixed != asked:
            raise InputError(f"detector {name} takes images {shown}, asked for --image-size {options.image_size}")
        dims[axis].dim_value = fixed or asked
        size.append(fixed or asked)
    return layout, types[tensor.elem_type], (size[0], size[1])
