# SPDX-License-Identifier: Apache-2.0
"""The `onnxruntime` backend: runs ``NAME.onnx`` through any of ONNX Runtime's providers, with no copy of its own.

Inputs and outputs are bound where they lie: host memory, or a GPU's where the provider computes there.
May use: artefact, onnx_bytes, sidecar, errors, onnxruntime. Test: tests/test_export.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.artefact import (
    ArtefactBackend,
    artefact_path,
    first_line,
    library_availability,
    require_library,
)
from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError
from port_deploy.onnx_bytes import without_initializer
from port_deploy.sidecar import DEFAULTS, Sidecar, read_sidecar

Provider = str | tuple[str, Mapping[str, Any]]

_LOG_ERRORS = 3  # ONNX Runtime's severity


def availability() -> Availability:
    """Whether ONNX Runtime is installed, and its providers."""
    state = library_availability("onnxruntime", "ONNX Runtime", "onnxruntime")
    if not state.available:
        return state
    import onnxruntime

    return Availability(True, f"ONNX Runtime {onnxruntime.__version__}, {', '.join(_providers())}")


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


class OnnxRuntimeBackend(ArtefactBackend):
    """One session; runs from any number of threads."""

    def __init__(self, sidecar: Sidecar, session: Any) -> None:
        import onnxruntime

        first = session.get_providers()[0]
        detail = f"ONNX Runtime {onnxruntime.__version__}, {first}, {sidecar.precision}"
        super().__init__("onnxruntime", detail, sidecar)
        self.session = session

    def _infer(self, first: NDArray[Any], second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        binding = self.session.io_binding()
        given = [np.ascontiguousarray(a) for a in (first, second, threshold)]  # alive until the run is over
        for name, array in zip(self.input_names, given, strict=True):
            binding.bind_cpu_input(name, array)
        targets = self.targets(out)  # alive until the run is over
        for name, target in zip(self.output_names, targets, strict=True):
            binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
        self.session.run_with_iobinding(binding)

    def run_on_device(
        self, inputs: Sequence[Any], threshold: float, outputs: Sequence[Any], device: str = "cuda", index: int = 0
    ) -> None:
        """Run on arrays that lie where the provider computes, without a copy; B must be at least 1.

        The work is finished when this returns. The caller's own stream must have finished writing the inputs before.

        Args:
            inputs: The artefact's two inputs, contiguous float32, with ``__cuda_array_interface__`` (or
                ``__array_interface__`` where ``device`` is ``cpu``).
            threshold: δ.
            outputs: Joints, confidence and mask likewise, and std of a model with a variance; written to.
            device: ``cuda`` or ``cpu``.
            index: Which GPU.

        Raises:
            InputError: An array is not on that device, or not contiguous.
        """
        binding = self.session.io_binding()
        for name, array in zip(self.input_names[:2], inputs, strict=True):
            shape, pointer = _memory(array, name, device, "<f4")
            binding.bind_input(name, device, index, np.float32, shape, pointer)
        delta = np.array([threshold], np.float32)
        binding.bind_cpu_input(self.input_names[2], delta)
        for name, array in zip(self.output_names, outputs, strict=True):
            typestr, dtype = ("|b1", np.bool_) if name == "mask" else ("<f4", np.float32)
            shape, pointer = _memory(array, name, device, typestr)
            binding.bind_output(name, device, index, dtype, shape, pointer)
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    return options


def open_session(data: bytes, what: str, threads: int = 0) -> Any:
    """A session on the CPU for any ONNX graph, one that is no artefact of ours.

    Args:
        data: The graph.
        what: What it is, for messages.
        threads: Of one call; 0 lets ONNX Runtime choose.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        InputError: ONNX Runtime refuses the graph.
    """
    require_library("onnxruntime", f"running {what}", "onnxruntime")
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(data, _options(threads), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise InputError(
            f"ONNX Runtime {onnxruntime.__version__} does not take {what} ({first_line(error)}): export it again with "
            "standard operators"
        ) from error


def _memory(array: Any, name: str, device: str, typestr: str) -> tuple[tuple[int, ...], int]:
    attribute = "__cuda_array_interface__" if device == "cuda" else "__array_interface__"
    interface = getattr(array, attribute, None)
    if interface is None or interface.get("strides") is not None or interface["typestr"] != typestr:
        raise InputError(f"expected {name} as a contiguous {typestr} array on {device}, got {type(array).__name__}")
    return tuple(interface["shape"]), int(interface["data"][0])


def run_once(model: bytes, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Any ONNX graph on the CPU, once.

    Args:
        model: A serialised ModelProto.
        outputs: Names of what is asked for.
        feeds: Inputs by name.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed, or lacks an operator of the graph.
        ModelFileError: It does not run the graph.
    """
    require_library("onnxruntime", "running an ONNX graph", "onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return list(session.run(list(outputs), dict(feeds)))
    except errors.NotImplemented as error:
        raise BackendUnavailableError(f"ONNX Runtime lacks an operator of the graph ({first_line(error)})") from error
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelFileError(f"ONNX Runtime does not run the graph ({first_line(error)}): export it again") from error


def quantize_static(
    source: Path,
    target: Path,
    feeds: Iterator[Mapping[str, NDArray[Any]]],
    operators: Sequence[str],
    kept: Sequence[str],
) -> None:
    """ONNX Runtime's own static quantizer, set as TensorRT wants its graphs.

    Args:
        source: A float32 graph.
        target: Where the quantized graph goes.
        feeds: Inputs to find the ranges of values with.
        operators: Types of nodes whose inputs and weights are quantized.
        kept: Names of nodes that are not.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(feeds, None)

    logging.disable(logging.WARNING)  # it recommends its own pre-processing, of graphs that have had it
    try:
        _quantize(quantization, source, target, Reader(), operators, kept)
    finally:
        logging.disable(logging.NOTSET)


def _quantize(
    quantization: Any, source: Path, target: Path, reader: Any, operators: Sequence[str], kept: Sequence[str]
) -> None:
    quantization.quantize_static(
        source,
        target,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(operators),
        nodes_to_exclude=list(kept),
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT adds biases in floating point
            "OpTypesToExcludeOutputQuantization": list(operators),
        },
    )


def load(
    path: str | Path,
    *,
    threads: int = 0,
    device: str = "cpu",
    providers: Sequence[Provider] | None = None,
) -> OnnxRuntimeBackend:
    """Load an ONNX artefact.

    Args:
        path: ``NAME.onnx``; its sidecar lies beside it.
        threads: Of one call; 0 lets ONNX Runtime choose.
        device: ``cpu`` or ``cuda``; ``cuda`` asks for CUDAExecutionProvider.
        providers: ONNX Runtime's provider names, or pairs of name and options, passed through as they are; they win
            over ``device``.

    Raises:
        BackendUnavailableError: ONNX Runtime or a provider that was asked for is not there, or it lacks an operator.
        ModelFileError: The sidecar does not fit, or ONNX Runtime cannot read the file.
    """
    require_library("onnxruntime", "backend onnxruntime", "onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    sidecar = read_sidecar(path, "onnx")
    wanted = list(providers) if providers is not None else ["CUDAExecutionProvider"] * device.startswith("cuda")
    have = _providers()
    names = [p if isinstance(p, str) else p[0] for p in wanted]
    for name in names:
        if name not in have:
            raise BackendUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__} has no {name} (it has {', '.join(have)}): "
                "pip install onnxruntime-gpu for CUDA and TensorRT, onnxruntime-openvino for OpenVINO"
            )
    if "CPUExecutionProvider" not in names:
        wanted.append("CPUExecutionProvider")
    # An input with a default cannot be bound; without it, it is an input like the others.
    data = without_initializer(artefact_path(path).read_bytes(), *DEFAULTS[sidecar.input])
    try:
        session = onnxruntime.InferenceSession(data, _options(threads), providers=wanted)
    except errors.NotImplemented as error:
        provider = names[0] if names else "its CPU provider"
        raise BackendUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} with {provider} lacks an operator that {path} "
            f"({sidecar.precision}) needs ({first_line(error)}): use backend openvino, or export --precision fp32"
        ) from error
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path} ({first_line(error)}): export it again"
        ) from error
    if names and names[0] not in session.get_providers():
        raise BackendUnavailableError(
            f"ONNX Runtime fell back from {names[0]} to {session.get_providers()[0]}: install that provider's "
            "libraries (for CUDA: the CUDA and cuDNN versions its release notes name), or use device='cpu'"
        )
    return OnnxRuntimeBackend(sidecar, session)
