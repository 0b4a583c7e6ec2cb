# SPDX-License-Identifier: Apache-2.0
"""What python/module.cpp defines. `native` alone imports it."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

class Error(RuntimeError): ...

class Refiner:
    def __init__(
        self, data: bytes, source: str, *, threads: int = 0, isa: str | None = None, precision: str = "fp32"
    ) -> None: ...
    def refine(
        self,
        joints: Array,
        confidence: Array,
        threshold: float,
        out_joints: Array,
        out_confidence: Array,
        out_mask: Array,
    ) -> None: ...
    def run(
        self,
        heatmaps: Array,
        affine: Array | None,
        threshold: float,
        out_joints: Array,
        out_confidence: Array,
        out_mask: Array,
    ) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def card(self) -> dict[str, Any]: ...

def decode(
    heatmaps: Array,
    codec: str,
    temperature: float,
    threshold: float,
    out_joints: Array,
    out_confidence: Array,
    out_mask: Array,
    *,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def try_decode(
    heatmaps: object,
    codec: object,
    temperature: object,
    threshold: object,
    out_joints: object,
    out_confidence: object,
    out_mask: object,
    threads: object,
    /,
) -> bool: ...
def measure_peak_flops(precision: str = "fp32", seconds: float = 0.1, *, isa: str | None = None) -> float: ...
def build_info() -> dict[str, Any]: ...
def cuda_info() -> dict[str, Any]: ...
