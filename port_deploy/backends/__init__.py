# SPDX-License-Identifier: Apache-2.0
"""The ways to compute the line, one file each, and the list of them. Nothing here imports a backend before it is used.

A module for artefacts has ``load(path, *, threads, device, **options) -> Backend``; ``native``, ``native_cuda`` and
``torch_``, which run model files, have ``load(model, *, threads, device, precision) -> Backend``. Every module has
``availability() -> Availability``; one that serves several names takes the name: ``availability("tensorrt-rtx")``.
May use: weights, skeleton, config, errors, files. Test: tests/test_backends.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from port_deploy.backends.base import Availability
from port_deploy.errors import BackendUnavailableError, InputError

MODEL_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Entry:
    """One backend.

    Attributes:
        name: Its one name, in the CLI, in tests, in results.
        module: The file that holds it, in this package.
        suffix: What it runs: MODEL_SUFFIX or an artefact's suffix.
        devices: Where it can run.
        flag: The option of port-export that makes its artefact; empty where it needs none.
    """

    name: str
    module: str
    suffix: str
    devices: tuple[str, ...]
    flag: str = ""


ENTRIES = (
    Entry("native-cuda", "native_cuda", MODEL_SUFFIX, ("cuda",)),
    Entry("native-cpu", "native", MODEL_SUFFIX, ("cpu",)),
    Entry("torch", "torch_", MODEL_SUFFIX, ("cpu", "cuda")),
    Entry("torchscript", "torchscript_", ".ts", ("cpu", "cuda"), "--torchscript"),
    Entry("aotinductor", "aotinductor_", ".pt2", ("cpu", "cuda"), "--pt2"),
    Entry("onnxruntime", "onnxruntime_", ".onnx", ("cpu", "cuda"), "--onnx"),
    Entry("openvino", "openvino_", ".onnx", ("cpu",), "--onnx"),
    Entry("tensorrt", "tensorrt_", ".engine", ("cuda",), "--trt"),
    Entry("tensorrt-rtx", "tensorrt_", ".engine", ("cuda",), "--trt"),
)
"""Every backend, in the order in which ``auto`` would rather have them."""


def names() -> tuple[str, ...]:
    """Names of all backends, available or not."""
    return tuple(e.name for e in ENTRIES)


def entry(name: str) -> Entry:
    """The backend of that name.

    Raises:
        InputError: There is none; the message lists them.
    """
    for candidate in ENTRIES:
        if candidate.name == name:
            return candidate
    raise InputError(f"unknown backend {name!r}: use auto or one of {', '.join(names())}")


def entries_for(suffix: str) -> tuple[Entry, ...]:
    """The backends that run files of that suffix, best first."""
    return tuple(e for e in ENTRIES if e.suffix == suffix)


def module_of(which: Entry) -> Any:
    """Import the backend's module. Its library is imported by its own functions, so this works without it."""
    return import_module(f"port_deploy.backends.{which.module}")


def availability(name: str) -> Availability:
    """Whether the backend can run here, and the command that mends it where it cannot."""
    which = entry(name)
    module = module_of(which)
    several = sum(e.module == which.module for e in ENTRIES) > 1
    answer: Availability = module.availability(name) if several else module.availability()
    return answer


def require(name: str) -> Entry:
    """The backend of that name, which can run here.

    Raises:
        BackendUnavailableError: It cannot; the message says why and what mends it.
    """
    state = availability(name)
    if not state.available:
        remedy = f": {state.remedy}" if state.remedy else ""
        raise BackendUnavailableError(f"backend {name} cannot run here ({state.detail}){remedy}")
    return entry(name)
