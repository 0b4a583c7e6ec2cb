# SPDX-License-Identifier: Apache-2.0
"""The changes that runtimes need in an ONNX file, made on its bytes, so that no ONNX library has to be there.

An exported graph carries δ (and with a detector in it the affine, too) as an input *with a default* (an initializer of
the same name), which ONNX Runtime lets the caller override. TensorRT and OpenVINO read such an input as a constant: for
them the default is taken out, and the input becomes an ordinary one. May use: errors. Test: tests/test_onnx_bytes.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from port_deploy.errors import ModelFileError

_MODEL_GRAPH = 7  # field numbers of onnx.proto
_GRAPH_INITIALIZER = 5
_GRAPH_INPUT = 11
_TENSOR_NAME = 8
_VALUE_NAME = 1
_LENGTH_DELIMITED = 2


def without_initializer(model: bytes, *names: str) -> bytes:
    """An ONNX model without the initializers ``names``; every other byte of the graph stays as it is.

    Args:
        model: A serialised ModelProto.
        names: Names of top-level initializers.

    Raises:
        ModelFileError: The bytes are not an ONNX model with a graph that holds all those initializers.
    """
    return _without(model, _GRAPH_INITIALIZER, _TENSOR_NAME, names, "an initializer")


def without_input(model: bytes, *names: str) -> bytes:
    """An ONNX model without the inputs ``names``: their defaults (initializers of the same name) become constants.

    Args:
        model: A serialised ModelProto.
        names: Names of inputs.

    Raises:
        ModelFileError: The bytes are not an ONNX model with a graph that has all those inputs.
    """
    return _without(model, _GRAPH_INPUT, _VALUE_NAME, names, "an input")


def _without(model: bytes, kind: int, name_field: int, names: tuple[str, ...], what: str) -> bytes:
    result = bytearray()
    found: set[str] = set()
    for field, start, payload, end in _fields(model, 0, len(model)):
        if field != _MODEL_GRAPH:
            result += model[start:end]
            continue
        graph = bytearray()
        for inner, inner_start, inner_payload, inner_end in _fields(model, payload, end):
            name = _name(model, inner_payload, inner_end, name_field) if inner == kind else ""
            if name and name in names:
                found.add(name)
            else:
                graph += model[inner_start:inner_end]
        result += _varint(_MODEL_GRAPH << 3 | _LENGTH_DELIMITED) + _varint(len(graph)) + graph
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise ModelFileError(f"expected an ONNX model with {what} {missing!r}: export it again with port-export")
    return bytes(result)


def _name(data: bytes, start: int, end: int, name_field: int) -> str:
    for field, _, payload, stop in _fields(data, start, end):
        if field == name_field:
            return data[payload:stop].decode("utf-8", "replace")
    return ""


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, start, start of the payload, and end of every field of a protobuf message."""
    position = start
    while position < end:
        tag, payload = _read_varint(data, position, end)
        wire = tag & 7
        if wire == 0:
            stop = _read_varint(data, payload, end)[1]
        elif wire == _LENGTH_DELIMITED:
            length, payload = _read_varint(data, payload, end)
            stop = payload + length
        elif wire in (1, 5):
            stop = payload + (8 if wire == 1 else 4)
        else:
            raise ModelFileError("not an ONNX model, or a damaged one: export it again with port-export")
        if stop > end:
            raise ModelFileError("the ONNX model is cut short: copy or export it again")
        yield tag >> 3, position, payload, stop
        position = stop


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
    raise ModelFileError("the ONNX model is cut short or damaged: copy or export it again")


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
