# SPDX-License-Identifier: Apache-2.0
"""What a worker process is to load, and what it hands to the clock. May use: plan, inputs, sidecar.

Test: tests/test_bench.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from port_deploy.bench.inputs import Poses
from port_deploy.bench.plan import GRAPH, Contestant
from port_deploy.sidecar import InputKind

MODEL_NAME = "model"

ARTEFACTS = {"torchscript": "ts", "aotinductor": "pt2", "onnxruntime": "onnx", "openvino": "onnx", "tensorrt": "engine"}
"""Kind of artefact that a backend needs."""


@dataclass(frozen=True)
class Bound:
    """A backend with its inputs in place.

    Attributes:
        call: One inference; this alone is timed.
        read: Joints [B, N, 2], confidence [B, N] and mask [B, N] of the last call.
        queue: On a GPU: the inference without waiting for it.
    """

    call: Callable[[], object]
    read: Callable[[], Iterable[NDArray[Any]]]
    queue: Callable[[], object] | None = None


Bind = Callable[[Poses], Bound]


@dataclass(frozen=True)
class Job:
    """What a worker process is to load.

    Attributes:
        contestant: Backend and precision.
        kind: ``joints`` or ``heatmaps``.
        threads: That compute.
        device: ``cpu`` or ``cuda``.
        folder: Holds the model file and the exported artefacts.
        cache_bytes: Size of the last-level cache.
    """

    contestant: Contestant
    kind: InputKind
    threads: int
    device: str
    folder: Path
    cache_bytes: int

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / f"{MODEL_NAME}.safetensors"

    @property
    def artefact(self) -> str | None:
        """Kind of artefact that it needs; None for none."""
        return ARTEFACTS.get(self.contestant.backend.removesuffix(GRAPH))


def artefact_precision(job: Job) -> str:
    """The precision to export with. OpenVINO lowers float32 graphs itself, but not a decode of heatmaps."""
    hinted = job.contestant.backend == "openvino" and job.contestant.dtype == "bf16" and job.kind == "joints"
    return "fp32" if hinted else job.contestant.dtype


def artefact_file(job: Job) -> Path:
    """Where the artefact of a job lies. AOTInductor compiles the number of threads in."""
    kind = job.artefact
    assert kind is not None
    threads = f"-{job.threads}" if kind == "pt2" else ""
    return job.folder / f"{MODEL_NAME}-{artefact_precision(job)}{threads}.{kind}"
