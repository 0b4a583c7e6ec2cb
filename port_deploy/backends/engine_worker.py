# SPDX-License-Identifier: Apache-2.0
"""What one thread runs an engine with: execution contexts, the graphs recorded from them, blocks of device memory.

An execution context must not run twice at the same time, so threads share none, and work that moves to another stream
waits for what went before. A call that comes again with the same batch and addresses is recorded as a CUDA graph, from
a context of its own: a graph keeps pointing into its context's memory. So does a graph that the *caller* records.
May use: cuda_memory, cuda_graph, errors. Test: tests/test_engine_run.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import cuda_memory
from port_deploy.backends.cuda_graph import Graph, is_capturing, outside_capture
from port_deploy.errors import BackendUnavailableError, ModelFileError

MAX_GRAPHS = 16
"""Recorded per thread; calls with yet other batches or addresses are queued one by one."""

MAX_CONSTANTS = 256
"""Values of δ that lie in device memory at a time."""


class Worker:
    """Belongs to one thread.

    Args:
        file: The engine's name, for messages.
        make_context: Makes an execution context; its argument says whether the library may record graphs itself.
        why: The library's last error.
        rest: Of every input its shape without the batch; None where there is no batch.
        outputs: Names of the outputs.
        record: Record graphs.
        hold: Keeps this worker alive beyond its thread: a graph that a caller recorded points into its memory.
    """

    def __init__(
        self,
        file: str,
        make_context: Callable[[bool], Any],
        why: Callable[[], str],
        rest: Mapping[str, tuple[int, ...] | None],
        outputs: Sequence[str],
        record: bool,
        hold: Callable[[Worker], None],
    ) -> None:
        self._file, self._make, self._why = file, make_context, why
        self._rest, self._names = rest, (*rest, *outputs)
        self._record, self._hold = record, hold
        self.arena = cuda_memory.Arena()
        self._order = cuda_memory.Order()
        self._main = self._context(True)
        self._seen: dict[tuple[int, tuple[int, ...]], int] = {}
        self._graphs: dict[tuple[int, tuple[int, ...]], tuple[Graph, Any]] = {}
        self._callers: list[Any] = []  # contexts inside graphs that callers recorded
        self._constants: dict[str, int] = {}
        self._finalizer = weakref.finalize(self, self._order.wait)  # before contexts and memory go

    def threshold(self, value: float) -> int:
        """Address of δ in device memory."""
        if len(self._constants) > MAX_CONSTANTS:
            raise BackendUnavailableError(
                f"{self._file} has seen {MAX_CONSTANTS} thresholds in this thread: use fewer different ones"
            )
        return self.constant(f"threshold.{value!r}", np.array([value], np.float32))

    def constant(self, name: str, value: NDArray[np.float32]) -> int:
        """Address of an array in device memory that is never written again: no stream has to wait for it."""
        address = self._constants.get(name)
        if address is None:
            with outside_capture():
                address = self.arena.block(f"constant.{name}", value.nbytes)
                self.arena.upload(address, value)
                self.arena.synchronise()
            self._constants[name] = address
        return address

    def spare(self, name: str, size_bytes: int, stream: int) -> int:
        """Address of memory for what cannot be bound where it lies; work that used it before has ended by then."""
        if is_capturing(stream):
            with outside_capture():  # the caller's graph keeps it
                return self.arena.block(f"{name}.{len(self._callers)}", size_bytes)
        self._order.before(stream)
        return self.arena.block(name, size_bytes)

    def done(self, stream: int) -> None:
        """What was queued last on ``stream`` uses `spare` memory: mark it for who comes next."""
        if not is_capturing(stream):
            self._order.after(stream)

    def enqueue(self, count: int, addresses: tuple[int, ...], sizes: tuple[int, ...], stream: int) -> None:
        """Queue one run of the engine.

        Args:
            count: B, within the profile.
            addresses: Of inputs and outputs, in order, aligned to 256 bytes.
            sizes: Their bytes.
            stream: The caller's.

        Raises:
            ModelFileError: The engine refuses shapes or names.
            BackendUnavailableError: The library refuses to run it; the message holds its reason.
        """
        if is_capturing(stream):
            self._into_callers_graph(count, addresses, sizes, stream)
            return
        key = count, addresses
        if key in self._graphs:
            self._graphs[key][0].launch(stream)
            self._order.after(stream)
            return
        if len(self._seen) > 64 * MAX_GRAPHS:
            self._seen.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._record and self._seen[key] > 1 and len(self._graphs) < MAX_GRAPHS:
            self._run_and_record(count, addresses, stream)
            return
        self._order.before(stream)
        self._bind(self._main, count, addresses)
        self._execute(self._main, stream)
        self._order.after(stream)

    def _run_and_record(self, count: int, addresses: tuple[int, ...], stream: int) -> None:
        context = self._context(False)
        self._bind(context, count, addresses)
        self._execute(context, stream)  # the call itself; also what must happen once before a recording
        self._order.after(stream)
        try:
            graph = Graph(self.arena.stream, lambda own: self._execute(context, own))
        except BackendUnavailableError:  # some engines cannot be recorded; they run as before
            self._record = False
            self._callers.append(context)  # its run is not over
            return
        self._graphs[count, addresses] = graph, context

    def _into_callers_graph(self, count: int, addresses: tuple[int, ...], sizes: tuple[int, ...], stream: int) -> None:
        with outside_capture():
            context = self._context(False)
            spare = tuple(
                self.arena.block(f"spare.{name}", size) for name, size in zip(self._names, sizes, strict=True)
            )
            self._bind(context, count, spare)
            self._execute(context, self.arena.stream)  # once before a recording, on memory that nobody reads
            self.arena.synchronise()
            self._bind(context, count, addresses)
        self._execute(context, stream)
        self._callers.append(context)
        self._hold(self)

    def _context(self, may_record: bool) -> Any:
        context = self._make(may_record)
        if context is None:
            raise BackendUnavailableError(
                f"no execution context for {self._file} ({self._why()}): see free memory, nvidia-smi"
            )
        return context

    def _bind(self, context: Any, count: int, addresses: tuple[int, ...]) -> None:
        for name, rest in self._rest.items():
            shape = (1,) if rest is None else (count, *rest)
            if not context.set_input_shape(name, shape):
                raise ModelFileError(f"{self._file} refuses {name} of {list(shape)}: export it again")
        for name, address in zip(self._names, addresses, strict=True):
            if not context.set_tensor_address(name, address):
                raise ModelFileError(f"{self._file} has no input or output {name}: export it again")

    def _execute(self, context: Any, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise BackendUnavailableError(f"{self._file} could not be run: {self._why()}")
