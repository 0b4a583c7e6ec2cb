# SPDX-License-Identifier: Apache-2.0
"""What is installed here and what is missing: version, build, backends, GPUs, models. For people who look for a fault.

May use: backends, weights. Test: tests/test_info.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from port_deploy import backends
from port_deploy.backends import native
from port_deploy.backends.base import Availability
from port_deploy.errors import PortError
from port_deploy.weights import bundled_models, load_model

LIBRARIES = (
    "numpy",
    "safetensors",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "matplotlib",
    "scikit-image",
    "rich",
)
"""Distributions whose versions matter to a report of a fault."""
GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def collect() -> dict[str, Any]:
    """Everything that port-info tells, as plain JSON values."""
    return {
        "version": _version("port-deploy") or "not installed (imported from a source tree)",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": {"name": processor_name(), "cores": os.cpu_count() or 1},
        "native": _native(),
        "backends": [{"name": name, **_availability(name).__dict__} for name in backends.names()],
        "gpus": gpus(),
        "models": bundled_model_facts(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def bundled_model_facts() -> list[dict[str, Any]]:
    """Skeleton, kind, size, licence and metrics of each model that comes with the package."""
    return [_model(name) for name in bundled_models()]


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def gpus() -> list[dict[str, str]]:
    """The NVIDIA GPUs that the driver names, without touching CUDA; empty where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line.strip()]
    keys = ("name", "driver", "memory", "compute_capability")
    return [dict(zip(keys, row, strict=True)) for row in rows if len(row) == len(keys)]


def _native() -> dict[str, Any]:
    try:
        return dict(native.build_info())
    except PortError as error:
        return {"error": str(error)}


def _availability(name: str) -> Availability:
    try:
        return backends.availability(name)
    except Exception as error:
        # a broken library must not stop the report that finds it
        return Availability(False, f"its library fails to load: {type(error).__name__}: {error}".split("\n")[0])


def _model(name: str) -> dict[str, Any]:
    try:
        model = load_model(name)
    except PortError as error:
        return {"name": name, "error": str(error)}
    spec = model.spec
    card = resources.files("port_deploy") / "data" / "models" / f"{name}.md"
    return {
        "name": name,
        "card": f"port_deploy/data/models/{name}.md" if card.is_file() else None,
        "skeleton": spec.skeleton.name,
        "joints": spec.joints,
        "kind": "soft" if spec.config.input_channels == 3 else "paper",
        "parameters": spec.config.parameter_count(),
        "size_bytes": len(model.data),
        "threshold": spec.threshold,
        "refine": spec.refine,
        "fusion": spec.fusion,
        "licence": spec.licence,
        "metrics": dict(spec.metrics),
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
