# SPDX-License-Identifier: Apache-2.0
"""The caller's CUDA arrays: where they lie, and on which stream their owner works. Nothing is copied or waited for.

torch, CuPy, Numba and JAX all say it through ``__cuda_array_interface__``; what has DLPack alone goes through torch or
CuPy, whichever the caller has imported. None of them is imported here.
May use: errors. Test: tests/test_device_arrays.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from port_deploy.errors import InputError

ITEM_BYTES = {"<f4": 4, "<f2": 2, "<V2": 2, "|b1": 1, "|u1": 1}
DTYPES = {"<f4": "float32", "<f2": "float16", "<V2": "bfloat16"}
"""Floating-point types by their ``typestr``; JAX writes bfloat16 like that."""
NAMES = {**DTYPES, "|b1": "bool", "|u1": "uint8"}
_TYPESTRS = {name: typestr for typestr, name in NAMES.items()}
CUDA_DLPACK = frozenset({2, 13})
"""DLPack's device types whose memory a GPU reads: CUDA, CUDA managed."""


class DeviceView(NamedTuple):
    """An array in a GPU's memory.

    Attributes:
        address: Of its first element.
        shape: Of it.
        typestr: As ``__cuda_array_interface__`` has it.
        owner: Keeps the memory alive.
        strides: In elements; C-contiguous ones unless asked otherwise.
        device: Number of the GPU, where its library says it.
    """

    address: int
    shape: tuple[int, ...]
    typestr: str
    owner: Any = None
    strides: tuple[int, ...] = ()
    device: int | None = None

    @property
    def size_bytes(self) -> int:
        """Of the whole array."""
        return math.prod(self.shape) * ITEM_BYTES[self.typestr]

    def rows(self, start: int, stop: int) -> DeviceView:
        """Part of it along the first axis, on the same memory."""
        step = math.prod(self.shape[1:]) * ITEM_BYTES[self.typestr]
        return self._replace(address=self.address + start * step, shape=(stop - start, *self.shape[1:]))


def is_on_device(value: Any) -> bool:
    """Whether an argument is an array in a GPU's memory."""
    if (tensor := _torch_tensor(value)) is not None:
        return bool(tensor.device.type == "cuda")
    if hasattr(value, "__cuda_array_interface__"):
        return True
    ask = getattr(value, "__dlpack_device__", None)
    return ask is not None and int(ask()[0]) in CUDA_DLPACK


def device_view(
    value: Any,
    name: str,
    shape: Sequence[int | None],
    typestr: str | tuple[str, ...],
    writable: bool = False,
    dense: bool = True,
) -> DeviceView:
    """An array of the caller's, where it lies.

    Args:
        value: Any kind of CUDA array.
        name: What it is, for messages.
        shape: Expected; None where any size does.
        typestr: Expected; several where any of them does.
        writable: It is written to.
        dense: It must be C-contiguous. If not, its last axis must be.

    Raises:
        InputError: It is not in a GPU's memory, has another shape or type, or other strides.
    """
    view, read_only = _torch_view(value, name) or _interface_view(value, name)
    found, kinds = view.shape, (typestr,) if isinstance(typestr, str) else typestr
    fits = len(found) == len(shape) and all(want in (None, have) for want, have in zip(shape, found, strict=True))
    if not fits or view.typestr not in kinds:
        wanted = [n if n is not None else "·" for n in shape]
        types = " or ".join(NAMES[k] for k in kinds)
        kind = NAMES.get(view.typestr, view.typestr)
        raise InputError(f"expected {name} {types} {wanted}, got {kind} {list(found)}".replace("'", ""))
    if not (_is_dense(view) if dense else found[-1] <= 1 or view.strides[-1] == 1):
        raise InputError(f"expected {name} as a dense array, got one with gaps: pass {name}.contiguous()")
    if writable and read_only:
        raise InputError(f"expected {name} to be writable, got a read-only array")
    return view


def stream_of(stream: Any, arrays: Sequence[Any]) -> int:
    """The CUDA stream of a call as a number.

    Args:
        stream: What the caller said: a number, or a stream of torch (``cuda_stream``), CuPy (``ptr``) or anything with
            ``__cuda_stream__``. None: the current stream of the library that the arrays come from.
        arrays: The call's arrays.

    Raises:
        InputError: It is no stream.
    """
    if stream is None:
        return _current_stream(arrays)
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):
        if isinstance(handle := getattr(stream, attribute, None), int):
            return handle
    raise InputError(f"expected a CUDA stream or its handle, got {type(stream).__name__}: pass stream.cuda_stream")


