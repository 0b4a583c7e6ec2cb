# SPDX-License-Identifier: Apache-2.0
"""An engine as a `Backend`: arrays of the host or of the GPU, any B, any thread, the caller's stream.

Arrays in the GPU's memory are bound where they lie; one that is not aligned to 256 bytes, or belongs to a batch smaller
than the profile, goes through a copy on the device. A batch larger than the profile runs in pieces. Nothing is waited
for unless the arrays are the host's.
May use: artefact, engine_worker, cuda_memory, device_arrays, sidecar, errors. Test: tests/test_engine_run.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import cuda_memory
from port_deploy.backends.artefact import ArtefactBackend
from port_deploy.backends.base import FloatArray, HostBuffers
from port_deploy.backends.engine_worker import Worker
from port_deploy.device_arrays import ITEM_BYTES, DeviceView, device_view, stream_of
from port_deploy.errors import InputError
from port_deploy.sidecar import Sidecar

_TYPES = {"float32": "<f4", "float16": "<f2", "uint8": "|u1", "bool": "|b1"}


class TensorRtBackend(ArtefactBackend):
    """One engine, shared by all threads; each has a `Worker` of its own.

    Args:
        sidecar: The engine's.
        make_context: Makes an execution context; its argument says whether the library may record graphs itself.
        detail: What it runs on and how.
        device: Number of the GPU.
        why: The library's last error.
        record: Record CUDA graphs of calls that come again.
        close: Called when the backend is given up.
    """

    takes_device = True

    def __init__(
        self,
        sidecar: Sidecar,
        make_context: Callable[[bool], Any],
        detail: str,
        device: int = 0,
        why: Callable[[], str] = lambda: "it gave no reason",
        record: bool = True,
    ) -> None:
        assert sidecar.engine is not None  # read_sidecar saw to both
        assert sidecar.batch is not None
        super().__init__(sidecar.engine.flavour, detail, sidecar)
        self.device = device
        self._make, self._why, self._record = make_context, why, record
        self._smallest, _, self._largest = sidecar.batch
        self._outputs = self.output_names
        tensors = {t["name"]: t for t in (*sidecar.to_json()["inputs"], *sidecar.to_json()["outputs"])}
        names = (*self.input_names, *self._outputs)
        self._rest = {n: tuple(tensors[n]["shape"][1:]) for n in names}
        self._type = {n: _TYPES[tensors[n]["dtype"]] for n in names}
        self._row_bytes = {n: int(np.prod(self._rest[n], dtype=int)) * ITEM_BYTES[self._type[n]] for n in names}
        self._local = threading.local()
        self._held: set[Worker] = set()

    def warm_up(self) -> None:
        """Run the smallest and the best batch of zeros, so that the first real call finds everything loaded."""
        assert self.sidecar.batch is not None
        for count in dict.fromkeys(self.sidecar.batch[:2]):
            first, second = (np.zeros((count, *self._rest[n]), np.dtype(self._type[n])) for n in self.input_names[:2])
            out = HostBuffers(*(np.zeros((count, *self._rest[n]), np.dtype(self._type[n])) for n in self._outputs))
            self._infer(first, second, np.array([self.spec.threshold], np.float32), out)

    def _infer(self, first: NDArray[Any], second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        given = [np.ascontiguousarray(a) for a in (first, second)]  # alive until the stream is done
        targets = self.targets(out)
        with cuda_memory.on_device(self.device):
            worker = self._worker()
            arena = worker.arena
            for start in range(0, len(first), self._largest):
                count = min(self._largest, len(first) - start)
                full = max(count, self._smallest)
                sizes = self._sizes(full)
                blocks = [arena.block(f"host.{n}", s) for n, s in sizes.items() if n != "threshold"]
                for block, array in zip(blocks, given, strict=False):
                    arena.upload(block, array[start : start + count])
                addresses = (*blocks[:2], worker.threshold(float(threshold[0])), *blocks[2:])
                worker.enqueue(full, addresses, tuple(sizes.values()), arena.stream)
                for block, target in zip(blocks[2:], targets, strict=True):
                    arena.download(target[start : start + count], block)
            arena.synchronise()

    def run_on_device(
        self, inputs: Sequence[Any], threshold: float, outputs: Sequence[Any], stream: Any = None
    ) -> None:
        """Run on arrays in the GPU's memory, on the caller's stream; the work is queued, nothing is waited for.

        Args:
            inputs: The engine's two inputs, dense, with ``__cuda_array_interface__`` or DLPack: joints [B, N, 2] and
                confidence [B, N]; or heatmaps [B, N, H, W], or images, and affine [B, 2, 3] (None: pixels as they are).
            threshold: δ.
            outputs: Joints [B, N, 2], confidence [B, N] and mask [B, N] likewise, and std [B, N] of a model with a
                variance; written to.
            stream: A stream or its handle; None: the current one of the library that the arrays come from.

        Raises:
            InputError: An array does not fit; nothing has been queued.
            BackendUnavailableError: The library refuses to run.
        """
        first = device_view(inputs[0], self.input_names[0], (None, *self._rest[self.input_names[0]]), self._type_of(0))
        batch = first.shape[0]
        self._check_device(inputs[0])
        given: list[DeviceView | None] = [first]
        name = self.input_names[1]
        if inputs[1] is None and name == "affine":
            given.append(None)
        else:
            given.append(device_view(inputs[1], name, (batch, *self._rest[name]), self._type_of(1)))
        written = [
            device_view(o, "out." + n.removesuffix("_out"), (batch, *self._rest[n]), self._type[n], writable=True)
            for n, o in zip(self._outputs, outputs, strict=True)
        ]
        queue = stream_of(stream, [*inputs, *outputs])
        if batch == 0:
            return
        with cuda_memory.on_device(self.device):
            worker = self._worker()
            delta = worker.threshold(float(threshold))
            for start in range(0, batch, self._largest):
                stop = min(start + self._largest, batch)
                self._piece(
                    worker,
                    [v.rows(start, stop) if v is not None else None for v in given],
                    delta,
                    [v.rows(start, stop) for v in written],
                    queue,
                )

    def _piece(
        self,
        worker: Worker,
        inputs: Sequence[DeviceView | None],
        delta: int,
        outputs: Sequence[DeviceView],
        stream: int,
    ) -> None:
        count = outputs[0].shape[0]
        full = max(count, self._smallest)
        sizes = self._sizes(full)
        arena, here = worker.arena, []
        for name, view in zip(self.input_names, inputs, strict=False):
            if view is None:
                here.append(self._identity(worker))
            elif self._fits(view, full):
                here.append(view.address)
            else:
                block = worker.spare(f"device.{name}", sizes[name], stream)
                arena.move(block, view.address, view.size_bytes, stream)
                here.append(block)
        there = [
            v.address if self._fits(v, full) else worker.spare(f"device.{n}", sizes[n], stream)
            for n, v in zip(self._outputs, outputs, strict=True)
        ]
        worker.enqueue(full, (*here, delta, *there), tuple(sizes.values()), stream)
        for view, address in zip(outputs, there, strict=True):
            if view.address != address:
                arena.move(view.address, address, view.size_bytes, stream)
        if len({*here, *there} - {v.address for v in (*inputs, *outputs) if v is not None}):
            worker.done(stream)

    def _fits(self, view: DeviceView, full: int) -> bool:
        return view.shape[0] == full and view.address % cuda_memory.ALIGNMENT == 0

    def _identity(self, worker: Worker) -> int:
        return worker.constant("identity", np.tile(np.eye(2, 3, dtype=np.float32), (self._largest, 1, 1)))

    def _sizes(self, count: int) -> dict[str, int]:
        return {n: 4 if n == "threshold" else count * size for n, size in self._row_bytes.items()}

    def _type_of(self, index: int) -> str:
        return self._type[self.input_names[index]]

    def _check_device(self, value: Any) -> None:
        index = getattr(getattr(value, "device", None), "index", None)  # torch says it; others are not asked
        if isinstance(index, int) and index != self.device:
            raise InputError(
                f"expected arrays on cuda:{self.device}, where {self.sidecar.file} is, got cuda:{index}: "
                f"load it with device='cuda:{index}', or move them"
            )

    def _worker(self) -> Worker:
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is None:
            rest = {n: None if n == "threshold" else self._rest[n] for n in self.input_names}
            worker = Worker(self.sidecar.file, self._make, self._why, rest, self._outputs, self._record, self._held.add)
            self._local.worker = worker
        return worker
