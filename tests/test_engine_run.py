# SPDX-License-Identifier: Apache-2.0
"""Running an engine: batches, streams, threads, graphs, alignment. On stand-ins for CUDA and the engine (fake_cuda.py).

They check which calls are made, in which order, with which addresses and shapes, and that work on lazy streams still
comes out right; what a GPU makes of it is in test_tensorrt_gpu.py.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from fake_cuda import DeviceArray, FakeContext, FakeCuda

from port_deploy.backends import cuda_graph, cuda_memory
from port_deploy.backends.base import HostBuffers
from port_deploy.backends.engine_backend import TensorRtBackend
from port_deploy.config import ModelSpec
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.sidecar import INPUTS, Sidecar, outputs_of

SPEC = random_model("soft", layers=1, head_dim=16).spec
RNG = np.random.default_rng(0)


def sidecar(spec: ModelSpec = SPEC, **changes: Any) -> Sidecar:
    engine = EngineInfo("tensorrt", "10.9.0", ("8.9",))
    values = {"batch": (4, 8, 16), "engine": engine, "input": "joints"} | changes
    return Sidecar("engine", "m.engine", "0", 1, spec, precision="fp32", **values)


class Bench:
    """A backend on stand-ins, and arrays for it."""

    def __init__(self, cuda: FakeCuda, record: bool = True, **changes: Any) -> None:
        self.cuda, self.contexts = cuda, []
        side = sidecar(**changes)

        def make(may_record: bool) -> FakeContext:
            context = FakeContext(cuda, INPUTS[side.input], outputs_of(side.input, side.spec))
            self.contexts.append(context)
            return context

        self.backend = TensorRtBackend(side, make, "a stand-in", why=lambda: "its reason", record=record)

    def arrays(self, count: int, offset: int = 0) -> tuple[list[DeviceArray], list[DeviceArray]]:
        joints, confidence = RNG.random((count, 21, 2), np.float32), RNG.random((count, 21), np.float32)
        given = [DeviceArray(self.cuda, a, offset) for a in (joints, confidence)]
        empty = np.zeros((count, 21, 2), "f4"), np.zeros((count, 21), "f4"), np.zeros((count, 21), "?")
        return given, [DeviceArray(self.cuda, a, offset) for a in empty]

    def check(self, given: list[DeviceArray], out: list[DeviceArray], delta: float = 0.3) -> None:
        joints, confidence = (a.numpy() for a in given)
        np.testing.assert_array_equal(out[0].numpy(), 2 * joints)
        np.testing.assert_array_equal(out[1].numpy(), confidence)
        np.testing.assert_array_equal(out[2].numpy(), confidence < np.float32(delta))

    def host(self, count: int, delta: float = 0.3) -> None:
        joints, confidence = RNG.random((count, 21, 2), np.float32), RNG.random((count, 21), np.float32)
        out = HostBuffers(np.zeros_like(joints), np.zeros_like(confidence), np.zeros((count, 21), np.bool_))
        self.backend.refine(joints, confidence, delta, out)
        np.testing.assert_array_equal(out.joints, 2 * joints)
        np.testing.assert_array_equal(out.confidence, confidence)
        np.testing.assert_array_equal(out.mask, confidence < np.float32(delta))

    @property
    def batches(self) -> list[int]:
        return [b for c in self.contexts for b in c.batches]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for module in (cuda_memory, cuda_graph):
        monkeypatch.setattr(module, "cuda_runtime", lambda: fake)
    return fake


def new_stream(cuda: FakeCuda) -> int:
    return int(cuda.cudaStreamCreateWithFlags(0)[1])


BATCHES = [(0, []), (1, [4]), (4, [4]), (16, [16]), (17, [16, 4]), (40, [16, 16, 8])]


@pytest.mark.parametrize(("count", "batches"), BATCHES)
def test_host_batches_are_cut_and_filled_to_the_profile(cuda: FakeCuda, count: int, batches: list[int]) -> None:
    bench = Bench(cuda, record=False)
    bench.host(count)
    assert bench.batches == batches


@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize(("count", "batches"), BATCHES)
def test_device_batches_likewise_whatever_their_alignment(
    cuda: FakeCuda, count: int, batches: list[int], offset: int
) -> None:
    bench = Bench(cuda, record=False)
    given, out = bench.arrays(count, offset)
    stream = new_stream(cuda)
    bench.backend.run_on_device(given, 0.3, out, stream)
    assert bench.batches == batches
    cuda.streams[stream].drain()
    bench.check(given, out)


def test_aligned_device_arrays_are_bound_where_they_lie(cuda: FakeCuda) -> None:
    bench = Bench(cuda)
    given, out = bench.arrays(8)
    stream = new_stream(cuda)
    bench.backend.run_on_device(given, 0.3, out, stream)
    cuda.calls.clear()
    bench.backend.run_on_device(given, 0.4, out, stream)
    (context,) = bench.contexts[:1]
    assert context.addresses["joints"] == given[0].address
    assert context.addresses["mask"] == out[2].address
    assert cuda.calls.count("cudaMemcpyAsync") == 1  # the new δ, which stays there
    cuda.calls.clear()
    bench.backend.run_on_device(given, 0.4, out, stream)
    assert not {"cudaMemcpyAsync", "cudaMalloc", "cudaStreamSynchronize", "cudaDeviceSynchronize"} & {*cuda.calls}
    cuda.streams[stream].drain()
    bench.check(given, out, 0.4)


def test_a_call_that_comes_again_becomes_a_graph(cuda: FakeCuda) -> None:
    bench = Bench(cuda)
    given, out = bench.arrays(8)
    stream = new_stream(cuda)
    for _ in range(5):
        bench.backend.run_on_device(given, 0.3, out, stream)
    assert cuda.calls.count("cudaGraphLaunch") == 3
    assert len(bench.contexts) == 2  # the graph keeps one to itself
    cuda.streams[stream].drain()
    bench.check(given, out)
    other, there = bench.arrays(8)
    bench.backend.run_on_device(other, 0.3, there, stream)  # other memory: not that graph
    assert cuda.calls.count("cudaGraphLaunch") == 3
    cuda.streams[stream].drain()
    bench.check(other, there)
    bench.host(8)
    bench.host(8)
    bench.host(8)
    assert cuda.calls.count("cudaGraphLaunch") == 4


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("offset", [0, 4])  # 4: through staging memory, which is shared as well
def test_streams_of_one_thread_do_not_overlap_in_a_context(cuda: FakeCuda, offset: int, seed: int) -> None:
    bench = Bench(cuda)
    streams = [new_stream(cuda) for _ in range(3)]
    bench.backend.run_on_device(
        bench.arrays(10, offset)[0], 0.3, bench.arrays(10, offset)[1], streams[0]
    )  # room for all
    calls = [bench.arrays(8 + i, offset) for i in range(3)]
    for _ in range(3):
        for stream, (given, out) in zip(streams, calls, strict=True):
            bench.backend.run_on_device(given, 0.3, out, stream)
        cuda.run_all(seed)
        for given, out in calls:
            bench.check(given, out)
            for array in out:
                cuda.at(array.address, array.numpy().nbytes).fill(0xCD)


@pytest.mark.parametrize("offset", [0, 4])
def test_inside_a_graph_that_the_caller_records(cuda: FakeCuda, offset: int) -> None:
    bench = Bench(cuda)
    given, out = bench.arrays(8, offset)
    stream, other = new_stream(cuda), new_stream(cuda)
    cuda.cudaStreamBeginCapture(stream, "global")
    bench.backend.run_on_device(given, 0.3, out, stream)
    graph = cuda.cudaStreamEndCapture(stream)[1]
    assert (out[1].numpy() == 0).all()  # nothing of it has run
    more = bench.arrays(8, offset)
    for seed in range(8):
        bench.backend.run_on_device(more[0], 0.3, more[1], other)
        cuda.cudaGraphLaunch(graph, stream)
        cuda.run_all(seed)
        bench.check(given, out)
        bench.check(*more)
        for array in (*out, *more[1]):
            cuda.at(array.address, array.numpy().nbytes).fill(0xCD)


def test_every_thread_has_a_context_of_its_own(cuda: FakeCuda) -> None:
    bench = Bench(cuda, record=False)
    bench.host(8)
    thread = threading.Thread(target=bench.host, args=(8,))
    thread.start()
    thread.join()
    bench.host(8)
    assert [c.batches for c in bench.contexts] == [[8, 8], [8]]


def test_what_a_thread_leaves_behind(cuda: FakeCuda) -> None:
    """Its memory goes when its work is done; what a caller's graph points to stays."""
    bench = Bench(cuda)
    stream = new_stream(cuda)
    given, out = bench.arrays(3)  # through staging memory of the thread's
    thread = threading.Thread(target=bench.backend.run_on_device, args=(given, 0.3, out, stream))
    thread.start()
    thread.join()
    gc.collect()
    cuda.streams[stream].drain()
    bench.check(given, out)
    recorded = new_stream(cuda)
    more = bench.arrays(3)
    graphs: list[Any] = []

    def record() -> None:
        cuda.cudaStreamBeginCapture(recorded, "global")
        bench.backend.run_on_device(more[0], 0.3, more[1], recorded)
        graphs.append(cuda.cudaStreamEndCapture(recorded)[1])

    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    gc.collect()
    cuda.cudaGraphLaunch(graphs[0], recorded)
    cuda.streams[recorded].drain()
    bench.check(*more)


