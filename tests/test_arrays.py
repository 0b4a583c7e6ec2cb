# SPDX-License-Identifier: Apache-2.0
"""arrays.py: every kind of array in and out on the same memory, and what is refused."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest

from port_deploy.arrays import affine_of_boxes, check_affine, check_output, check_threshold, host_view, wrap_all
from port_deploy.errors import InputError


class DLPackOnly:
    """An array of some library that NumPy knows nothing of but DLPack."""

    def __init__(self, values: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.values, self.device = values, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class OldDLPack(DLPackOnly):
    """A library that has never heard of max_version."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.values.__dlpack__()


class CudaArray:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (1, 2), "typestr": "<f4", "data": (4096, False), "version": 3}


def test_numpy_is_taken_as_it_is() -> None:
    values = np.zeros((2, 3), np.float32)
    assert host_view(values, "x") == (values, None) or host_view(values, "x")[0] is values


def test_subclasses_of_numpy_are_read_but_masked_arrays_are_not() -> None:
    class Mine(np.ndarray):
        pass

    values = np.zeros((2, 3), np.float32)
    view, wrap = host_view(values.view(Mine), "x")
    assert type(view) is np.ndarray
    assert np.shares_memory(view, values)
    assert wrap is None
    with pytest.raises(InputError, match="masked array"):
        host_view(np.ma.array(values, mask=values > 1), "x")


@pytest.mark.parametrize("kind", [DLPackOnly, OldDLPack])
def test_dlpack_is_read_in_place(kind: type[DLPackOnly]) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    view, wrap = host_view(kind(values), "x")
    assert np.shares_memory(view, values)
    assert wrap is None  # it says no namespace of its own, so NumPy comes back


def test_a_library_with_a_namespace_gets_its_own_kind_back() -> None:
    class Namespace:
        @staticmethod
        def from_dlpack(values: Any) -> DLPackOnly:
            return DLPackOnly(np.from_dlpack(values))

    class WithNamespace(DLPackOnly):
        def __array_namespace__(self) -> type[Namespace]:
            return Namespace

    _, wrap = host_view(WithNamespace(np.zeros(3, np.float32)), "x")
    fresh = np.ones(3, np.float32)
    (out,) = wrap_all(wrap, fresh)
    assert isinstance(out, DLPackOnly)
    assert np.shares_memory(out.values, fresh)


def test_buffers_are_read_in_place() -> None:
    values = array.array("f", [1, 2, 3])
    view, wrap = host_view(values, "x")
    view[0] = 7
    assert values[0] == 7
    assert wrap is None


@pytest.mark.parametrize("device", [(2, 0), (13, 0)])
def test_dlpack_on_a_gpu_is_refused_with_the_remedy(device: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"expected joints in host memory, got a CUDA device.*joints\.cpu\(\)"):
        host_view(DLPackOnly(np.zeros(3, np.float32), device), "joints")


def test_another_device_is_named_by_its_number() -> None:
    with pytest.raises(InputError, match="DLPack type 8"):
        host_view(DLPackOnly(np.zeros(3, np.float32), (8, 0)), "joints")


def test_cuda_array_interface_is_refused() -> None:
    with pytest.raises(InputError, match="host memory, got a CUDA device"):
        host_view(CudaArray(), "heatmaps")


@pytest.mark.parametrize("value", [[[1.0, 2.0]], None, 3.0, "joints", object(), {"x": 1}])
def test_no_array_is_refused_with_what_makes_one(value: object) -> None:
    with pytest.raises(InputError, match=r"expected x as a NumPy array.*numpy\.asarray"):
        host_view(value, "x")


def test_torch_shares_memory_both_ways() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, 3)
    view, wrap = host_view(tensor, "x")
    assert view.ctypes.data == tensor.data_ptr()
    fresh = np.ones((2, 3), np.float32)
    (out,) = wrap_all(wrap, fresh)
    assert out.data_ptr() == fresh.ctypes.data


