# SPDX-License-Identifier: Apache-2.0
"""The `openvino` backend: runs ``NAME.onnx`` on Intel and other CPUs.

OpenVINO takes an input with a default for a constant, so the threshold's default is taken out of the bytes first.
May use: artefact, onnx_bytes, sidecar, errors, openvino. Test: tests/test_export.py.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from port_deploy.backends.artefact import (
    ArtefactBackend,
    artefact_path,
    first_line,
    library_availability,
    require_cpu_device,
    require_library,
)
from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.errors import InputError, ModelFileError
from port_deploy.onnx_bytes import without_initializer
from port_deploy.sidecar import DEFAULTS, Sidecar, read_sidecar

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def availability() -> Availability:
    """Whether OpenVINO is installed."""
    return library_availability("openvino", "OpenVINO", "openvino")


class OpenVinoBackend(ArtefactBackend):
    """One compiled model; each thread has an inference request of its own."""

    def __init__(self, detail: str, sidecar: Sidecar, compiled: Any) -> None:
        super().__init__("openvino", detail, sidecar)
        self._compiled = compiled
        self._local = threading.local()

    def _infer(self, first: NDArray[Any], second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer(dict(zip(self.input_names, (first, second, threshold), strict=True)), share_inputs=True)
        for index, target in enumerate(self.targets(out)):
            target[...] = request.get_output_tensor(index).data


def load(path: str | Path, *, threads: int = 0, device: str = "cpu", hint: str = "fp32") -> OpenVinoBackend:
    """Load an ONNX artefact.

    Args:
        path: ``NAME.onnx``; its sidecar lies beside it.
        threads: Of one call; 0 lets OpenVINO choose.
        device: ``cpu``.
        hint: OpenVINO's own precision hint. ``fp32`` follows the types in the graph (an artefact exported with
            ``--precision bf16`` computes its encoder in bf16). ``bf16`` lowers the *whole* graph, and is taken only
            for artefacts with input ``joints``: decoding heatmaps in bf16 loses whole pixels.

    Raises:
        BackendUnavailableError: OpenVINO is not installed.
        InputError: Another device, an unknown hint, or bf16 for heatmaps.
        ModelFileError: The sidecar does not fit, or OpenVINO cannot read the file.
    """
    require_library("openvino", "backend openvino", "openvino")
    import openvino

    sidecar = read_sidecar(path, "onnx")
    require_cpu_device(device, "openvino")
    if hint not in _HINTS:
        raise InputError(f"unknown hint {hint!r} for backend openvino: use {', '.join(_HINTS)}")
    if hint == "bf16" and sidecar.input == "heatmaps":
        raise InputError(
            f"{path} takes heatmaps, which OpenVINO's bf16 hint would decode in bf16, pixels off: "
            "export it with --precision bf16 instead, which keeps the decode in float32"
        )
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[hint], "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    data = without_initializer(artefact_path(path).read_bytes(), *DEFAULTS[sidecar.input])
    try:
        compiled = core.compile_model(core.read_model(data), "CPU", settings)
    except RuntimeError as error:
        raise ModelFileError(
            f"OpenVINO {openvino.__version__} cannot load {path} ({first_line(error)}): export it again"
        ) from error
    shown = sidecar.precision if hint == "fp32" else hint
    return OpenVinoBackend(f"OpenVINO {openvino.__version__}, {shown}", sidecar, compiled)