def test_warm_up_runs_the_smallest_and_the_best_batch(cuda: FakeCuda) -> None:
    bench = Bench(cuda, record=False)
    bench.backend.warm_up()
    assert bench.batches == [4, 8]


def test_heatmaps_without_affine_are_in_their_own_pixels(cuda: FakeCuda) -> None:
    bench = Bench(cuda, record=False, input="heatmaps", heatmap_size=(4, 6))
    maps = DeviceArray(cuda, RNG.random((8, 21, 4, 6), np.float32))
    _, out = bench.arrays(8)
    contexts: list[dict[str, Any]] = []
    execute = FakeContext.execute_async_v3

    def look(self: FakeContext, stream: int) -> bool:
        contexts.append({**self.shapes, "affine at": self.addresses["affine"]})
        return True

    FakeContext.execute_async_v3 = look  # type: ignore[method-assign]
    try:
        bench.backend.run_on_device([maps, None], 0.3, out, 0)
    finally:
        FakeContext.execute_async_v3 = execute  # type: ignore[method-assign]
    (seen,) = contexts
    assert seen["heatmaps"] == (8, 21, 4, 6)
    assert seen["affine"] == (8, 2, 3)
    identity = cuda.at(seen["affine at"], 8 * 24).view(np.float32).reshape(8, 2, 3)
    np.testing.assert_array_equal(identity, np.tile(np.eye(2, 3, dtype="f4"), (8, 1, 1)))


