# SPDX-License-Identifier: Apache-2.0
"""``NAME.engine``: an ONNX artefact built by TensorRT 10 or 11, or by TensorRT-RTX, through one code path.

The network is strongly typed: the precision is the graph's own, since TensorRT 11 has no flags for it. Needs neither
PyTorch nor an ONNX library. Full TensorRT times kernels on the GPU that it builds for; TensorRT-RTX needs no GPU.
May use: the other engine_*.py, fused_network, backends.tensorrt_, backends.cuda_memory, onnx_bytes, sidecar,
weights, files, errors. Test: tests/test_engine_build.py, tests/test_engine_options.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, cast

from port_deploy.backends import cuda_memory
from port_deploy.backends.tensorrt_ import LIBRARIES, import_library, make_logger, why
from port_deploy.engine_info import EngineInfo
from port_deploy.errors import BackendUnavailableError, ExportError, InputError, missing_extra
from port_deploy.export.engine_cache import Built, EngineCache
from port_deploy.export.engine_options import BuildOptions, check_supported, configure
from port_deploy.export.engine_progress import Monitor, Progress, Silent, run_cancellable
from port_deploy.export.fused_network import Fused, build_network, plan_fused
from port_deploy.export.timing_cache import TimingCache
from port_deploy.files import check_writable
from port_deploy.onnx_bytes import without_initializer
from port_deploy.sidecar import DEFAULTS, Sidecar
from port_deploy.weights import Model

BUILDER_REVISION = 1
"""Part of every cache key: raised when this file builds another engine from the same arguments."""


class BuiltEngine(NamedTuple):
    """What `build_engine` answers: the bytes, what they were built with, and whether they came from the cache."""

    data: bytes
    info: EngineInfo
    cached: bool


@dataclass(frozen=True)
class Toolchain:
    """A library that can build here.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        module: Its Python module.
        logger: Keeps its errors.
        builder: Its builder.
        device: Number of the GPU that it builds on.
        gpu: Model of that GPU; empty for TensorRT-RTX, which needs none.
        capability: Its compute capability; empty likewise.
    """

    name: Literal["tensorrt", "tensorrt-rtx"]
    module: Any
    logger: Any
    builder: Any
    device: int = 0
    gpu: str = ""
    capability: str = ""


def build_engine(
    model: bytes,
    source: Sidecar,
    size: tuple[int, int],
    batch: tuple[int, int, int],
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    device: int = 0,
    free: Sequence[str] | None = None,
    weights: Model | None = None,
) -> BuiltEngine:
    """Build an engine, or take it from the cache.

    Args:
        model: The bytes of an ONNX artefact.
        source: Its sidecar.
        size: (H, W) that an engine with input ``heatmaps`` takes.
        batch: Smallest, best and largest B.
        options: How it is built.
        progress: Shown how far the build is.
        device: Number of the GPU to build on; of no matter to TensorRT-RTX.
        free: Inputs with a default that the engine takes as inputs; the others are constants in it. None: all.
        weights: The model that the ONNX was made from: a fused engine is built from it.

    Raises:
        BackendUnavailableError: The library is not installed.
        ExportError: It cannot build here, or it refuses the network; the message names the nodes.
        InputError: An option that the library does not have.
        KeyboardInterrupt: The caller was interrupted; the build has ended and nothing was kept.
    """
    options, progress = options or BuildOptions(), progress or Silent()
    tools = find_toolchain(options, device)
    check_supported(tools.name, tools.module, options)
    if options.timing_cache:
        check_writable(options.timing_cache)
    onnx_sha256 = hashlib.sha256(model).hexdigest()
    free = DEFAULTS[source.input] if free is None else free
    graph = without_initializer(model, *free) if free else model
    monitor = Monitor(progress)
    fused: Fused | None = None
    if options.fuse:
        if weights is None:
            raise InputError("--fuse needs the model itself: start from its .safetensors, or leave out --fuse")
        oldest = "8.0" if options.hardware_compat == "ampere+" else tools.capability
        fused = plan_fused(tools.module, weights, source.input, source.precision, size, oldest)

    def network() -> tuple[Any, Any]:
        if fused is not None:
            return build_network(tools.module, tools.builder, fused)
        return parse(tools.module, tools.logger, tools.builder, graph), None

    def build() -> Built:
        data, capabilities = run_cancellable(lambda: _build(tools, network, size, batch, options, monitor), monitor)
        info = EngineInfo(
            flavour=tools.name,
            version=tools.module.__version__,
            compute_capabilities=capabilities,
            onnx_sha256=onnx_sha256,
            device=tools.gpu,
            hardware_compat=options.hardware_compat or "",
            version_compat=options.version_compat,
            stripped=options.strip_weights,
            refittable=options.refit,
            workspace_bytes=options.workspace_bytes,
            fused=fused.way if fused else "none",
            fused_reason=fused.reason if fused else "not asked for: --fuse",
        )
        return data, info

    if not options.cache:
        return BuiltEngine(*build(), cached=False)
    key = {
        "builder": BUILDER_REVISION,
        "onnx_sha256": onnx_sha256,
        "batch": list(batch),
        "size": list(size) if source.input == "heatmaps" else None,
        "precision": source.precision,
        "free": sorted(free),
        "flavour": tools.name,
        "version": tools.module.__version__,
        "gpu": tools.gpu,
        "capability": tools.capability,
        "layer": fused.to_key() if fused else None,
        **options.to_key(),
    }
    built, cached = EngineCache(note=progress.note).get_or_build(key, build)
    return BuiltEngine(*built, cached=cached)


def find_toolchain(options: BuildOptions, device: int = 0) -> Toolchain:
    """Of the libraries that may be used, the first that can build here.

    Raises:
        BackendUnavailableError: None is installed.
        ExportError: None can build here; the message says why and what mends it.
    """
    wanted = [options.flavour] if options.flavour != "auto" else [n for n in LIBRARIES if find_spec(LIBRARIES[n])]
    if options.flavour == "auto" and options.targets:
        wanted = [n for n in wanted if n == "tensorrt-rtx"]
    if options.fuse and "tensorrt" in wanted:
        wanted = ["tensorrt"]
    if not wanted:
        raise missing_extra("building an engine", "tensorrt-rtx")
    problems: list[Exception] = []
    for name in wanted:
        try:
            return _open_toolchain(cast('Literal["tensorrt", "tensorrt-rtx"]', name), device)
        except (ExportError, BackendUnavailableError) as error:
            problems.append(error)
    raise problems[0]


def _open_toolchain(name: Literal["tensorrt", "tensorrt-rtx"], device: int) -> Toolchain:
    library = import_library(name)
    logger = make_logger(library)
    needs_gpu = name == "tensorrt"
    if needs_gpu and device:
        cuda_memory.select_device(device)
    try:
        builder = library.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's word for a null pointer: TypeError
        raise ExportError(
            f"{name} {library.__version__} cannot build without a working NVIDIA GPU "
            f"({why(logger) if logger.errors else error}): run port-export NAME.onnx --trt on the target, "
            "or build here with --tensorrt tensorrt-rtx --target sm_89"
        ) from error
    if not needs_gpu:
        return Toolchain(name, library, logger, builder)
    if not cuda_memory.has_bindings():
        raise missing_extra("an engine's sidecar (the GPU's compute capability)", "tensorrt")
    gpu, capability = cuda_memory.device_name(device), cuda_memory.compute_capability(device)
    return Toolchain(name, library, logger, builder, device, gpu, capability)


def _build(
    tools: Toolchain,
    make_network: Callable[[], tuple[Any, Any]],
    size: tuple[int, int],
    batch: tuple[int, int, int],
    options: BuildOptions,
    monitor: Monitor,
) -> tuple[bytes, tuple[str, ...]]:
    """The engine's bytes and the compute capabilities that it is for."""
    library, builder, logger = tools.module, tools.builder, tools.logger
    if tools.gpu:
        cuda_memory.select_device(tools.device)  # a thread's own
    network, keep = make_network()
    config = builder.create_builder_config()
    capabilities = configure(tools.name, library, config, options)
    config.add_optimization_profile(_profile(builder, network, size, batch))
    adapter = monitor.attach(library, config)  # alive until the build is over
    timings = TimingCache(tools.name, library, tools.gpu, options)
    timings.attach(config)
    engine = builder.build_serialized_network(network, config)
    del adapter, keep
    if engine is None:
        if monitor.cancelled:
            raise ExportError("the build was cancelled")
        raise ExportError(f"{tools.name} {library.__version__} could not build the engine: {_explained(why(logger))}")
    timings.store(config)
    return bytes(engine), (tools.capability,) if tools.capability else capabilities


