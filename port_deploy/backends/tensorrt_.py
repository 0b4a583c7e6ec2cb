# SPDX-License-Identifier: Apache-2.0
"""The `tensorrt` and `tensorrt-rtx` backends: run ``NAME.engine`` with the library that built it.

One code path: both libraries have the same Python interface, and the sidecar says which one an engine belongs to. An
engine fits one version of one library on some GPUs; that is checked against the sidecar *before* the library sees the
file. Host arrays in and out; each thread has an execution context, a stream and buffers of its own; a batch larger than
the engine's profile runs in pieces, a smaller one is filled up.
May use: artefact, cuda_memory, sidecar, errors, tensorrt or tensorrt_rtx. Test: tests/test_tensorrt.py.
"""

from __future__ import annotations

import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import cuda_memory
from port_deploy.backends.artefact import ArtefactBackend, artefact_path
from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError, missing_extra
from port_deploy.sidecar import OUTPUTS, Sidecar, read_sidecar

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Import name of each flavour."""

RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that TensorRT-RTX builds for unless told; the last one stands for itself and all later ones."""


def availability(name: str = "tensorrt") -> Availability:
    """Whether the library and a GPU are there."""
    install = f'pip install "port-deploy[{name}]"'
    library = LIBRARIES[name]
    if find_spec(library) is None:
        return Availability(False, f"the Python package {library} is not installed", install)
    version = getattr(import_module(library), "__version__", "of unknown version")
    if not cuda_memory.has_bindings():
        return Availability(False, f"{library} {version} without cuda-bindings", install)
    problem = cuda_memory.device_state()
    if problem:
        return Availability(False, f"{library} {version}, {problem}", "run it on a machine with an NVIDIA GPU")
    return Availability(True, f"{library} {version}, compute capability {cuda_memory.compute_capability()}")


def import_library(flavour: str) -> Any:
    """The library of a flavour.

    Raises:
        BackendUnavailableError: It is not installed, or its own libraries do not load.
    """
    try:
        return import_module(LIBRARIES[flavour])
    except ModuleNotFoundError as error:
        raise missing_extra(f"backend {flavour}", flavour) from error
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(f"{LIBRARIES[flavour]} is installed but does not load: {error}") from error


