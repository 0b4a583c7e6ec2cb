# SPDX-License-Identifier: Apache-2.0
"""Times on a GPU beside the wall time of a call: inside a CUDA graph, the floor of a launch, bytes a second.

May use: peers_cuda (capture), timing, cuda_decode, torch inside the functions.
Test: tests/test_bench_cuda.py; on a GPU tests/test_cuda.py.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import numpy as np

from port_deploy.bench.peers_cuda import capture
from port_deploy.bench.timing import MIN_CALLS, percentiles, warm_block

IN_GRAPH = 20
"""Calls one after the other in the graph whose time is divided by their number."""

COPY_BYTES = 1 << 30
DECODE_BATCHES = (64, 256, 1024)
PEAK_CODEC, PEAK_BLUR = "dark", 11
"""Which of the codecs that start from the largest pixel is timed beside the model's own, in float16."""


def graph_block(queue: Callable[[], object], seconds: float) -> list[int]:
    """Times in ns of a call inside a graph: IN_GRAPH of them captured, replayed, timed by the GPU's own events."""
    import torch

    graph = capture(queue, IN_GRAPH)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    times: list[int] = []
    graph.replay()
    torch.cuda.synchronize()
    start = perf_counter_ns()
    while len(times) < MIN_CALLS or perf_counter_ns() - start < seconds * 1e9:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(round(begin.elapsed_time(end) * 1e6 / IN_GRAPH))
    return times


def describe_gpu() -> dict[str, Any]:
    """Name, compute capability, memory, multiprocessors, L2 cache, and the CUDA version of PyTorch."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
    }


def measure_gpu(joints: int, side: int, codec: str, temperature: float, seconds: float) -> dict[str, Any]:
    """The floor of a call, and what the decode reads a second beside a copy on the device.

    Args:
        joints: N.
        side: Height and width of the heatmaps.
        codec: The decode's.
        temperature: The decode's.
        seconds: For each figure.

    Returns:
        ``floor`` (p50_us, p90_us, p99_us of launch + synchronise of a kernel that writes one number, and of its graph),
        ``copy_gb_s`` (bytes read and written) and ``decode_bandwidth`` (a row for each codec, dtype and batch; bytes
        read and written over the time inside a graph).
    """
    import torch

    cell = torch.zeros(1, device="cuda")
    wait = torch.cuda.current_stream().synchronize
    graph = capture(lambda: cell.fill_(1.0), 1)
    floor = {
        name: percentiles(warm_block(call, seconds))
        for name, call in (
            ("launch", lambda: (cell.fill_(1.0), wait())),
            ("graph", lambda: (graph.replay(), wait())),
        )
    }
    copy = _copy_gb_s(seconds)
    rows = [
        _decode_row(batch, joints, side, name, temperature, dtype, copy, seconds)
        for name, dtype in ((codec, torch.float32), (codec, torch.float16), (PEAK_CODEC, torch.float16))
        for batch in DECODE_BATCHES
    ]
    return {"floor": floor, "copy_gb_s": round(copy, 1), "decode_bandwidth": rows}


def _copy_gb_s(seconds: float) -> float:
    import torch

    source = torch.randint(0, 255, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / float(np.median(graph_block(lambda: target.copy_(source), seconds)))


def _decode_row(
    batch: int, joints: int, side: int, codec: str, temperature: float, dtype: Any, copy: float, seconds: float
) -> dict[str, Any]:
    import torch

    from port_deploy.backends.cuda_decode import decode_on_device, decode_peaks_on_device
    from port_deploy.backends.native_cuda import HEATMAP_TYPES
    from port_deploy.device_arrays import device_view

    # Several sets in turn, together larger than the L2 cache, so that each is read from memory.
    sets = max(2, -(-(256 << 20) // (batch * joints * side * side * 2)))
    maps = [torch.rand((batch, joints, side, side), device="cuda").to(dtype) for _ in range(min(sets, 64))]
    views = [device_view(m, "heatmaps", (None,) * 4, HEATMAP_TYPES) for m in maps]
    out = (
        torch.empty((batch, joints, 2), device="cuda"),
        torch.empty((batch, joints), device="cuda"),
        torch.empty((batch, joints), dtype=torch.bool, device="cuda"),
    )
    kinds = ((None, None, 2), "<f4"), ((None, None), "<f4"), ((None, None), "|b1")
    written = [device_view(o, "out", *k, writable=True) for o, k in zip(out, kinds, strict=True)]
    turn = iter(range(1 << 62))

    def queue() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        view = views[next(turn) % len(views)]
        if codec == PEAK_CODEC:
            decode_peaks_on_device(view, codec, PEAK_BLUR, 0.3, written, 0, stream)
        else:
            decode_on_device(view, codec, temperature, 0.3, written, 0, stream)

    p50 = float(np.median(graph_block(queue, seconds)))
    moved = maps[0].numel() * maps[0].element_size() + batch * joints * (8 + 4 + 1)
    return {
        "batch": batch,
        "codec": codec,
        "dtype": str(dtype).removeprefix("torch."),
        "p50_us": round(p50 / 1e3, 2),
        "gb_s": round(moved / p50, 1),
        "share_of_copy": round(moved / p50 / copy, 3),
    }
