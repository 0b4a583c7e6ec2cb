# SPDX-License-Identifier: Apache-2.0
"""A stand-in for ``cuda.bindings.runtime`` and for an engine, on host memory, for machines without a GPU.

Streams are as lazy as they may be: nothing runs before somebody waits for it, so that work on two streams that forgot
to wait for each other gives wrong numbers here, too. Recording a graph, allocating while recording, addresses that
are not aligned or not allocated: what CUDA and TensorRT forbid fails. What it cannot show is what a GPU makes of the
calls; tests marked ``cuda`` are for that.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Op = Callable[[], None]
GUARD = 512


class Stream:
    def __init__(self) -> None:
        self.queue: list[Op] = []
        self.done = 0
        self.recording: list[Op] | None = None

    def drain(self, until: int | None = None) -> None:
        stop = len(self.queue) if until is None else until
        while self.done < stop:
            self.done += 1
            self.queue[self.done - 1]()


class DeviceArray:
    """What a library's CUDA array is to us."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray, offset: int = 0) -> None:
        self.cuda, self.shape, self.dtype = cuda, values.shape, values.dtype
        self.base = cuda.malloc(values.nbytes + offset)
        self.address = self.base + offset
        cuda.at(self.address, values.nbytes)[:] = np.ascontiguousarray(values).view(np.uint8).ravel()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}

    def numpy(self) -> np.ndarray:
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return self.cuda.at(self.address, size).copy().view(self.dtype).reshape(self.shape)


