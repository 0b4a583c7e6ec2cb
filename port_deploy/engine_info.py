# SPDX-License-Identifier: Apache-2.0
"""What a TensorRT engine was built with, as its sidecar says it. May use: json_fields. Test: tests/test_sidecar.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from port_deploy.json_fields import count, one_of, text


@dataclass(frozen=True)
class EngineInfo:
    """What an engine was built with; where it runs, all of it must fit.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: Of that library.
        compute_capabilities: GPUs that it was built for (``["8.9"]``); empty where TensorRT-RTX chose its default set.
        onnx_sha256: Hex digest of the ONNX file that it was built from.
        device: The model of GPU that it was built on; empty for TensorRT-RTX.
        hardware_compat: ``ampere+``, ``same-cc``, or empty: for this model of GPU.
        version_compat: Later versions of the library run it, too.
        stripped: It has no weights: they come from that ONNX when it is loaded.
        refittable: Other weights can be put into it.
        workspace_bytes: Scratch memory that its kernels may ask for.
        fused: ``aot`` (one layer, whose kernel the engine holds), ``ipluginv3`` (one layer, which needs this package
            where the engine is loaded), or ``none``: the plain graph.
        fused_reason: Why.
    """

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...] = ()
    onnx_sha256: str = ""
    device: str = ""
    hardware_compat: str = ""
    version_compat: bool = False
    stripped: bool = False
    refittable: bool = False
    workspace_bytes: int = 0
    fused: Literal["aot", "ipluginv3", "none"] = "none"
    fused_reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self) | {"compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineInfo:
        """Read what `to_json` wrote; what older files lack has its default."""
        return cls(
            flavour=one_of(data, "flavour", ("tensorrt", "tensorrt-rtx")),
            version=text(data["version"]),
            compute_capabilities=tuple(text(v) for v in data["compute_capabilities"]),
            onnx_sha256=text(data.get("onnx_sha256", "")),
            device=text(data.get("device", "")),
            hardware_compat=text(data.get("hardware_compat", "")),
            version_compat=data.get("version_compat") is True,
            stripped=data.get("stripped") is True,
            refittable=data.get("refittable") is True,
            workspace_bytes=count(data.get("workspace_bytes", 0)),
            fused=one_of({"fused": "none"} | dict(data), "fused", ("aot", "ipluginv3", "none")),
            fused_reason=text(data.get("fused_reason", "")),
        )
