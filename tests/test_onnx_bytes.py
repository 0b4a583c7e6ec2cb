# SPDX-License-Identifier: Apache-2.0
"""Taking an input's default out of an ONNX file, checked against the ONNX library."""

from __future__ import annotations

import pytest

from port_deploy.errors import ModelFileError
from port_deploy.onnx_bytes import without_initializer

onnx = pytest.importorskip("onnx")


def small_model() -> bytes:
    from onnx import TensorProto, helper

    node = helper.make_node("Less", ["x", "threshold"], ["y"])
    weights = helper.make_tensor("other", TensorProto.FLOAT, [300], [0.5] * 300)  # a length of two varint bytes
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, ["B"]), helper.make_tensor_value_info("threshold", 1, [1])],
        [helper.make_tensor_value_info("y", 9, ["B"])],
        [weights, helper.make_tensor("threshold", TensorProto.FLOAT, [1], [0.3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="test")
    return model.SerializeToString()


def test_only_that_initializer_is_gone() -> None:
    before, after = (
        onnx.load_from_string(small_model()),
        onnx.load_from_string(without_initializer(small_model(), "threshold")),
    )
    assert [i.name for i in after.graph.initializer] == ["other"]
    del before.graph.initializer[1]
    assert after == before
    onnx.checker.check_model(after, full_check=True)


def test_a_missing_initializer_is_named() -> None:
    with pytest.raises(ModelFileError, match="'delta': export it again"):
        without_initializer(small_model(), "delta")


@pytest.mark.parametrize("cut", [1, 5, 100, 900])
def test_a_cut_file_is_refused(cut: int) -> None:
    data = small_model()
    with pytest.raises(ModelFileError, match=r"cut short|damaged|expected an ONNX model"):
        without_initializer(data[: len(data) - cut], "threshold")


@pytest.mark.parametrize("data", [b"", b"junk that is no protobuf", b"\xff" * 64, b"\x3a\xff\xff\xff\xff\x0f"])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError):
        without_initializer(data, "threshold")


def test_several_at_once() -> None:
    after = onnx.load_from_string(without_initializer(small_model(), "threshold", "other"))
    assert not after.graph.initializer
    with pytest.raises(ModelFileError, match="'delta': export it again"):
        without_initializer(small_model(), "threshold", "delta")