def test_torch_tensors_that_require_grad_are_detached() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, 3, requires_grad=True)
    assert host_view(tensor, "x")[0].ctypes.data == tensor.data_ptr()


def test_torch_tensors_that_numpy_has_no_word_for_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3).to_sparse()):
        with pytest.raises(InputError, match=r"expected x as a dense float32 tensor, got torch\..*to_dense"):
            host_view(tensor, "x")


def test_torch_tensors_on_another_device_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"expected x in host memory, got meta"):
        host_view(torch.zeros(2, 3, device="meta"), "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 4), np.float32), r"expected out float32 \[2, 3\], got float32 \[2, 4\]"),
        (np.zeros((2, 3), np.float64), "got float64"),
        (np.zeros((3, 2), np.float32).T, "C-contiguous and writable"),
        (np.broadcast_to(np.float32(0), (2, 3)), "C-contiguous and writable"),
        (np.frombuffer(bytes(25), np.float32, 6, 1).reshape(2, 3), "C-contiguous and writable"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(value: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_output(value, "out", (2, 3), np.dtype(np.float32))


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf"), True, "0.3", None, [0.3, 0.4], 1j])
def test_unusable_thresholds_are_refused(value: object) -> None:
    with pytest.raises(InputError, match="expected threshold to be a finite number of at least 0"):
        check_threshold(value)


@pytest.mark.parametrize("value", [0, 0.3, np.float32(0.3), np.float64(0.3), np.int64(1), 7])
def test_thresholds_of_any_number_type_are_taken(value: object) -> None:
    assert check_threshold(value) == value


def test_boxes_follow_msra_and_udp() -> None:
    boxes = np.array([[10, 20, 74, 148]])
    plain = affine_of_boxes(boxes, 1, 64, 32, False)
    np.testing.assert_array_equal(plain, [[[2, 0, 10], [0, 2, 20]]])
    udp = affine_of_boxes(boxes, 1, 64, 32, True)
    np.testing.assert_allclose(udp[0] @ [31, 63, 1], [74, 148], rtol=1e-6)  # the last pixel is the box's edge


@pytest.mark.parametrize("bad", [[5, 5, 5, 9], [5, 9, 9, 5], [0, 0, np.nan, 1], [0, 0, np.inf, 1], [0, 0, 0, 0]])
def test_boxes_without_size_name_their_rows(bad: list[float]) -> None:
    boxes = np.array([[0, 0, 1, 1], bad, [0, 0, 2, 2], bad], np.float32)
    with pytest.raises(InputError, match="in rows 1, 3: leave"):
        affine_of_boxes(boxes, 4, 64, 64, False)


@pytest.mark.parametrize("boxes", [np.zeros((2, 5)), np.zeros(4), np.zeros((1, 4)), np.zeros((2, 4), bool)])
def test_boxes_of_another_shape_are_refused(boxes: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected boxes \[2, 4\]"):
        affine_of_boxes(boxes, 2, 64, 64, False)


def test_udp_needs_two_pixels() -> None:
    with pytest.raises(InputError, match="at least 2 x 2"):
        affine_of_boxes(np.array([[0, 0, 1, 1]]), 1, 64, 1, True)


def test_no_boxes_for_no_poses() -> None:
    assert affine_of_boxes(np.zeros((0, 4)), 0, 64, 64, False).shape == (0, 2, 3)


def test_one_affine_serves_all_poses() -> None:
    one = np.array([[2, 0, 1], [0, 2, 3]])
    np.testing.assert_array_equal(check_affine(one, 3), np.stack([one] * 3).astype(np.float32))
    assert check_affine(np.zeros((3, 2, 3)), 3).dtype == np.float32
    with pytest.raises(InputError, match=r"expected affine \[3, 2, 3\] or \[2, 3\], got float64 \[2, 2, 3\]"):
        check_affine(np.zeros((2, 2, 3)), 3)