def empty_like(value: Any, name: str) -> Callable[[tuple[int, ...], str], Any]:
    """What makes new arrays of the same kind, on the same device: ``make(shape, "float32")``.

    Raises:
        InputError: The kind of array is not one that is known how to make.
    """
    if (tensor := _torch_tensor(value)) is not None:
        torch = sys.modules["torch"]
        return lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype), device=tensor.device)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return lambda shape, dtype: cupy.empty(shape, dtype)
    numba = sys.modules.get("numba.cuda")
    if numba is not None and numba.is_cuda_array(value):
        return lambda shape, dtype: numba.device_array(shape, dtype)
    raise InputError(
        f"{name} is a {type(value).__name__}, and new arrays of that kind cannot be made: pass out=(joints, "
        "confidence, mask)"
    )


def _torch_tensor(value: Any) -> Any:
    torch = sys.modules.get("torch")
    return value if torch is not None and isinstance(value, getattr(torch, "Tensor", ())) else None


def _current_stream(arrays: Sequence[Any]) -> int:
    for value in arrays:
        if (tensor := _torch_tensor(value)) is not None and tensor.device.type == "cuda":
            return int(sys.modules["torch"].cuda.current_stream(tensor.device).cuda_stream)
    cupy = sys.modules.get("cupy")
    for value in arrays:
        if cupy is not None and isinstance(value, cupy.ndarray):
            return int(cupy.cuda.get_current_stream().ptr)
        stream = getattr(value, "__cuda_array_interface__", {}).get("stream")
        if stream is not None:
            return int(stream)  # the producer's own, on which the array becomes ready
    return 0


def _torch_view(value: Any, name: str) -> tuple[DeviceView, bool] | None:
    """A torch tensor's, from its attributes: its ``__cuda_array_interface__`` takes longer than a refinement."""
    tensor = _torch_tensor(value)
    if tensor is None:
        return None
    if tensor.device.type != "cuda":
        raise _elsewhere(name, str(tensor.device))
    kind = str(tensor.dtype).removeprefix("torch.")
    typestr = _TYPESTRS.get(kind, kind)
    return DeviceView(
        tensor.data_ptr(), tuple(tensor.shape), typestr, value, tuple(tensor.stride()), tensor.get_device()
    ), False


def _interface_view(value: Any, name: str) -> tuple[DeviceView, bool]:
    if not hasattr(value, "__cuda_array_interface__") and hasattr(value, "__dlpack__"):
        device = int(value.__dlpack_device__()[0])
        if device not in CUDA_DLPACK:
            raise _elsewhere(name, "the CPU" if device == 1 else f"a device of DLPack type {device}")
        for library in ("torch", "cupy"):
            if library in sys.modules:
                value = sys.modules[library].from_dlpack(value)
                if (view := _torch_view(value, name)) is not None:
                    return view
                break
    try:
        interface = dict(value.__cuda_array_interface__)
    except (AttributeError, TypeError, RuntimeError) as error:  # a dtype that the interface does not know
        raise InputError(
            f"expected {name} as a CUDA array with __cuda_array_interface__, got {type(value).__name__} ({error}): "
            "torch, CuPy and Numba arrays have it"
        ) from error
    shape = tuple(int(n) for n in interface["shape"])
    typestr = str(interface["typestr"])
    address, read_only = interface["data"]
    strides, step = interface.get("strides"), int(typestr[2:])
    if strides is None:
        elements = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    elif any(s % step for n, s in zip(shape, strides, strict=True) if n > 1):
        raise InputError(f"expected {name} with strides of whole elements, got {tuple(strides)} bytes: copy it first")
    else:
        elements = tuple(int(s) // step for s in strides)
    number = getattr(getattr(value, "device", None), "id", None)  # CuPy's
    gpu = number if isinstance(number, int) else None
    return DeviceView(int(address or 0), shape, typestr, value, elements, gpu), bool(read_only)


def _elsewhere(name: str, where: str) -> InputError:
    return InputError(f"expected {name} on the GPU like the other arrays of the call, got it on {where}: move it there")


def _is_dense(view: DeviceView) -> bool:
    if 0 in view.shape:
        return True
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
