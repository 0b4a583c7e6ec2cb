# SPDX-License-Identifier: Apache-2.0
"""The `tensorrt` and `tensorrt-rtx` backends: load ``NAME.engine`` with the library that built it.

One code path: both libraries have the same Python interface, and the sidecar says which one an engine belongs to. An
engine fits one version of one library on some GPUs; that, and its hash, is checked against the sidecar *before* the
library sees a byte: an engine is executable code. How it runs is in engine_backend.py.
May use: engine_backend, engine_plugin, cuda_memory, onnx_bytes, sidecar, errors, tensorrt or tensorrt_rtx.
Test: tests/test_tensorrt.py, tests/test_engine_run.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from port_deploy.backends import cuda_memory, engine_plugin
from port_deploy.backends.base import Availability
from port_deploy.backends.engine_backend import TensorRtBackend
from port_deploy.backends.engine_contexts import Contexts, put_weights, weights_for
from port_deploy.errors import (
    BackendUnavailableError,
    EngineMismatchError,
    InputError,
    ModelFileError,
    missing_extra,
)
from port_deploy.files import cache_folder
from port_deploy.sidecar import Sidecar, describe, read_artefact

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


def import_plugin_module(library: Any) -> Any:
    """``tensorrt.plugin``, which the library does not import by itself.

    Raises:
        BackendUnavailableError: It does not load.
    """
    try:
        return import_module(f"{library.__name__}.plugin")
    except (ImportError, OSError, AttributeError) as error:
        raise BackendUnavailableError(
            f"{library.__name__}.plugin does not load: {error}: build without --fuse"
        ) from error


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
        EngineMismatchError: It was built with or for something else; the message names both.
    """
    info = sidecar.engine
    if info is None:
        raise ModelFileError(f"the sidecar of {path} does not say what built the engine: export it again")
    remedy = f"build it here from its ONNX: port-export {Path(path).stem}.onnx --trt"
    if not (info.version == version or (info.version_compat and _number(version) >= _number(info.version))):
        raise EngineMismatchError(
            f"{path} was built with {info.flavour} {info.version}, this machine has {version}, and engines do not "
            f"carry over between versions: {remedy}"
        )
    if capability is None:
        return
    if info.hardware_compat == "ampere+":
        built: tuple[str, ...] = ("8.0 or later",)
        newer = _number(capability) >= (8, 0)
    else:
        built = info.compute_capabilities or RTX_DEFAULT
        newer = not info.compute_capabilities and _number(capability) >= _number(built[-1])
    if capability not in built and not newer:
        raise EngineMismatchError(
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


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def device_number(device: str) -> int:
    """1 of ``cuda:1``, 0 of ``cuda``.

    Raises:
        InputError: It is no GPU.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdigit() or not index):
        raise InputError(f"engines run on a GPU, got device {device!r}: use device='cuda', or native-cpu for the CPU")
    return int(index or 0)


def load(
    path: str | Path,
    *,
    threads: int = 0,
    device: str = "cuda",
    graphs: bool = True,
    warm_up: bool = True,
    runtime_cache: str | Path | None = None,
    refit: str | Path | None = None,
) -> TensorRtBackend:
    """Load an engine with the library that its sidecar names.

    Args:
        path: ``NAME.engine``; its sidecar lies beside it.
        threads: Ignored: the GPU computes.
        device: ``cuda``, or ``cuda:1`` and so on.
        graphs: Record CUDA graphs of calls that come again with the same batch and memory.
        warm_up: Run it twice on zeros now, so that the first call is not the slow one.
        runtime_cache: File of what TensorRT-RTX compiled for this GPU, read and written; None: in the user's cache
            folder. TensorRT compiles when it builds, and has none.
        refit: ``.onnx`` whose weights go into a refittable engine; None: its own.

    Raises:
        EngineMismatchError: The library's version, the GPU or the file's hash is not what the sidecar says.
        BackendUnavailableError: The library or a GPU is not there, or the library refuses the engine.
        InputError: Another device than a GPU, or an engine that cannot be refitted.
        ModelFileError: There is no sidecar that can be read, or no ONNX with the weights.
    """
    return open_engine(
        path, *_read(path), device=device, graphs=graphs, warm_up=warm_up, runtime_cache=runtime_cache, refit=refit
    )


def _read(path: str | Path) -> tuple[Sidecar, bytes]:
    describe(path, "engine")  # what is wrong with the sidecar itself is no mismatch
    try:
        return read_artefact(path, "engine")
    except ModelFileError as error:
        raise EngineMismatchError(str(error)) from error


def open_engine(
    path: str | Path,
    sidecar: Sidecar,
    data: bytes,
    *,
    device: str = "cuda",
    graphs: bool = True,
    warm_up: bool = True,
    runtime_cache: str | Path | None = None,
    refit: str | Path | None = None,
) -> TensorRtBackend:
    """`load` of bytes that are at hand and belong to the sidecar; their ONNX lies beside ``path``."""
    assert sidecar.engine is not None  # Sidecar.from_json saw to it
    flavour, ordinal = sidecar.engine.flavour, device_number(device)
    library = import_library(flavour)
    check_runs_here(path, sidecar, library.__version__, ordinal)
    weights, spec = weights_for(path, sidecar, refit)
    if sidecar.engine.fused == "ipluginv3":
        engine_plugin.register(library)  # before the library meets the layer
    with cuda_memory.on_device(ordinal):
        engine, runtime, logger = deserialise(path, data, library, sidecar.engine.version_compat)
        if weights is not None:
            put_weights(path, library, engine, logger, weights)
        contexts = Contexts(engine, (runtime, logger), library, graphs, _kept(flavour, sidecar, runtime_cache))
        detail = f"{flavour} {library.__version__}, compute capability {cuda_memory.compute_capability(ordinal)}"
        backend = TensorRtBackend(
            replace(sidecar, spec=spec),
            contexts.make,
            f"{detail}, {sidecar.precision}",
            ordinal,
            why=lambda: why(logger),
            record=graphs and not contexts.records,
        )
        if warm_up:
            backend.warm_up()
            contexts.save()
    return backend


def _kept(flavour: str, sidecar: Sidecar, asked: str | Path | None) -> Path | None:
    if flavour != "tensorrt-rtx":
        if asked is not None:
            raise InputError("TensorRT compiles when it builds and has no runtime cache: leave runtime_cache out")
        return None
    return Path(asked) if asked is not None else cache_folder() / "runtime" / f"{sidecar.sha256[:40]}.cache"


def deserialise(path: str | Path, data: bytes, library: Any, host_code: bool = False) -> tuple[Any, Any, Any]:
    """Engine, runtime and logger from an engine's bytes.

    Args:
        path: Where they come from, for messages.
        data: The bytes, already compared with their hash.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        host_code: The engine brings the runtime of the version that built it (``--version-compat``).

    Raises:
        BackendUnavailableError: The library refuses it; the message holds its reason.
    """
    logger = make_logger(library)
    refused = f"{library.__name__} {library.__version__} refuses {path}"
    try:
        runtime = library.Runtime(logger)
        if wrong := _diagnosis(library, runtime, data):
            raise BackendUnavailableError(f"{refused}: {wrong}: build it here from its ONNX")
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(data)
    except (TypeError, RuntimeError) as error:  # a null pointer from the factory where there is no driver
        raise BackendUnavailableError(f"{refused}: {why(logger) if logger.errors else error}") from error
    if engine is None:
        raise BackendUnavailableError(f"{refused}: {why(logger)}")
    return engine, runtime, logger


def _diagnosis(library: Any, runtime: Any, data: bytes) -> str:
    """What TensorRT-RTX finds wrong in an engine's header, before it reads the rest; TensorRT has no such question."""
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is None:
        return ""
    flags = int(ask(data)[1])
    known = library.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name.lower().replace("_", " ") for name, flag in known if flags & int(flag))
