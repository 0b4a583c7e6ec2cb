# SPDX-License-Identifier: Apache-2.0
"""CUDA arrays as libraries describe them, without a library or a GPU: views, streams, what does not fit."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from port_deploy.device_arrays import DeviceView, device_view, empty_like, is_on_device, stream_of
from port_deploy.errors import InputError


def array(shape: tuple[int, ...] = (3, 21, 2), typestr: str = "<f4", **more: Any) -> Any:
    return SimpleNamespace(
        __cuda_array_interface__={"shape": shape, "typestr": typestr, "data": (4096, False), "version": 3, **more}
    )


def test_a_view_and_its_rows() -> None:
    view = device_view(array(), "joints", (None, 21, 2), "<f4")
    assert (view.address, view.shape, view.size_bytes) == (4096, (3, 21, 2), 3 * 168)
    assert view.rows(1, 3)[:3] == (4096 + 168, (2, 21, 2), "<f4")
    assert DeviceView(0, (0, 21), "|b1").size_bytes == 0


@pytest.mark.parametrize(
    ("strides", "dense"),
    [(None, True), ((168, 8, 4), True), ((336, 8, 4), False), ((168, 4, 84), False)],
)
def test_only_dense_arrays(strides: Any, dense: bool) -> None:
    given = array(strides=strides)
    if dense:
        assert device_view(given, "joints", (None, 21, 2), "<f4").shape == (3, 21, 2)
    else:
        with pytest.raises(InputError, match=r"expected joints as a dense array.*contiguous"):
            device_view(given, "joints", (None, 21, 2), "<f4")


def test_one_pose_may_have_any_stride_along_the_batch() -> None:
    assert device_view(array((1, 21, 2), strides=(9999, 8, 4)), "joints", (None, 21, 2), "<f4").shape == (1, 21, 2)


def test_what_does_not_fit() -> None:
    for given, message in (
        (array((3, 17, 2)), r"expected joints float32 \[·, 21, 2\], got float32 \[3, 17, 2\]"),
        (array(typestr="<f2"), r"got float16 \[3, 21, 2\]"),
        (array(data=(4096, True)), "expected joints to be writable"),
        (np.zeros((3, 21, 2), "f4"), "on the GPU like the other arrays of the call, got it on the CPU"),
        ([1, 2], "expected joints as a CUDA array"),
    ):
        with pytest.raises(InputError, match=message):
            device_view(given, "joints", (None, 21, 2), "<f4", writable=True)


def test_where_an_array_lies() -> None:
    assert is_on_device(array())
    assert not is_on_device(np.zeros(3))
    assert is_on_device(SimpleNamespace(__dlpack_device__=lambda: (2, 0)))
    assert not is_on_device(3.0)


def test_streams() -> None:
    for stream, handle in (
        (7, 7),
        (SimpleNamespace(cuda_stream=8), 8),
        (SimpleNamespace(ptr=9), 9),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 10)), 10),
    ):
        assert stream_of(stream, []) == handle
    assert stream_of(None, [array()]) == 0
    assert stream_of(None, [array(stream=2)]) == 2  # the producer's own
    for wrong in ("0", True, -1, 1.0):
        with pytest.raises(InputError, match="expected a CUDA stream or its handle"):
            stream_of(wrong, [])


class Device:
    index = 0

    def __init__(self, kind: str) -> None:
        self.type = kind

    def __str__(self) -> str:
        return self.type


class Tensor:
    """What torch's is to us: ``type`` and ``index`` of a device."""

    requires_grad = False

    def __init__(self, kind: str = "cuda") -> None:
        self.device = Device(kind)

    @property
    def __cuda_array_interface__(self) -> Any:
        return array().__cuda_array_interface__


def test_torch_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    current = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=77))
    torch = SimpleNamespace(Tensor=Tensor, cuda=current, float32="f32", empty=lambda *a, **k: made.append((a, k)))
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    assert is_on_device(Tensor())
    assert not is_on_device(Tensor("cpu"))
    assert stream_of(None, [Tensor()]) == 77
    empty_like(Tensor(), "joints")((2, 21), "float32")
    assert made[0][0] == ((2, 21),)
    assert made[0][1]["dtype"] == "f32"
    with pytest.raises(InputError, match="got it on cpu: move it there"):
        device_view(Tensor("cpu"), "joints", (None, 21, 2), "<f4")


def test_kinds_that_cannot_be_made() -> None:
    with pytest.raises(
        InputError, match=r"new arrays of that kind cannot be made: pass out=\(joints, confidence, mask\)"
    ):
        empty_like(array(), "joints")