def make_logger(library: Any) -> Any:
    """A logger for the library that keeps its errors in ``errors`` and prints nothing."""

    class Collector(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.ERROR:
                self.errors.append(message)

    return Collector()


def why(logger: Any) -> str:
    """The last error that a logger of `make_logger` saw, one line."""
    return " ".join(logger.errors[-1].split())[:300] if logger.errors else "it gave no reason"


def check_fits(path: str | Path, sidecar: Sidecar, version: str, capability: str | None) -> None:
    """Check that an engine can run on this library and GPU, from its sidecar alone.

    Args:
        path: The engine, for messages.
        sidecar: Its sidecar.
        version: Version of the library that would run it.
        capability: Compute capability of the GPU; None to leave it unchecked.

    Raises:
        BackendUnavailableError: It was built with or for something else; the message names both.
    """
    info = sidecar.engine
    if info is None:
        raise ModelFileError(f"the sidecar of {path} does not say what built the engine: export it again")
    remedy = f"build it here from its ONNX: port-export {Path(path).stem}.onnx --trt"
    if info.version != version:
        raise BackendUnavailableError(
            f"{path} was built with {info.flavour} {info.version}, this machine has {version}, and engines do not "
            f"carry over between versions: {remedy}"
        )
    if capability is None:
        return
    built = info.compute_capabilities or RTX_DEFAULT
    newer = not info.compute_capabilities and _number(capability) >= _number(built[-1])
    if capability not in built and not newer:
        raise BackendUnavailableError(
            f"{path} was built for GPUs of compute capability {', '.join(built)}, this one has {capability}: {remedy}"
        )


def check_runs_here(path: str | Path, sidecar: Sidecar, version: str, device: int = 0) -> None:
    """`check_fits` for this machine and one of its GPUs; nothing is loaded.

    Raises:
        BackendUnavailableError: It does not fit, or there is no GPU.
    """
    check_fits(path, sidecar, version, None)
    problem = cuda_memory.device_state()
    if problem:
        raise BackendUnavailableError(
            f"{Path(path).name} needs an NVIDIA GPU, and here there is none that works ({problem}): "
            "use the .safetensors or .onnx on the CPU"
        )
    check_fits(path, sidecar, version, cuda_memory.compute_capability(device))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


class _Worker:
    """What one thread runs an engine with."""

    def __init__(self, engine: Any, device: int, flavour: str) -> None:
        cuda_memory.select_device(device)
        self.context = engine.create_execution_context()
        if self.context is None:
            raise BackendUnavailableError(f"{flavour} could not make an execution context: see free memory, nvidia-smi")
        self.arena = cuda_memory.Arena()


class TensorRtBackend(ArtefactBackend):
    """An engine on a GPU."""

    def __init__(self, sidecar: Sidecar, engine: Any, keep: tuple[Any, ...], detail: str, device: int) -> None:
        assert sidecar.engine is not None  # read_sidecar saw to both
        assert sidecar.batch is not None
        super().__init__(sidecar.engine.flavour, detail, sidecar)
        self._engine = engine
        self._keep = keep  # logger and runtime must outlive the engine
        self._device = device
        self._smallest, _, self._largest = sidecar.batch
        self._local = threading.local()

    def _infer(self, first: FloatArray, second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        for start in range(0, len(first), self._largest):
            stop = min(start + self._largest, len(first))
            part = HostBuffers(out.joints[start:stop], out.confidence[start:stop], out.mask[start:stop])
            self._piece(first[start:stop], second[start:stop], threshold, part)

    def _piece(self, first: FloatArray, second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        count = len(first)
        if count >= self._smallest:
            self._execute(first, second, threshold, out)
            return
        index = np.minimum(np.arange(self._smallest), count - 1)  # the last pose again and again
        full = HostBuffers(out.joints[index], out.confidence[index], out.mask[index])
        self._execute(first[index], second[index], threshold, full)
        out.joints[...], out.confidence[...] = full.joints[:count], full.confidence[:count]
        out.mask[...] = full.mask[:count]

    def _execute(self, first: FloatArray, second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        worker = getattr(self._local, "worker", None)
        if worker is None:
            worker = self._local.worker = _Worker(self._engine, self._device, self.name)
        context, arena = worker.context, worker.arena
        given = [np.ascontiguousarray(a) for a in (first, second, threshold)]  # alive until the stream is done
        for name, array in zip(self.input_names, given, strict=True):
            address = arena.block("in." + name, array.nbytes)
            arena.upload(address, array)
            if not (context.set_input_shape(name, array.shape) and context.set_tensor_address(name, address)):
                raise ModelFileError(f"{self.sidecar.file} refuses {name} of {list(array.shape)}: export it again")
        targets: tuple[NDArray[Any], ...] = (out.joints, out.confidence, out.mask)
        results = tuple(zip(OUTPUTS[self.sidecar.input], targets, strict=True))
        for name, target in results:
            if not context.set_tensor_address(name, arena.block("out." + name, target.nbytes)):
                raise ModelFileError(f"{self.sidecar.file} has no output {name}: export it again")
        if not context.execute_async_v3(arena.stream):
            raise BackendUnavailableError(f"{self.name} could not run {self.sidecar.file}: {why(self._keep[0])}")
        for name, target in results:
            arena.download(target, arena.block("out." + name, target.nbytes))
        arena.synchronise()


def load(path: str | Path, *, threads: int = 0, device: str = "cuda") -> TensorRtBackend:
    """Load an engine with the library that its sidecar names.

    Args:
        path: ``NAME.engine``; its sidecar lies beside it.
        threads: Ignored: the GPU computes.
        device: ``cuda``, or ``cuda:1`` and so on.

    Raises:
        BackendUnavailableError: The library, its version, the GPU or its compute capability is not what the engine
            was built with; or the library refuses the engine.
        InputError: Another device than a GPU.
        ModelFileError: The sidecar does not fit.
    """
    sidecar = read_sidecar(path, "engine")
    if sidecar.engine is None:
        raise ModelFileError(f"the sidecar of {path} does not say what built the engine: export it again")
    flavour = sidecar.engine.flavour
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdigit() or not index):
        raise InputError(f"engines run on a GPU, got device {device!r}: use device='cuda', or native-cpu for the CPU")
    ordinal = int(index or 0)
    library = import_library(flavour)
    check_runs_here(path, sidecar, library.__version__, ordinal)
    cuda_memory.select_device(ordinal)
    engine, runtime, logger = deserialise(path, library)
    detail = f"{flavour} {library.__version__}, compute capability {cuda_memory.compute_capability(ordinal)}"
    return TensorRtBackend(sidecar, engine, (logger, runtime), f"{detail}, {sidecar.precision}", ordinal)


def deserialise(path: str | Path, library: Any) -> tuple[Any, Any, Any]:
    """Engine, runtime and logger from an engine file.

    Raises:
        BackendUnavailableError: The library refuses it; the message holds its reason.
    """
    logger = make_logger(library)
    refused = f"{library.__name__} {library.__version__} refuses {path}"
    try:
        runtime = library.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(artefact_path(path).read_bytes())
    except (TypeError, RuntimeError) as error:  # a null pointer from the factory where there is no driver
        raise BackendUnavailableError(f"{refused}: {why(logger) if logger.errors else error}") from error
    if engine is None:
        raise BackendUnavailableError(f"{refused}: {why(logger)}")
    return engine, runtime, logger