def test_what_does_not_fit_is_said_before_anything_is_queued(cuda: FakeCuda) -> None:
    bench = Bench(cuda)
    given, out = bench.arrays(8)
    half = DeviceArray(cuda, np.zeros((8, 21, 2), np.float16))
    for inputs, outputs, message in (
        ([half, given[1]], out, r"expected joints float32 \[·, 21, 2\], got float16 \[8, 21, 2\]"),
        ([given[1], given[1]], out, r"expected joints .*, got float32 \[8, 21\]"),
        ([given[0], bench.arrays(7)[0][1]], out, r"expected confidence float32 \[8, 21\], got float32 \[7, 21\]"),
        (given, bench.arrays(7)[1], r"expected out\.joints float32 \[8, 21, 2\], got float32 \[7, 21, 2\]"),
        (
            [np.zeros((8, 21, 2), "f4"), given[1]],
            out,
            "expected joints on the GPU like the other arrays of the call, got it on the CPU",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bench.backend.run_on_device(inputs, 0.3, outputs, 0)
    with pytest.raises(InputError, match="expected a CUDA stream or its handle, got str"):
        bench.backend.run_on_device(given, 0.3, out, "fast")
    assert bench.contexts == []


def test_a_run_that_the_library_refuses(cuda: FakeCuda) -> None:
    bench = Bench(cuda)
    bench.host(8)
    bench.contexts[0].refuses = True
    with pytest.raises(BackendUnavailableError, match=r"m\.engine could not be run: its reason"):
        bench.host(9)


def test_standard_deviations_are_one_output_more(cuda: FakeCuda) -> None:
    """Asked for or not, from the host and on the GPU, in pieces."""
    bench = Bench(cuda, record=False, spec=replace(SPEC, config=replace(SPEC.config, variance=True)))
    assert bench.backend.gives_std
    bench.host(20)
    joints, confidence = RNG.random((20, 21, 2), np.float32), RNG.random((20, 21), np.float32)
    out = HostBuffers(np.zeros_like(joints), np.zeros_like(confidence), np.zeros((20, 21), np.bool_))
    out.std = np.zeros((20, 21), np.float32)
    bench.backend.refine(joints, confidence, 0.3, out)
    np.testing.assert_array_equal(out.std, 3 * confidence)
    bench.backend.warm_up()
    given, there = bench.arrays(20)
    there.append(DeviceArray(cuda, np.zeros((20, 21), np.float32)))
    stream = new_stream(cuda)
    bench.backend.run_on_device(given, 0.3, there, stream)
    cuda.streams[stream].drain()
    bench.check(given, there)
    np.testing.assert_array_equal(there[3].numpy(), 3 * given[1].numpy())
