# SPDX-License-Identifier: Apache-2.0
"""What is measured: the combinations of backend, precision, batch, threads and cache that a run goes through.

May use: config, errors. Test: tests/test_bench.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from port_deploy.config import PortConfig
from port_deploy.errors import InputError

Cache = Literal["warm", "cold", "graph"]
"""``graph``: on a GPU, the time of a call inside a CUDA graph of many."""

GRAPH = " graph"
"""Ends the names of contestants whose call is captured in a CUDA graph and replayed."""

CPU_BACKENDS: dict[str, tuple[str, ...]] = {
    "native-cpu": ("fp32", "bf16"),
    "torch": ("fp32", "bf16"),
    "torchscript": ("fp32", "bf16"),
    "torch.compile": ("fp32", "bf16"),
    "aotinductor": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "fp16"),
    "openvino": ("fp32", "bf16"),
}
"""What can be timed on a CPU, in the order of the tables, with the precisions of each. ``torch.compile`` is no backend
of `Refiner`: it is here because users have it."""

_LOWERED = ("fp32", "fp16", "bf16")

CUDA_BACKENDS: dict[str, tuple[str, ...]] = {
    "native-cuda": _LOWERED,
    "native-cuda graph": _LOWERED,
    "torch": _LOWERED,
    "torch graph": _LOWERED,
    "torchscript": _LOWERED,
    "torch.compile": _LOWERED,
    "torch.compile graph": _LOWERED,
    "aotinductor": _LOWERED,
    "aotinductor graph": _LOWERED,
    "onnxruntime": ("fp32", "fp16"),
    "tensorrt": _LOWERED,
    "tensorrt graph": _LOWERED,
}
"""What can be timed on a GPU, with tensors that stay there and a synchronisation in every call."""

CUDA_BATCHES = (1, 2, 4, 8, 16, 64, 256, 1024)
CUDA_DTYPES = ("fp32", "fp16")

DTYPES = ("fp32", "bf16", "fp16")
CACHES: tuple[Cache, ...] = ("warm", "cold")
BATCHES = (1, 8, 64, 256)
COLD_BATCHES = (1, 8)
"""Of the README's table: at larger batches the caches matter little."""

MAX_BATCH = 65536
ROUNDS = 5
"""Turns of each backend. Short turns in alternation: a slow second of the machine hits all of them."""


@dataclass(frozen=True)
class Contestant:
    """One line of a table.

    Attributes:
        backend: One of CPU_BACKENDS.
        dtype: Of the encoder's matrix products.
    """

    backend: str
    dtype: str

    def __str__(self) -> str:
        return self.backend if self.dtype == "fp32" else f"{self.backend} {self.dtype}"


STANDARD = (
    *(Contestant(name, "fp32") for name in CPU_BACKENDS),
    Contestant("native-cpu", "bf16"),
    Contestant("openvino", "bf16"),
)
"""The README's table."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        model: Bundled name or ``.safetensors`` file.
        device: ``cpu`` or ``cuda``.
        contestants: Who takes part.
        input: ``joints`` or ``heatmaps``.
        warm: Batch sizes measured warm.
        cold: Batch sizes measured cold.
        graph: Batch sizes measured inside a CUDA graph.
        threads: Numbers of threads, each in processes of its own.
        seconds: Timed for each contestant, batch and cache, over all its turns.
        heatmap_size: Side of the heatmaps.
        masked_share: Share of the joints that lie below the threshold in every pose.
        extras: Also measure the decode alone, imports and the first call.
        strict: A contestant that cannot run is an error; otherwise it is listed as skipped.
    """

    model: str = "hand21"
    device: str = "cpu"
    contestants: tuple[Contestant, ...] = STANDARD
    input: str = "joints"
    warm: tuple[int, ...] = BATCHES
    cold: tuple[int, ...] = COLD_BATCHES
    graph: tuple[int, ...] = ()
    threads: tuple[int, ...] = field(default_factory=lambda: thread_settings())
    seconds: float = 1.0
    heatmap_size: int = 64
    masked_share: float = 0.3
    extras: bool = True
    strict: bool = False

    def __post_init__(self) -> None:
        for name, values, limit in (
            ("batch", (*self.warm, *self.cold, *self.graph), MAX_BATCH),
            ("threads", self.threads, 256),
        ):
            wrong = dict.fromkeys(str(v) for v in values if not 1 <= v <= limit)
            if wrong or not values:
                raise InputError(f"expected {name} from 1 to {limit}, got {', '.join(wrong) or 'none'}")
        if not 0 < self.seconds <= 600:
            raise InputError(f"expected seconds above 0 and up to 600, got {self.seconds:g}")

    @property
    def batches(self) -> tuple[int, ...]:
        """Every batch size, ascending."""
        return tuple(sorted({*self.warm, *self.cold, *self.graph}))


def thread_settings() -> tuple[int, ...]:
    """One thread, and all processors that this process may use."""
    count = len(os.sched_getaffinity(0))
    return (1, count) if count > 1 else (1,)


def contestants(backends: Sequence[str], dtypes: Sequence[str], device: str) -> tuple[Contestant, ...]:
    """Every backend with every precision that it has of those named; without either, the README's.

    Raises:
        InputError: A backend is unknown or cannot be timed on that device, or none has the precision.
    """
    known = CPU_BACKENDS if device == "cpu" else CUDA_BACKENDS
    for name in backends:
        if name not in known:
            raise InputError(f"port-bench cannot time {name!r} on device {device!r}: use {', '.join(known)}")
    names = list(dict.fromkeys(backends or known))
    if device == "cpu" and not backends:
        chosen = tuple(c for c in STANDARD if not dtypes or c.dtype in dtypes)
        if chosen:
            return chosen
    wanted = dtypes or (CUDA_DTYPES if device == "cuda" else ("fp32",))
    chosen = tuple(Contestant(n, d) for d in dict.fromkeys(wanted) for n in names if d in known[n])
    if not chosen:
        have = "; ".join(f"{name} {', '.join(known[name])}" for name in names)
        raise InputError(f"none of these backends is timed in {', '.join(dtypes)}: there is {have}")
    return chosen


def flops_per_pose(config: PortConfig, joints: int) -> int:
    """Multiplications and additions of the encoder's products as the equations are written.

    The projections of every hop, the attention, W_O and the MLP: 23.8 million for the paper's model on 21 joints. Graph
    aggregation, embedding and head are left out. A backend that folds W_O into W_V or skips what no masked joint needs
    does less and is credited with all of it: this is work delivered, not work done.
    """
    n, d, inner, hops = joints, config.width, config.inner, len(config.hops)
    layer = 3 * hops * n * d * inner + 2 * n * n * inner + n * inner * d + 2 * n * d * config.mlp_width
    return 2 * config.layers * layer
