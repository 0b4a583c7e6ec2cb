# SPDX-License-Identifier: Apache-2.0
"""Times of single calls, with caches as the call before left them (``warm``) or swept (``cold``).

May use: NumPy. Test: tests/test_bench.py.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

SWEEP_FACTOR = 2
"""Bytes streamed before a cold call over the size of the last-level cache."""

MIN_CALLS = 3


def percentiles(times_ns: Sequence[int]) -> dict[str, float]:
    """p50, p90 and p99 in microseconds."""
    values = np.percentile(np.asarray(times_ns, np.float64) / 1e3, (50, 90, 99))
    return {f"p{p}_us": round(float(v), 2) for p, v in zip((50, 90, 99), values, strict=True)}


class Sweeper:
    """Streams through more memory than the last-level cache holds, on every processor that the process may use.

    On every one, since a backend's own threads run where they like, and each processor has private caches. The threads
    are pinned; all read the same memory at once, and each more than a last-level cache of it.

    Args:
        cache_bytes: Size of the last-level cache.
    """

    def __init__(self, cache_bytes: int) -> None:
        self.size_bytes = SWEEP_FACTOR * cache_bytes
        self._memory: NDArray[np.int64] = np.ones(self.size_bytes // 8, np.int64)  # zeros would all be one page
        self._pools = []
        for processor in sorted(os.sched_getaffinity(0)):
            pool = ThreadPoolExecutor(1)
            pool.submit(_pin, processor).result()
            self._pools.append(pool)

    def __call__(self) -> int:
        """Leave nothing of the timed code's in a cache; answers what was read, so that the reading happens."""
        waiting = [pool.submit(self._memory.sum) for pool in self._pools]
        return int(sum(future.result() for future in waiting))


def _pin(processor: int) -> None:
    os.sched_setaffinity(threading.get_native_id(), {processor})


def warm_block(call: Callable[[], object], seconds: float) -> list[int]:
    """Times in ns of calls one after another, the first few left out: another backend ran before them."""
    budget = int(seconds * 1e9)
    return _block(call, None, budget, settle=min(budget // 5, 20_000_000))


def cold_block(call: Callable[[], object], sweep: Callable[[], object], seconds: float) -> list[int]:
    """Times in ns of calls with the caches swept before each; sweeps count towards ``seconds`` and are not timed."""
    return _block(call, sweep, int(seconds * 1e9), settle=0)


def _block(call: Callable[[], object], before: Callable[[], object] | None, budget: int, settle: int) -> list[int]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = perf_counter_ns()
        while True:
            call()
            if perf_counter_ns() - start >= settle:
                break
        times: list[int] = []
        start = perf_counter_ns()
        while True:
            if before is not None:
                before()
            begin = perf_counter_ns()
            call()
            end = perf_counter_ns()
            times.append(end - begin)
            if len(times) >= MIN_CALLS and end - start >= budget:
                return times
    finally:
        if collecting:
            gc.enable()
