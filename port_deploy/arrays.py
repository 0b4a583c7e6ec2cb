# SPDX-License-Identifier: Apache-2.0
"""The caller's arrays in, the same kind out, without a copy: NumPy, torch on the CPU, DLPack, the buffer protocol.

Nothing but NumPy is imported: a torch tensor can only come from a caller who has imported torch.
May use: errors, NumPy. Test: tests/test_arrays.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError

Array = NDArray[Any]
Wrap = Callable[[Array], Any]
"""Turns a NumPy array into the caller's kind, on the same memory."""

FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
BOOL = np.dtype(np.bool_)
HOST_DEVICES = frozenset({1, 3, 11})
"""DLPack's device types whose memory the processor reads: CPU, CUDA pinned, ROCm pinned."""


def host_view(value: Any, name: str) -> tuple[Array, Wrap | None]:
    """The caller's array as NumPy, on the same memory.

    Args:
        value: A NumPy array, a torch CPU tensor (detached if it requires grad), anything with DLPack on the CPU, or
            anything with the buffer protocol.
        name: What it is, for messages.

    Returns:
        The array, and what makes the caller's kind of an array (None: it is NumPy already).

    Raises:
        InputError: It is no array, or its memory is on a device.
    """
    if type(value) is np.ndarray:
        return value, None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        return _torch_view(value, name), torch.from_numpy
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"expected {name} as a plain array, got a masked array: lower the confidence of its joints")
    if isinstance(value, np.ndarray):
        return np.asarray(value), None
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _dlpack_view(value, name)
    if hasattr(value, "__cuda_array_interface__"):
        raise _on_device(name, "a CUDA device")
    try:
        return np.asarray(memoryview(value)), None
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"expected {name} as a NumPy array, a torch tensor or anything with DLPack, got {type(value).__name__}: "
        f"numpy.asarray({name}, numpy.float32) makes one"
    )


def _torch_view(tensor: Any, name: str) -> Array:
    if tensor.device.type != "cpu":
        raise _on_device(name, str(tensor.device))
    try:
        view: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"expected {name} as a dense float32 tensor, got {tensor.dtype} {tensor.layout}: {name}.to_dense().float()"
        ) from error
    return view


def _dlpack_view(value: Any, name: str) -> tuple[Array, Wrap | None]:
    device = int(value.__dlpack_device__()[0])
    if device not in HOST_DEVICES:
        raise _on_device(name, "a CUDA device" if device in (2, 13) else f"a device of DLPack type {device}")
    try:
        view = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"expected {name} as an array that NumPy can read, got {error}: convert it first") from error
    namespace = getattr(value, "__array_namespace__", None)
    return view, getattr(namespace(), "from_dlpack", None) if namespace is not None else None


def _on_device(name: str, device: str) -> InputError:
    return InputError(
        f"expected {name} in host memory, got {device}: this backend reads host memory and copies nothing by itself, "
        f"so pass {name}.cpu() or a NumPy array"
    )


def wrap_all(wrap: Wrap | None, *arrays: Array) -> tuple[Any, ...]:
    """The arrays as the caller's kind, on the same memory."""
    return arrays if wrap is None else tuple(map(wrap, arrays))


def check_output(value: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """One of the caller's preallocated arrays, as NumPy on the same memory.

    Raises:
        InputError: Shape, dtype or layout do not fit, or it cannot be written.
    """
    array, _ = host_view(value, name)
    if array.shape != shape or array.dtype != dtype:
        raise InputError(f"expected {name} {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}")
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable and flags.aligned):
        raise InputError(f"expected {name} to be C-contiguous and writable: numpy.empty({shape}, {str(dtype)!r}) is")
    return array


def check_threshold(value: Any) -> float:
    """δ of one call: a finite number of at least 0, Python's or NumPy's.

    Raises:
        InputError: It is something else.
    """
    try:
        number = float(value) if not isinstance(value, (bool, str, bytes)) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise InputError(f"expected threshold to be a finite number of at least 0, got {value!r}: 0 masks nothing")
    return number


def check_boxes(boxes: Any, name: str, batch: int | None = None) -> NDArray[np.float64]:
    """Boxes as float64 [B, 4], x1, y1, x2, y2.

    Raises:
        InputError: The shape is not [B, 4], or a box has no size; the message names the rows.
    """
    array, _ = host_view(boxes, name)
    count = "B" if batch is None else batch
    fits = array.ndim == 2 and array.shape[1] == 4 and batch in (None, len(array))
    if not fits or array.dtype.kind not in "fiu":
        raise InputError(f"expected {name} [{count}, 4] as x1, y1, x2, y2, got {array.dtype} {list(array.shape)}")
    corners = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        size = corners[:, 2:] - corners[:, :2]
        bad = np.flatnonzero(~((size > 0) & np.isfinite(size)).all(1))
    if len(bad):
        rows = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        raise InputError(f"expected {name} with x2 > x1 and y2 > y1, not so in rows {rows}: leave those out")
    return corners


def affine_of_boxes(boxes: Any, batch: int, height: int, width: int, udp: bool) -> NDArray[np.float32]:
    """[B, 2, 3] that takes heatmap pixels to image pixels: ``x1 + x * (x2 - x1) / W``, with ``udp`` ``/ (W - 1)``.

    Args:
        boxes: [B, 4] real numbers, x1, y1, x2, y2 of the image region that each pose's heatmaps cover.
        batch: B.
        height: H.
        width: W.
        udp: The detector was trained with unbiased data processing.

    Raises:
        InputError: The shape is not [B, 4], or a box has no size; the message names the rows.
    """
    corners = check_boxes(boxes, "boxes", batch)
    if udp and (height < 2 or width < 2):
        raise InputError(f"expected heatmaps of at least 2 x 2 with udp=True, got {height} x {width}")
    size = corners[:, 2:] - corners[:, :2]
    affine = np.zeros((batch, 2, 3), np.float32)
    steps = (width - 1, height - 1) if udp else (width, height)
    affine[:, (0, 1), (0, 1)] = size / steps
    affine[:, :, 2] = corners[:, :2]
    return affine


def check_affine(affine: Any, batch: int) -> NDArray[np.float32]:
    """[B, 2, 3], or [2, 3] for all poses, as a C-contiguous float32 [B, 2, 3].

    Raises:
        InputError: Another shape, or not real numbers.
    """
    array, _ = host_view(affine, "affine")
    if array.shape not in ((batch, 2, 3), (2, 3)) or array.dtype.kind not in "fiu":
        raise InputError(f"expected affine [{batch}, 2, 3] or [2, 3], got {array.dtype} {list(array.shape)}")
    if array.ndim == 2:
        array = np.broadcast_to(array, (batch, 2, 3))
    return np.ascontiguousarray(array, dtype=np.float32)


def to_image(boxes: Any, affine: Any, udp: bool, batch: int, height: int, width: int) -> NDArray[np.float32] | None:
    """What takes a call's pixels to image pixels, [B, 2, 3]: `affine_of_boxes` or `check_affine`; None for neither.

    Raises:
        InputError: Both were given, one does not fit, or ``udp`` came without boxes.
    """
    if boxes is not None:
        if affine is not None:
            raise InputError("expected boxes or affine, got both: they say the same")
        return affine_of_boxes(boxes, batch, height, width, udp)
    if udp:
        raise InputError("udp=True says how boxes are read, and none came: pass boxes=")
    return None if affine is None else check_affine(affine, batch)
