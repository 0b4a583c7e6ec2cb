# SPDX-License-Identifier: Apache-2.0
"""The contestants on a GPU: everything lies there, every call ends with a synchronisation of the stream.

``NAME graph`` is the same work captured in a CUDA graph and replayed. `Bound.queue` queues the work without waiting:
what `timing_cuda` captures to time it inside a graph. Memory, streams and graphs are PyTorch's, which the oracle needs
anyway. May use: job, plan, export, refiner, weights, errors; torch, onnxruntime inside the functions.
Test: tests/test_bench_cuda.py; on a GPU tests/test_cuda.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends import require
from port_deploy.backends.artefact import first_line, require_library
from port_deploy.bench.inputs import Poses
from port_deploy.bench.job import Bind, Bound, Job, artefact_file
from port_deploy.bench.plan import GRAPH
from port_deploy.errors import BackendUnavailableError
from port_deploy.sidecar import INPUTS, OUTPUTS
from port_deploy.weights import load_model

DEVICE = "cuda"

WARM_UP = 5
"""Calls before a capture: lazy work of the first ones cannot be recorded."""

Make = Callable[[list[Any], list[Any]], Callable[[], object]]
"""From inputs (first, second, threshold) and outputs (joints, confidence, mask) on the GPU to what queues a call."""


def openers() -> dict[str, Callable[[Job], tuple[Bind, str]]]:
    """How each backend is opened; ``NAME graph`` as ``NAME``."""
    return {
        "native-cuda": _native,
        "torch": _torch,
        "torch.compile": _torch_compile,
        "torchscript": _torchscript,
        "aotinductor": _aotinductor,
        "onnxruntime": _onnxruntime,
        "tensorrt": _tensorrt,
    }


def open_cuda_peer(job: Job) -> tuple[Bind, str]:
    """As `peers.open_peer`, on a GPU.

    Raises:
        BackendUnavailableError: Its library is missing, or there is no GPU.
    """
    require_library("torch", f"timing {job.contestant.backend}", "export")
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"PyTorch {torch.__version__} finds no CUDA device: use --device cpu, or install a CUDA build of PyTorch"
        )
    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = False  # 10 bits of mantissa are not fp32
    return openers()[job.contestant.backend.removesuffix(GRAPH)](job)


def _bind(job: Job, make: Make) -> Bind:
    import torch

    def bind(poses: Poses) -> Bound:
        threshold = np.array([poses.threshold], np.float32)
        given = [torch.from_numpy(a).to(DEVICE) for a in (poses.first, poses.second, threshold)]
        b, n = poses.first.shape[:2]
        out = [
            torch.full((b, n, 2), float("nan"), device=DEVICE),
            torch.full((b, n), float("nan"), device=DEVICE),
            torch.zeros((b, n), dtype=torch.bool, device=DEVICE),
        ]
        queue = make(given, out)
        act, wait = queue, torch.cuda.current_stream().synchronize
        if job.contestant.backend.endswith(GRAPH):
            act = capture(queue, 1).replay

        def call() -> None:
            act()
            wait()

        def read() -> list[NDArray[Any]]:
            return [a.cpu().numpy() for a in out]

        return Bound(call, read, queue)

    return bind


def capture(queue: Callable[[], object], times: int) -> Any:
    """A CUDA graph of ``times`` calls one after the other."""
    import torch

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            queue()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            queue()
    return graph


def _native(job: Job) -> tuple[Bind, str]:
    from port_deploy.refiner import Refiner

    require("native-cuda")
    refiner = Refiner.load(job.model, device="cuda", backend="native-cuda", precision=job.contestant.dtype)

    def make(given: list[Any], out: list[Any]) -> Callable[[], object]:
        first, second, _ = given
        target = tuple(out)
        if job.kind == "joints":
            return lambda: refiner.refine(first, second, out=target)
        return lambda: refiner(first, affine=second, out=target)

    return _bind(job, make), refiner.backend.detail


def _of_module(program: Any) -> Make:
    """Of what answers new tensors: they are copied into ``out``, as a pipeline with fixed buffers has to."""
    import torch

    def make(given: list[Any], out: list[Any]) -> Callable[[], object]:
        def queue() -> None:
            with torch.inference_mode():
                for target, answer in zip(out, program(*given)[:3], strict=True):  # a fourth: std
                    target.copy_(answer)

        return queue

    return make


def _module(job: Job) -> Any:
    from port_deploy.export.graph import build_graph

    precision: Any = job.contestant.dtype
    return build_graph(load_model(job.model), job.kind, precision).module.to(DEVICE)


def _torch(job: Job) -> tuple[Bind, str]:
    return _bind(job, _of_module(_module(job))), _detail("eager", job)


def _torch_compile(job: Job) -> tuple[Bind, str]:
    import torch

    # Its own CUDA graphs would hide the launches in the plain row: "torch.compile graph" has them.
    program = torch.compile(_module(job), dynamic=False, mode="max-autotune-no-cudagraphs")
    return _bind(job, _of_module(program)), _detail("torch.compile, max-autotune, fixed shapes", job)


def _torchscript(job: Job) -> tuple[Bind, str]:
    import torch

    program = torch.jit.load(str(artefact_file(job)), map_location=DEVICE)  # type: ignore[no-untyped-call]
    return _bind(job, _of_module(program)), _detail("TorchScript, frozen", job)


def _aotinductor(job: Job) -> tuple[Bind, str]:
    import torch

    program = torch._inductor.aoti_load_package(str(artefact_file(job)))
    return _bind(job, _of_module(program)), _detail("AOTInductor", job)


def _detail(how: str, job: Job) -> str:
    import torch

    in_graph = ", in a CUDA graph" if job.contestant.backend.endswith(GRAPH) else ""
    return f"PyTorch {torch.__version__} {how}{in_graph}"


def _onnxruntime(job: Job) -> tuple[Bind, str]:
    require_library("onnxruntime", "timing onnxruntime", "onnxruntime")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackendUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} has no CUDAExecutionProvider: pip install onnxruntime-gpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of the threshold's default, which is meant
    try:
        session = onnxruntime.InferenceSession(
            str(artefact_file(job)), options, providers=[("CUDAExecutionProvider", {"use_tf32": "0"})]
        )
    except Exception as error:  # its exceptions share no base class
        raise BackendUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {job.contestant.dtype}: {first_line(error)}"
        ) from error
    if "CUDAExecutionProvider" not in session.get_providers():
        raise BackendUnavailableError("ONNX Runtime fell back to the processor: its CUDA libraries do not load")
    inputs, outputs = INPUTS[job.kind], OUTPUTS[job.kind]

    def make(given: list[Any], out: list[Any]) -> Callable[[], object]:
        binding = session.io_binding()
        for name, tensor in zip(inputs, given, strict=True):
            binding.bind_input(name, "cuda", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
        for name, tensor, kind in zip(outputs, out, (np.float32, np.float32, np.bool_), strict=True):
            binding.bind_output(name, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
        kept = (given, out)  # the binding holds addresses only
        return lambda: (session.run_with_iobinding(binding), kept)

    detail = f"ONNX Runtime {onnxruntime.__version__}, CUDAExecutionProvider, bound memory"
    return _bind(job, make), detail


def _tensorrt(job: Job) -> tuple[Bind, str]:
    from port_deploy.refiner import Refiner

    require("tensorrt")
    refiner = Refiner.load(artefact_file(job), device="cuda", graphs=False)

    def make(given: Sequence[Any], out: Sequence[Any]) -> Callable[[], object]:
        first, second, _ = given
        target = tuple(out)
        if job.kind == "joints":
            return lambda: refiner.refine(first, second, out=target)
        return lambda: refiner(first, affine=second, out=target)

    return _bind(job, make), refiner.backend.detail
