# SPDX-License-Identifier: Apache-2.0
"""What is measured beside the table: the decode alone, imports, the first call, Python memory of a call.

Each is measured in a fresh process. May use: refiner, timing, worker, NumPy. Test: tests/test_bench.py.
"""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from port_deploy.bench.inputs import make_poses
from port_deploy.bench.plan import ROUNDS
from port_deploy.bench.timing import Sweeper, cold_block, percentiles, warm_block
from port_deploy.bench.worker import thread_limit
from port_deploy.weights import load_model

T = TypeVar("T")

RUNS = 7

_IMPORT = """
from time import perf_counter
import sys
before = perf_counter()
import port_deploy
after = perf_counter()
import numpy
joints = numpy.random.default_rng(0).uniform(0, 256, (1, int(sys.argv[2]), 2)).astype("float32")
confidence = numpy.full(joints.shape[:2], 0.9, "float32")
confidence[0, 3] = 0.0
begin = perf_counter()
port_deploy.Refiner.load(sys.argv[1], backend="native-cpu").refine(joints, confidence)
end = perf_counter()
print((after - before) * 1e3, (end - begin) * 1e3, "torch" in sys.modules)
"""


def in_process(function: Callable[..., T], *arguments: Any, threads: int = 1) -> T:
    """The answer of a module-level function, computed in a fresh process that may use so many threads."""
    context = multiprocessing.get_context("spawn")
    with thread_limit(threads), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_import(model: Path, joints: int) -> dict[str, Any]:
    """Medians over fresh interpreters, files in the system's cache: ``import port_deploy``, load and first refine."""
    command = [sys.executable, "-c", _IMPORT, str(model), str(joints)]
    texts = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(RUNS)]
    return {
        "import_ms": round(statistics.median(float(t[0]) for t in texts), 1),
        "load_and_first_refine_ms": round(statistics.median(float(t[1]) for t in texts), 1),
        "import_brings_torch": texts[0][2] == "True",
    }


def measure_memory(model: Path, side: int, masked_share: float) -> dict[str, Any]:
    """Python memory of one call with ``out=``: what it holds at most while it runs, and what is left of 1,000 calls.

    What the core itself allocates is counted by the C++ tests.
    """
    from port_deploy.refined import Refined
    from port_deploy.refiner import Refiner

    loaded = load_model(model)
    refiner = Refiner.load(loaded, backend="native-cpu", threads=1)
    poses = make_poses(loaded.spec, "joints", 8, side, masked_share)
    b, n = poses.second.shape
    out = Refined(np.empty((b, n, 2), np.float32), np.empty((b, n), np.float32), np.empty((b, n), np.bool_))
    for _ in range(100):
        refiner.refine(poses.first, poses.second, out=out)
    tracemalloc.start()
    try:
        refiner.refine(poses.first, poses.second, out=out)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(1000):
            refiner.refine(poses.first, poses.second, out=out)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {
        "python_peak_bytes_per_call": peak - before,
        "python_bytes_left_by_1000_calls": after - before,
        "resident_model_bytes": _core_bytes(refiner),
    }


def _core_bytes(refiner: Any) -> int:
    backend = refiner._backend
    return int(backend.weight_bytes + backend.workspace_bytes)


def measure_decode(
    model: Path, side: int, masked_share: float, cache_bytes: int, seconds: float
) -> list[dict[str, Any]]:
    """The decode of [1, N, side, side] beside the fastest way NumPy has to read the same array; one thread.

    ``masked_share`` of the maps are weak ones, whose every pixel has a weight; and once more with a single weak map.
    """
    from port_deploy.refined import Refined
    from port_deploy.refiner import decode

    spec = load_model(model).spec
    n = spec.joints
    out = Refined(np.empty((1, n, 2), np.float32), np.empty((1, n), np.float32), np.empty((1, n), np.bool_))
    sweep = Sweeper(cache_bytes)
    rows = []
    for cache, share in (("warm", masked_share), ("warm", 0.0), ("cold", masked_share)):
        poses = make_poses(spec, "heatmaps", 1, side, share)
        maps = _aligned(poses.first)
        flat = maps.reshape(-1)
        calls: dict[str, Callable[[], object]] = {
            "decode": partial(decode, maps, codec=spec.codec, temperature=spec.temperature, out=out),
            "max": flat.max,
            "sum": flat.sum,
            "dot": partial(np.dot, flat, flat),
        }
        times: dict[str, list[int]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                block = (
                    warm_block(call, seconds / ROUNDS) if cache == "warm" else cold_block(call, sweep, seconds / ROUNDS)
                )
                times[name] += block
        p50 = {name: percentiles(values) for name, values in times.items()}
        fastest = min(("max", "sum", "dot"), key=lambda name: p50[name]["p50_us"])
        read = p50[fastest]["p50_us"]
        calls["decode"]()
        rows.append(
            {
                "shape": list(maps.shape),
                "codec": spec.codec,
                "cache": cache,
                "threads": 1,
                "weak_maps": int((out.confidence < poses.threshold).sum()),
                **p50["decode"],
                "read_us": read,
                "read_with": f"numpy {fastest}",
                "ratio": round(p50["decode"]["p50_us"] / read, 2),
            }
        )
    return rows


def _aligned(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that starts on a cache line, as PyTorch's arrays do: NumPy's start anywhere, and runs would differ."""
    memory = np.empty(array.size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    copy = memory[start : start + array.size].reshape(array.shape)
    copy[:] = array
    return copy
