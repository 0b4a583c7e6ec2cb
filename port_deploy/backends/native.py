# SPDX-License-Identifier: Apache-2.0
"""The C++ core as the backend `native-cpu`, and its decode. The only file that imports `_core`.

May use: base, weights, config, errors, `_core`. Test: tests/test_backends.py, tests/test_native_oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.config import ModelSpec
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError, PortError
from port_deploy.weights import Model

_core: ModuleType | None
try:
    import port_deploy._core as _built

    _core, _why_not = _built, ""
except ImportError as _error:
    _core, _why_not = None, str(_error)

INSTALL = "pip install ."
"""What builds the core, in the source tree."""


def core() -> Any:
    """The extension module.

    Raises:
        BackendUnavailableError: It is not built; the message holds the command that builds it.
    """
    if _core is None:
        raise BackendUnavailableError(f"the native core is not built ({_why_not}): {INSTALL} in the source tree")
    return _core


def translate(error: Exception) -> PortError:
    """An error of the core as one of port_deploy's."""
    kinds: dict[str, type[PortError]] = {"input": InputError, "model_file": ModelFileError}
    return kinds.get(error.args[1] if len(error.args) > 1 else "", BackendUnavailableError)(error.args[0])


def availability() -> Availability:
    """Whether ``native-cpu`` can run here."""
    if _core is None:
        return Availability(False, f"the native core is not built: {_why_not}", INSTALL)
    try:
        info = _core.build_info()
    except _core.Error as error:
        return Availability(False, error.args[0])
    return Availability(True, f"{info['selected_isa']}, {'fp32 and bf16' if info['bf16'] else 'fp32'}")


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets (compiled, available, selected), bf16 and CUDA of the core, for port-info."""
    module = core()
    try:
        return {**module.build_info(), "cuda_info": module.cuda_info()}
    except module.Error as error:
        raise translate(error) from None


def peak_flops(precision: str = "fp32", seconds: float = 0.1) -> float:
    """The fastest rate of fused multiply-adds on one core, floating-point operations a second: for port-bench.

    Args:
        precision: ``fp32`` or ``bf16``.
        seconds: How long it is measured, above 0 and up to 60.

    Raises:
        InputError: An argument is out of range.
        BackendUnavailableError: The core is not built, or the processor lacks the precision.
    """
    module = core()
    try:
        return float(module.measure_peak_flops(precision, seconds))
    except module.Error as error:
        raise translate(error) from None


class NativeBackend:
    """The core's Refiner. Attributes as `Backend` says.

    Args:
        model: Specification and the file's bytes, which the core reads itself.
        threads: That compute, the caller included; 0 for one per processor.
        precision: ``fp32`` or ``bf16``.
        isa: ``generic``, ``avx2``, ``avx512``, or None for the best (or PORT_FORCE_ISA).
    """

    name = "native-cpu"
    takes_joints = True
    takes_heatmaps = True
    takes_strides = True

    def __init__(self, model: Model, threads: int = 0, precision: str = "fp32", isa: str | None = None) -> None:
        module = core()
        self.spec: ModelSpec = model.spec
        self.gives_std = model.spec.config.variance
        try:
            self._native = module.Refiner(
                model.data,
                model.source,
                threads=threads,
                isa=isa,
                precision=precision,
            )
        except module.Error as error:
            raise translate(error) from None
        self._error: type[Exception] = module.Error
        count = self._native.threads
        self.isa: str = self._native.isa
        self.weight_bytes: int = self._native.weight_bytes
        self.workspace_bytes: int = self._native.workspace_bytes
        self.detail = f"{self.isa}, {precision}, {count} thread{'s' if count > 1 else ''}"

    def refine(self, joints: FloatArray, confidence: FloatArray, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says; ``out.joints`` may be ``joints`` and ``out.confidence`` ``confidence``."""
        try:
            self._native.refine(joints, confidence, threshold, out.joints, out.confidence, out.mask, out.std)
        except self._error as error:
            raise translate(error) from None

    def run(self, heatmaps: NDArray[Any], affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says; any strides whose last is one element."""
        try:
            self._native.run(heatmaps, affine, threshold, out.joints, out.confidence, out.mask, out.std)
        except self._error as error:
            raise translate(error) from None


def load(
    model: Model, *, threads: int = 0, device: str = "cpu", precision: str = "fp32", isa: str | None = None
) -> NativeBackend:
    """The model as a native backend.

    Args:
        model: Specification and the file's bytes.
        threads: That compute, the caller included; 0 for one per processor.
        device: ``cpu``.
        precision: ``fp32`` or ``bf16`` (of the network's matrix products).
        isa: ``generic``, ``avx2``, ``avx512``, or None for the best (or PORT_FORCE_ISA).

    Raises:
        InputError: An option is out of range.
        ModelFileError: The core finds the bytes unusable.
        BackendUnavailableError: The core is not built, or the processor lacks the precision.
    """
    return NativeBackend(model, threads, precision, isa)


def decode(
    heatmaps: NDArray[Any], codec: str, temperature: float, threshold: float, out: HostBuffers, threads: int = 1
) -> None:
    """The fused decode of [B, N, H, W] into ``out``: joints in heatmap pixels, confidence, mask."""
    module = core()
    try:
        module.decode(heatmaps, codec, temperature, threshold, out.joints, out.confidence, out.mask, threads=threads)
    except module.Error as error:
        raise translate(error) from None


def decode_peaks(
    heatmaps: NDArray[Any], codec: str, blur: int, threshold: float, out: HostBuffers, threads: int = 1
) -> None:
    """`decode` with the codecs that start from the largest pixel."""
    module = core()
    try:
        module.decode_peaks(heatmaps, codec, blur, threshold, out.joints, out.confidence, out.mask, threads=threads)
    except module.Error as error:
        raise translate(error) from None


def decode_simcc(
    x: NDArray[Any], y: NDArray[Any], split_ratio: float, score: str, threshold: float, out: HostBuffers, threads: int
) -> None:
    """SimCC vectors, as maps of one row [B, N, 1, bins], into ``out``: joints in crop pixels, confidence, mask."""
    module = core()
    try:
        buffers = (out.joints, out.confidence, out.mask)
        module.decode_simcc(x, y, split_ratio, score, threshold, *buffers, threads=threads)
    except module.Error as error:
        raise translate(error) from None


try_decode: Callable[..., bool] = _core.try_decode if _core is not None else lambda *_: False
"""`decode` of (heatmaps, codec, temperature, threshold, joints, confidence, mask, threads) that nobody has checked.

Checks in Python cost as much as the decode of a pose, so `port_deploy.decode` tries this first: it answers whether all
was exactly as it must be and ``out`` is filled. If not, nothing was written, and `decode`'s checks say why or convert.
"""
