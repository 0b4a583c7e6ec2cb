# SPDX-License-Identifier: Apache-2.0
"""A stream, device memory and copies, through NVIDIA's own ``cuda.bindings``: all that an engine needs beside TensorRT.

May use: errors, cuda.bindings. Test: tests/test_tensorrt.py (what works without a GPU).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
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
        runtime = cuda_runtime()
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
    runtime = cuda_runtime()
    attribute = runtime.cudaDeviceAttr
    major = check(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, device))
    minor = check(runtime.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, device))
    return f"{major}.{minor}"


def device_name(device: int = 0) -> str:
    """The model of a GPU.

    Raises:
        BackendUnavailableError: There is no such GPU.
    """
    name = check(cuda_runtime().cudaGetDeviceProperties(device)).name
    return name.decode() if isinstance(name, bytes) else str(name)


def free_memory() -> tuple[int, int]:
    """Free and total bytes of the current GPU."""
    free, total = check(cuda_runtime().cudaMemGetInfo())
    return int(free), int(total)


def select_device(device: int) -> None:
    """Make a GPU the calling thread's current one."""
    check(cuda_runtime().cudaSetDevice(device))


def current_device() -> int:
    """The number of the calling thread's current GPU."""
    return int(check(cuda_runtime().cudaGetDevice()))


@contextmanager
def on_device(device: int) -> Iterator[None]:
    """A GPU as the calling thread's current one for as long as the block lasts."""
    runtime, before = cuda_runtime(), current_device()
    if before == device:
        yield
        return
    check(runtime.cudaSetDevice(device))
    try:
        yield
    finally:
        check(runtime.cudaSetDevice(before))


def check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA runtime call's (error, value…).

    Raises:
        BackendUnavailableError: The call failed.
    """
    error, *values = result
    if int(error) != 0:
        raise BackendUnavailableError(f"CUDA says: {_message(error)} (error {int(error)}): see nvidia-smi")
    return values[0] if len(values) == 1 else tuple(values)


ALIGNMENT = 256
"""Bytes: what TensorRT wants of every address, and what cudaMalloc gives."""


class Arena:
    """A stream and one growing block of device memory per name. Belongs to one thread; freed with the object."""

    def __init__(self) -> None:
        runtime = cuda_runtime()
        self.stream = int(check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)))
        self._blocks: dict[str, tuple[int, int]] = {}
        self._finalizer = weakref.finalize(self, _release, runtime, self.stream, self._blocks)

    def block(self, name: str, size_bytes: int) -> int:
        """Address of at least that many bytes; what the block held before is lost when it grows."""
        address, capacity = self._blocks.get(name, (0, 0))
        if capacity < size_bytes:
            runtime = cuda_runtime()
            if address:
                check(runtime.cudaDeviceSynchronize())  # whatever stream it was used on
                check(runtime.cudaFree(address))
                del self._blocks[name]
            capacity = 1 << max(size_bytes - 1, ALIGNMENT - 1).bit_length()
            address = int(check(runtime.cudaMalloc(capacity)))
            self._blocks[name] = (address, capacity)
            check(runtime.cudaMemsetAsync(address, 0, capacity, self.stream))
            self.synchronise()
        return address

    def upload(self, address: int, array: Any, stream: int | None = None) -> None:
        """Copy a contiguous host array to the device, in stream order."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, array: Any, address: int) -> None:
        """Copy from the device into a contiguous host array, in stream order."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost", None)

    def move(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Copy on the device, in stream order."""
        self._copy(target, source, size_bytes, "cudaMemcpyDeviceToDevice", stream)

    def _copy(self, target: int, source: int, size_bytes: int, kind: str, stream: int | None) -> None:
        runtime = cuda_runtime()
        queue = self.stream if stream is None else stream
        check(runtime.cudaMemcpyAsync(target, source, size_bytes, getattr(runtime.cudaMemcpyKind, kind), queue))

    def synchronise(self) -> None:
        """Wait until all that was asked of the arena's own stream is done."""
        check(cuda_runtime().cudaStreamSynchronize(self.stream))


class Order:
    """Lets work that shares memory move from stream to stream without overlapping itself. Belongs to one thread."""

    def __init__(self) -> None:
        self._runtime = runtime = cuda_runtime()
        self._event = check(runtime.cudaEventCreateWithFlags(runtime.cudaEventDisableTiming))
        self._last: int | None = None
        self._finalizer = weakref.finalize(self, runtime.cudaEventDestroy, self._event)

    def before(self, stream: int) -> None:
        """Work that follows on ``stream`` waits for what `after` marked on another."""
        if self._last is not None and self._last != stream:
            check(cuda_runtime().cudaStreamWaitEvent(stream, self._event, 0))

    def wait(self) -> None:
        """Wait for what was marked last. Errors are of no use here: the process may be ending."""
        if self._last is not None:
            self._runtime.cudaEventSynchronize(self._event)

    def after(self, stream: int) -> None:
        """Marks the work that was queued on ``stream`` so far."""
        check(cuda_runtime().cudaEventRecord(self._event, stream))
        self._last = stream


def _release(runtime: Any, stream: int, blocks: dict[str, tuple[int, int]]) -> None:
    # errors are of no use here: the process may be ending
    runtime.cudaStreamSynchronize(stream)
    for address, _ in blocks.values():
        runtime.cudaFree(address)
    runtime.cudaStreamDestroy(stream)


def cuda_runtime() -> Any:
    """The module ``cuda.bindings.runtime``; every call of it answers (error, value…)."""
    return import_module("cuda.bindings.runtime")


def _message(error: Any) -> str:
    text = cuda_runtime().cudaGetErrorString(error)[1]
    return text.decode() if isinstance(text, bytes) else str(text)
