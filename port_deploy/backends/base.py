# SPDX-License-Identifier: Apache-2.0
"""What a backend is. `Refiner` checks and converts the caller's arrays; a backend only computes.

May use: config. Test: tests/test_backends.py runs every installed backend against the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from port_deploy.config import ModelSpec

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here. Every backend module has ``availability() -> Availability``.

    Attributes:
        available: It can.
        detail: What there is, or what is missing (``onnxruntime 1.22, CPUExecutionProvider``).
        remedy: The exact command that mends it; None where nothing is wrong or nothing helps.
    """

    available: bool
    detail: str
    remedy: str | None = None


@dataclass
class HostBuffers:
    """Where a backend writes: C-contiguous host memory.

    Attributes:
        joints: [B, N, 2] float32, pixels.
        confidence: [B, N] float32 in 0..1.
        mask: [B, N] bool, True where the joint was rebuilt.
        std: [B, N] float32, pixels, NaN where the mask is False. None: not wanted. Only of models with a variance.
    """

    joints: FloatArray
    confidence: FloatArray
    mask: NDArray[np.bool_]
    std: FloatArray | None = None


class Backend(Protocol):
    """One way to compute the line of nn/line.py. Instances are safe to call from many threads at once.

    Attributes:
        name: One of the names in STYLE: ``native-cpu``, ``native-cuda``, ``torch``, ``torchscript``, ``aotinductor``,
            ``onnxruntime``, ``openvino``, ``tensorrt``, ``tensorrt-rtx``.
        detail: What it runs on and how, for people (``AVX-512, fp32, 1 thread``).
        spec: The model's specification.
        takes_joints: `refine` works.
        takes_heatmaps: `run` works.
        gives_std: It fills `HostBuffers.std`: the model has a variance, and the backend computes it.
    """

    name: str
    detail: str
    spec: ModelSpec
    takes_joints: bool
    takes_heatmaps: bool
    gives_std: bool

    def refine(self, joints: FloatArray, confidence: FloatArray, threshold: float, out: HostBuffers) -> None:
        """[B, N, 2] and [B, N], C-contiguous float32 host arrays, B >= 0, into ``out``."""
        ...

    def run(self, heatmaps: NDArray[Any], affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """[B, N, H, W] float32 or float16 and [B, 2, 3] float32 or None (identity), into ``out``."""
        ...
