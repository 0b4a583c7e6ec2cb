# SPDX-License-Identifier: Apache-2.0
"""One function per backend on the processor that makes the call to be timed, the way its own manual makes it fast.

`native-cpu` is timed through the public `Refiner` with ``out=``, its checks included. The peers run artefacts of
port_deploy.export through their own APIs, with none of this package's code around the call: inputs lie where the
library reads them, outputs are preallocated where it takes them, and shapes are fixed beforehand where that makes it
faster (OpenVINO, torch.compile). Runs inside `worker`.
May use: export, refiner, weights, errors; torch, onnxruntime, openvino inside the functions. Test: tests/test_bench.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import native
from port_deploy.backends.artefact import first_line, require_library
from port_deploy.bench.inputs import Poses
from port_deploy.bench.job import Bind, Bound, Job, artefact_file, artefact_precision
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.sidecar import INPUTS, OUTPUTS
from port_deploy.weights import load_model


def open_peer(job: Job) -> tuple[Bind, str]:
    """Load a backend; answers how to bind poses to it, and what it runs on, for people.

    Raises:
        InputError: There is no such backend here.
        BackendUnavailableError: Its library is missing, or the processor lacks the precision.
    """
    if job.device == "cuda":
        from port_deploy.bench.peers_cuda import open_cuda_peer

        return open_cuda_peer(job)
    openers: dict[str, Callable[[Job], tuple[Bind, str]]] = {
        "native-cpu": _native,
        "torch": _torch,
        "torch.compile": _torch_compile,
        "torchscript": _torchscript,
        "aotinductor": _aotinductor,
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
    }
    if job.contestant.backend not in openers:
        raise InputError(f"port-bench cannot time {job.contestant.backend!r}: use {', '.join(openers)}")
    return openers[job.contestant.backend](job)


def _native(job: Job) -> tuple[Bind, str]:
    from port_deploy.refined import Refined
    from port_deploy.refiner import Refiner

    if job.contestant.dtype == "bf16" and not native.build_info()["bf16"]:
        raise BackendUnavailableError("the processor or the build of the native core has no bf16")
    refiner = Refiner.load(
        job.model, device="cpu", backend="native-cpu", threads=job.threads, precision=job.contestant.dtype
    )

    def bind(poses: Poses) -> Bound:
        out = Refined(*_outputs(poses))
        first, second = poses.first, poses.second
        if poses.kind == "joints":
            return Bound(lambda: refiner.refine(first, second, out=out), lambda: out)
        return Bound(lambda: refiner(first, affine=second, out=out), lambda: out)

    return bind, refiner.backend.detail


def _outputs(poses: Poses) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    b, n = poses.first.shape[:2]
    return np.empty((b, n, 2), np.float32), np.empty((b, n), np.float32), np.empty((b, n), np.bool_)


def _torch(job: Job) -> tuple[Bind, str]:
    return _bind_torch(_module(job)), _on_torch("eager")


def _torch_compile(job: Job) -> tuple[Bind, str]:
    module = _module(job)
    import torch

    return _bind_torch(torch.compile(module, dynamic=False)), _on_torch("torch.compile, fixed shapes")


def _torchscript(job: Job) -> tuple[Bind, str]:
    _require_torch(job)
    import torch

    program = torch.jit.load(str(artefact_file(job)))  # type: ignore[no-untyped-call]
    return _bind_torch(program), _on_torch("TorchScript, frozen")


def _aotinductor(job: Job) -> tuple[Bind, str]:
    _require_torch(job)
    import torch

    return _bind_torch(torch._inductor.aoti_load_package(str(artefact_file(job)))), _on_torch("AOTInductor")


def _module(job: Job) -> Any:
    _require_torch(job)
    from port_deploy.export.graph import build_graph

    precision: Any = job.contestant.dtype
    return build_graph(load_model(job.model), job.kind, precision).module


def _require_torch(job: Job) -> None:
    require_library("torch", f"timing {job.contestant.backend}", "export")
    import torch

    torch.set_num_threads(job.threads)


def _on_torch(how: str) -> str:
    import torch

    return f"PyTorch {torch.__version__} {how}"


def _bind_torch(program: Any) -> Bind:
    import torch

    def bind(poses: Poses) -> Bound:
        threshold = np.array([poses.threshold], np.float32)
        tensors = [torch.from_numpy(a) for a in (poses.first, poses.second, threshold)]  # views of the arrays
        answer: list[Any] = []
        mode = torch.inference_mode

        def call() -> None:
            with mode():
                answer[:] = program(*tensors)

        return Bound(call, lambda: [a.numpy() for a in answer[:3]])  # a fourth: std, which is not compared

    return bind


def _onnxruntime(job: Job) -> tuple[Bind, str]:
    require_library("onnxruntime", "timing onnxruntime", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors: it warns of the threshold's default, which is meant
    try:
        session = onnxruntime.InferenceSession(str(artefact_file(job)), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise BackendUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {job.contestant.dtype} here: {first_line(error)}"
        ) from error
    inputs, outputs = INPUTS[job.kind][:2], OUTPUTS[job.kind]

    def bind(poses: Poses) -> Bound:
        binding, out = session.io_binding(), _outputs(poses)
        for name, given in zip(inputs, (poses.first, poses.second), strict=True):
            binding.bind_input(name, "cpu", 0, np.float32, given.shape, given.ctypes.data)
        for name, target in zip(outputs, out, strict=True):
            binding.bind_output(name, "cpu", 0, target.dtype.type, target.shape, target.ctypes.data)
        kept = poses, out  # the binding holds addresses only
        return Bound(lambda: session.run_with_iobinding(binding), lambda: kept[1])

    return bind, f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider, bound memory"


def _openvino(job: Job) -> tuple[Bind, str]:
    require_library("openvino", "timing openvino", "openvino")
    import openvino

    from port_deploy.onnx_bytes import without_initializer

    core, lowered = openvino.Core(), job.contestant.dtype == "bf16"
    if lowered and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendUnavailableError("OpenVINO finds no bf16 in this processor")
    hint = "bf16" if lowered and artefact_precision(job) == "fp32" else "f32"
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    names = INPUTS[job.kind]
    data = without_initializer(artefact_file(job).read_bytes(), names[2])
    compiled: dict[tuple[int, ...], Any] = {}

    def bind(poses: Poses) -> Bound:
        arrays = poses.first, poses.second, np.array([poses.threshold], np.float32)
        shape = poses.first.shape
        if shape not in compiled:
            graph = core.read_model(data)
            graph.reshape({name: list(a.shape) for name, a in zip(names, arrays, strict=True)})
            compiled[shape] = core.compile_model(graph, "CPU", settings)
        request = compiled[shape].create_infer_request()
        tensors = [openvino.Tensor(a, shared_memory=True) for a in arrays]
        for name, tensor in zip(names, tensors, strict=True):
            request.set_tensor(name, tensor)
        kept = [request, tensors, arrays]
        infer = request.infer

        def read() -> list[NDArray[Any]]:
            return [np.array(kept[0].get_output_tensor(i).data) for i in range(3)]

        return Bound(lambda: infer(share_outputs=True), read)

    how = "hint bf16" if hint == "bf16" else f"graph in {job.contestant.dtype}"
    return bind, f"OpenVINO {openvino.__version__}, latency, {how}, fixed shapes, shared memory"
