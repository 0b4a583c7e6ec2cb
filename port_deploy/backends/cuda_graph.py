# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs through NVIDIA's ``cuda.bindings``: record what is queued on a stream, launch it again as one thing.

May use: cuda_memory. Test: tests/test_engine_run.py (on a stand-in), tests/test_tensorrt_gpu.py (on a GPU).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from port_deploy.backends.cuda_memory import check, cuda_runtime


def is_capturing(stream: int) -> bool:
    """Whether the caller is recording a graph on a stream."""
    runtime = cuda_runtime()
    status = check(runtime.cudaStreamIsCapturing(stream))
    return int(status) != int(runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone)


@contextmanager
def outside_capture() -> Iterator[None]:
    """Lets the calling thread allocate and wait on its own streams while another stream is being recorded."""
    runtime = cuda_runtime()
    relaxed = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
    before = check(runtime.cudaThreadExchangeStreamCaptureMode(relaxed))
    try:
        yield
    finally:
        check(runtime.cudaThreadExchangeStreamCaptureMode(before))


class Graph:
    """What ``queue`` puts on a stream, recorded; nothing of it runs before `launch`.

    Args:
        stream: To record on: not the default one, and none that is being recorded.
        queue: Puts the work on that stream.
    """

    def __init__(self, stream: int, queue: Callable[[int], None]) -> None:
        runtime = cuda_runtime()
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(runtime.cudaStreamBeginCapture(stream, mode))
        try:
            queue(stream)
        except BaseException:
            runtime.cudaStreamEndCapture(stream)  # the recording is void; its own error would hide the cause
            raise
        graph = check(runtime.cudaStreamEndCapture(stream))
        try:
            self._executable = check(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            runtime.cudaGraphDestroy(graph)
        self._finalizer = weakref.finalize(self, runtime.cudaGraphExecDestroy, self._executable)

    def launch(self, stream: int) -> None:
        """Queue it; launches of one graph never overlap."""
        check(cuda_runtime().cudaGraphLaunch(self._executable, stream))
