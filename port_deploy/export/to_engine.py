# SPDX-License-Identifier: Apache-2.0
"""``NAME.engine``: an ONNX artefact built by TensorRT 10 or 11, or by TensorRT-RTX, through one code path.

The network is strongly typed: the precision is the graph's own, since TensorRT 11 has no flags for it. Needs neither
PyTorch nor an ONNX library. Full TensorRT times kernels on the GPU that it builds for; TensorRT-RTX needs no GPU.
May use: backends.tensorrt_, backends.cuda_memory, onnx_bytes, sidecar, errors. Test: tests/test_tensorrt.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from port_deploy.backends import cuda_memory
from port_deploy.backends.tensorrt_ import LIBRARIES, import_library, make_logger, why
from port_deploy.errors import BackendUnavailableError, ExportError, InputError, missing_extra
from port_deploy.onnx_bytes import without_initializer
from port_deploy.sidecar import INPUTS, EngineInfo, Sidecar

WORKSPACE_BYTES = 1 << 30
"""Scratch memory that a kernel may ask for; the line needs a few megabytes."""

FLAVOURS = ("auto", "tensorrt", "tensorrt-rtx")


def build_engine(
    model: bytes,
    source: Sidecar,
    size: tuple[int, int],
    batch: tuple[int, int, int],
    flavour: str = "auto",
    targets: Sequence[str] = (),
) -> tuple[bytes, EngineInfo]:
    """Build an engine.

    Args:
        model: The bytes of an ONNX artefact.
        source: Its sidecar.
        size: (H, W) that an engine with input ``heatmaps`` takes.
        batch: Smallest, best and largest B.
        flavour: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: TensorRT where it can build, else TensorRT-RTX.
        targets: GPUs to build for, ``sm_89``; TensorRT-RTX only. None: its default set.

    Returns:
        The engine's bytes and what it was built with.

    Raises:
        BackendUnavailableError: The library is not installed.
        ExportError: It cannot build here, or it refuses the network; the message names the nodes.
        InputError: An unknown target, or targets for full TensorRT.
    """
    name, library, logger, builder = _builder(flavour, bool(targets))
    if targets and name == "tensorrt":
        raise InputError("TensorRT builds for the GPU that it runs on: leave out --target, or use TensorRT-RTX")
    network = _parse(library, logger, builder, without_initializer(model, INPUTS[source.input][2]))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(library.BuilderFlag.TF32)  # 10 bits of mantissa are not float32: errors of tenths of a pixel
    if hasattr(library.BuilderFlag, "STRICT_NANS"):
        config.set_flag(library.BuilderFlag.STRICT_NANS)  # missing joints arrive as NaN and are found by comparing
    config.add_optimization_profile(_profile(builder, network, source, size, batch))
    capabilities = _set_targets(library, config, targets)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"{name} {library.__version__} could not build the engine: {why(logger)}")
    if name == "tensorrt":
        capabilities = (cuda_memory.compute_capability(),)
    return bytes(engine), EngineInfo(
        "tensorrt" if name == "tensorrt" else "tensorrt-rtx", library.__version__, capabilities
    )


def _builder(flavour: str, has_targets: bool) -> tuple[str, Any, Any, Any]:
    """Flavour, library, logger and builder: of those that may be used, the first that works here."""
    if flavour not in FLAVOURS:
        raise InputError(f"unknown TensorRT {flavour!r}: use one of {', '.join(FLAVOURS)}")
    wanted = [flavour] if flavour != "auto" else [n for n in LIBRARIES if find_spec(LIBRARIES[n]) is not None]
    if flavour == "auto" and has_targets:
        wanted = [n for n in wanted if n == "tensorrt-rtx"]
    if not wanted:
        raise missing_extra("building an engine", "tensorrt-rtx")
    problems: list[Exception] = []
    for name in wanted:
        try:
            library = import_library(name)
            logger = make_logger(library)
            return name, library, logger, _make_builder(name, library, logger)
        except (ExportError, BackendUnavailableError) as error:
            problems.append(error)
    raise problems[0]


def _make_builder(name: str, library: Any, logger: Any) -> Any:
    try:
        builder = library.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's word for a null pointer: TypeError
        raise ExportError(
            f"{name} {library.__version__} cannot build without a working NVIDIA GPU "
            f"({why(logger) if logger.errors else error}): run port-export NAME.onnx --trt on the target, "
            "or build here with --tensorrt tensorrt-rtx --target sm_89"
        ) from error
    if name == "tensorrt" and not cuda_memory.has_bindings():
        raise missing_extra("an engine's sidecar (the GPU's compute capability)", "tensorrt")
    return builder


def _parse(library: Any, logger: Any, builder: Any, model: bytes) -> Any:
    strongly_typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = [_reason(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(
            f"{library.__name__} {library.__version__} does not take the ONNX graph: "
            f"{'; '.join(reasons[:3]) or why(logger)}: export the ONNX again, or use another version of the library"
        )
    return network


def _reason(error: Any) -> str:
    text = " ".join(str(error.desc()).split())[:200]
    try:
        node, operator = error.node_name(), error.node_operator()
    except AttributeError:  # TensorRT 10.0 has only the node's index
        return f"node {error.node()}: {text}"
    return f"node {node!r} ({operator}): {text}" if node else text


def _profile(builder: Any, network: Any, source: Sidecar, size: tuple[int, int], batch: tuple[int, int, int]) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        rest = (shape[1], *size) if tensor.name == "heatmaps" else shape[1:]
        profile.set_shape(tensor.name, *((b, *rest) for b in batch))
    return profile


def _set_targets(library: Any, config: Any, targets: Sequence[str]) -> tuple[str, ...]:
    if not targets:
        return ()
    known = {
        f"sm_{member[2:]}": value
        for member, value in library.ComputeCapability.__members__.items()
        if member.startswith("SM")
    }
    unknown = [t for t in targets if t not in known]
    if unknown:
        raise InputError(
            f"{library.__name__} {library.__version__} cannot build for {', '.join(unknown)}: "
            f"use {', '.join(sorted(known, key=lambda t: int(t[3:])))}"
        )
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(known[target], index):
            raise ExportError(f"{library.__name__} {library.__version__} refuses to build for {target}: leave it out")
    return tuple(f"{t[3:-1]}.{t[-1]}" for t in targets)