def _explained(reason: str) -> str:
    """A library's reason with what to do about it, where that is known."""
    if "workspace" in reason.lower() or "OutOfMemory" in reason:
        return f"{reason}: give it more with --workspace 2G"
    return reason


def parse(library: Any, logger: Any, builder: Any, model: bytes) -> Any:
    """The strongly typed network of an ONNX graph.

    Raises:
        ExportError: The parser refuses it; the message names up to three nodes.
    """
    strongly_typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = [parser_reason(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(
            f"{library.__name__} {library.__version__} does not take the ONNX graph: "
            f"{'; '.join(reasons[:3]) or why(logger)}: export the ONNX again, or use another version of the library"
        )
    return network


def parser_reason(error: Any) -> str:
    """An error of the ONNX parser in one line."""
    text = " ".join(str(error.desc()).split())[:200]
    try:
        node, operator = error.node_name(), error.node_operator()
    except AttributeError:  # TensorRT 10.0 has only the node's index
        return f"node {error.node()}: {text}"
    return f"node {node!r} ({operator}): {text}" if node else text


def _profile(builder: Any, network: Any, size: tuple[int, int], batch: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        rest = (shape[1], *size) if tensor.name == "heatmaps" else shape[1:]
        if -1 in rest:
            raise ExportError(f"input {tensor.name} {list(shape)} has a free axis beside the batch: fix it in the ONNX")
        profile.set_shape(tensor.name, *((b, *rest) for b in batch))
    return profile
