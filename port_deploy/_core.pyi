# SPDX-License-Identifier: Apache-2.0
"""What python/module.cpp defines. `native` alone imports it."""

from collections.abc import Sequence
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
        out_std: Array | None = None,
    ) -> None: ...
    def run(
        self,
        heatmaps: Array,
        affine: Array | None,
        threshold: float,
        out_joints: Array,
        out_confidence: Array,
        out_mask: Array,
        out_std: Array | None = None,
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
def decode_peaks(
    heatmaps: Array,
    codec: str,
    blur: int,
    threshold: float,
    out_joints: Array,
    out_confidence: Array,
    out_mask: Array,
    *,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def decode_simcc(
    simcc_x: Array,
    simcc_y: Array,
    split_ratio: float,
    score: str,
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

class CudaRefiner:
    def __init__(
        self, data: bytes, source: str, *, device: int = 0, precision: str = "fp16", variant: str | None = None
    ) -> None: ...
    def refine(
        self, joints: int, confidence: int, batch: int, threshold: float, out: Sequence[int], stream: int
    ) -> None: ...
    def run(
        self,
        maps: int,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        affine: int,
        threshold: float,
        out: Sequence[int],
        stream: int,
    ) -> None: ...
    def refine_layer(self, joints: int, confidence: int, batch: int, out: Sequence[int], stream: int) -> None: ...
    def run_layer(self, maps: int, shape: Sequence[int], affine: int, out: Sequence[int], stream: int) -> None: ...
    def refine_host(
        self,
        joints: Array,
        confidence: Array,
        threshold: float,
        out_joints: Array,
        out_confidence: Array,
        out_mask: Array,
    ) -> None: ...
    def run_host(
        self,
        heatmaps: Array,
        affine: Array | None,
        threshold: float,
        out_joints: Array,
        out_confidence: Array,
        out_mask: Array,
    ) -> None: ...
    def variant(self, batch: int) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def description(self) -> str: ...

def engine_layer(data: bytes, source: str, precision: str, height: int = 0, width: int = 0) -> dict[str, Any]: ...
def decode_on_device(
    maps: int,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    codec: str,
    temperature: float,
    threshold: float,
    out: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def decode_peaks_on_device(
    maps: int,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    codec: str,
    blur: int,
    threshold: float,
    out: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def decode_simcc_on_device(
    simcc_x: tuple[int, str, Sequence[int], Sequence[int]],
    simcc_y: tuple[int, str, Sequence[int], Sequence[int]],
    split_ratio: float,
    score: str,
    threshold: float,
    out: Sequence[int],
    device: int,
    stream: int,
) -> None: ...
def measure_peak_flops(precision: str = "fp32", seconds: float = 0.1, *, isa: str | None = None) -> float: ...
def build_info() -> dict[str, Any]: ...
def cuda_info() -> dict[str, Any]: ...