class FakeCuda:
    """The functions of ``cuda.bindings.runtime`` that we use; each answers (error, value…)."""

    def __init__(self) -> None:
        self.cudaStreamNonBlocking, self.cudaEventDisableTiming = 1, 2
        self.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down", cudaMemcpyDeviceToDevice="on"
        )
        self.cudaStreamCaptureStatus = SimpleNamespace(cudaStreamCaptureStatusNone=0)
        self.cudaStreamCaptureMode = SimpleNamespace(
            cudaStreamCaptureModeRelaxed="relaxed", cudaStreamCaptureModeThreadLocal="local"
        )
        self.blocks: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {0: Stream()}
        self.calls: list[str] = []
        self.mode = "global"
        self.device = 0
        self.next_address = 1 << 20

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("cuda") and callable(value):
            object.__getattribute__(self, "calls").append(name)
        return value

    def malloc(self, size: int) -> int:
        address = self.next_address
        self.next_address += (size + GUARD + 255) // 256 * 256
        self.blocks[address] = np.full(size, 0xAB, np.uint8)
        return address

    def at(self, address: int, size: int) -> np.ndarray:
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} were never allocated")

    def run_all(self, seed: int) -> None:
        """Everything that is queued, a step here and a step there, as streams may that nothing holds together."""
        rng = np.random.default_rng(seed)
        while waiting := [s for s in self.streams.values() if s.done < len(s.queue)]:
            stream = waiting[rng.integers(len(waiting))]
            stream.drain(stream.done + 1)

    def put(self, stream: int, op: Op) -> None:
        target = self.streams[stream]
        (target.queue if target.recording is None else target.recording).append(op)

    def quiet(self) -> None:
        recording = any(s.recording is not None for s in self.streams.values())
        assert self.mode == "relaxed" or not recording, "forbidden while a stream is being recorded"

    def cudaGetDevice(self) -> Any:
        return 0, self.device

    def cudaSetDevice(self, device: int) -> Any:
        self.device = device
        return (0,)

    def cudaMalloc(self, size: int) -> Any:
        self.quiet()
        return 0, self.malloc(size)

    def cudaFree(self, address: int) -> Any:
        del self.blocks[address]
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        handle = 100 + len(self.streams)
        self.streams[handle] = Stream()
        return 0, handle

    def cudaStreamDestroy(self, stream: int) -> Any:
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        assert self.streams[stream].recording is None
        self.quiet()
        self.streams[stream].drain()
        return (0,)

    def cudaDeviceSynchronize(self) -> Any:
        self.quiet()
        for stream in self.streams.values():
            stream.drain()
        return (0,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:
        self.put(stream, lambda: self.at(address, size).fill(value))
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> Any:
        import ctypes

        if kind == "up":
            data = np.frombuffer(ctypes.string_at(source, size), np.uint8).copy()
            self.put(stream, lambda: self.at(target, size).__setitem__(slice(None), data))
        elif kind == "down":
            self.put(stream, lambda: ctypes.memmove(target, self.at(source, size).tobytes(), size) and None)
        else:
            self.put(stream, lambda: self.at(target, size).__setitem__(slice(None), self.at(source, size)))
        return (0,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return 0, SimpleNamespace(stream=None, until=0)

    def cudaEventDestroy(self, event: Any) -> Any:
        return (0,)

    def cudaEventRecord(self, event: Any, stream: int) -> Any:
        assert self.streams[stream].recording is None
        event.stream, event.until = stream, len(self.streams[stream].queue)
        return (0,)

    def cudaEventSynchronize(self, event: Any) -> Any:
        self.streams[event.stream].drain(event.until)
        return (0,)

    def cudaStreamWaitEvent(self, stream: int, event: Any, flags: int) -> Any:
        assert self.streams[stream].recording is None, "an event from outside cannot be recorded"
        other, until = self.streams[event.stream], event.until
        self.put(stream, lambda: other.drain(until))
        return (0,)

    def cudaStreamIsCapturing(self, stream: int) -> Any:
        return 0, int(self.streams[stream].recording is not None)

    def cudaThreadExchangeStreamCaptureMode(self, mode: str) -> Any:
        before, self.mode = self.mode, mode
        return 0, before

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> Any:
        assert stream != 0
        self.streams[stream].recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        recorded, self.streams[stream].recording = self.streams[stream].recording, None
        return 0, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return 0, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> Any:
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> Any:
        return (0,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> Any:
        def run() -> None:
            for op in graph:
                op()

        self.put(stream, run)
        return (0,)


class FakeContext:
    """An execution context whose engine answers twice the joints, the confidence, confidence < δ, and perhaps std.

    As TensorRT's, it has scratch memory: two runs of one context that overlap spoil each other.
    """

    def __init__(self, cuda: FakeCuda, inputs: tuple[str, str, str], outputs: tuple[str, ...]) -> None:
        self.cuda, self.names, self.outputs = cuda, inputs, outputs
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran_with: set[int] = set()
        self.batches: list[int] = []
        self.refuses = False
        self.scratch: np.ndarray | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return name in self.names

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, f"{name} at {address} is not aligned to 256 bytes"
        self.addresses[name] = address
        return name in (*self.names, *self.outputs)

    def execute_async_v3(self, stream: int) -> bool:
        if self.refuses:
            return False
        count = self.shapes[self.names[0]][0]
        if self.cuda.streams[stream].recording is not None:
            assert count in self.ran_with, "TensorRT wants one run of these shapes before a recording"
        self.ran_with.add(count)
        self.batches.append(count)
        read, write = dict(self.shapes), dict(self.addresses)

        def load() -> None:
            first = self._array(write[self.names[0]], read[self.names[0]])
            self.scratch = 2 * first

        def finish() -> None:
            second = self._array(write[self.names[1]], read[self.names[1]])
            delta = self._array(write[self.names[2]], (1,))
            assert self.scratch is not None
            joints, confidence, mask, *std = (write[name] for name in self.outputs)
            self._write(joints, self.scratch)
            self._write(confidence, second)
            self._write(mask, second < delta)
            for address in std:
                self._write(address, 3 * second)

        self.cuda.put(stream, load)
        self.cuda.put(stream, finish)
        return True

    def _array(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        size = 4 * int(np.prod(shape))
        return self.cuda.at(address, size).view(np.float32).reshape(shape).copy()

    def _write(self, address: int, values: np.ndarray) -> None:
        self.cuda.at(address, values.nbytes)[:] = np.ascontiguousarray(values).view(np.uint8).ravel()
