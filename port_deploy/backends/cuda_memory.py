# SPDX-License-Identifier: Apache-2.0
"""A stream, device memory and copies, through NVIDIA's own ``cuda.bindings``: all that an engine needs beside TensorRT.

May use: errors, cuda.bindings. Test: tests/test_tensorrt.py (what works without a GPU).
"""

from __future__ import annotations

import weakref
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from port_deploy.errors import BackendUnavailableError


def has_bindings() -> bool:
    """``cuda.bindings`` is installed."""
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def device_state() -> str | None:
    """None where a GPU can be used, else what is missing, for people."""
    if not has_bindings():
        return "the Python package cuda-bindings is not installed"
    try:
        runtime = _runtime()
        error, count = runtime.cudaGetDeviceCount()
    except (ImportError, RuntimeError, OSError) as problem:  # no driver library to load
        return f"no NVIDIA GPU or driver: {problem}"
    if int(error) != 0:
        return f"no NVIDIA GPU or driver: {_message(error)} (CUDA error {int(error)})"
    return None if count else "no NVIDIA GPU"


def compute_capability(device: int = 0) -> str:
    """``8.9`` and the like.

    Raises:
        BackendUnavailableError: There is no such GPU.
    """
    runtime = _runtime()
    attribute = runtime.cudaDeviceAttr
    major = check(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, device))
    minor = check(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, device))
    return f"{major}.{minor}"


def select_device(device: int) -> None:
    """Make a GPU the calling thread's current one."""
    check(_runtime().cudaSetDevice(device))


def check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA runtime call's (error, value…).

    Raises:
        BackendUnavailableError: The call failed.
    """
    error, *values = result
    if int(error) != 0:
        raise BackendUnavailableError(f"CUDA says: {_message(error)} (error {int(error)}): see nvidia-smi")
    return values[0] if len(values) == 1 else tuple(values)


class Arena:
    """A stream and one growing block of device memory per name. Belongs to one thread; freed with the object."""

    def __init__(self) -> None:
        runtime = _runtime()
        self.stream = int(check(runtime.cudaStreamCreate()))
        self._blocks: dict[str, tuple[int, int]] = {}
        self._finalizer = weakref.finalize(self, _release, self.stream, self._blocks)

    def block(self, name: str, size_bytes: int) -> int:
        """Address of at least that many bytes; what the block held before is lost when it grows."""
        address, capacity = self._blocks.get(name, (0, 0))
        if capacity < size_bytes:
            runtime = _runtime()
            if address:
                check(runtime.cudaStreamSynchronize(self.stream))
                check(runtime.cudaFree(address))
                del self._blocks[name]
            address = int(check(runtime.cudaMalloc(size_bytes)))
            self._blocks[name] = (address, size_bytes)
        return address

    def upload(self, address: int, array: Any) -> None:
        """Copy a contiguous host array to the device, in stream order."""
        runtime = _runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream))

    def download(self, array: Any, address: int) -> None:
        """Copy from the device into a contiguous host array, in stream order."""
        runtime = _runtime()
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.stream))

    def synchronise(self) -> None:
        """Wait until all that was asked of the stream is done."""
        check(_runtime().cudaStreamSynchronize(self.stream))


def _release(stream: int, blocks: dict[str, tuple[int, int]]) -> None:
    runtime = _runtime()  # errors are of no use here: the process may be ending
    runtime.cudaStreamSynchronize(stream)
    for address, _ in blocks.values():
        runtime.cudaFree(address)
    runtime.cudaStreamDestroy(stream)


def _runtime() -> Any:
    return import_module("cuda.bindings.runtime")


def _message(error: Any) -> str:
    text = _runtime().cudaGetErrorString(error)[1]
    return text.decode() if isinstance(text, bytes) else str(text)
