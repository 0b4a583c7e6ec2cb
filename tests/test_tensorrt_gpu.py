# SPDX-License-Identifier: Apache-2.0
"""Engines on a GPU: built here, compared with the oracle in pixels, from every kind of memory, stream and thread.

Without a GPU nothing of this runs; what can be checked without is in test_engine_run.py and test_engine_load.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import Refiner, backends
from port_deploy.sidecar import read_sidecar
from port_deploy.verify import make_problems, verify
from port_deploy.weights import save_model

pytestmark = pytest.mark.cuda

MODEL = random_model("soft", layers=2)
SIZE = (24, 20)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.onnx and m.engine for both inputs, in fp32 and fp16, by the library that runs here."""
    pytest.importorskip("torch")
    from port_deploy.export import ExportOptions, export_model
    from port_deploy.export.engine_options import BuildOptions

    flavour = next((n for n in ("tensorrt", "tensorrt-rtx") if backends.availability(n).available), None)
    if flavour is None:
        pytest.skip(f"no TensorRT that runs here: {backends.availability('tensorrt').detail}")
    place = tmp_path_factory.mktemp("gpu")
    save_model(place / "m.safetensors", MODEL.spec, MODEL.tensors)
    for kind in ("joints", "heatmaps"):
        for precision in ("fp32", "fp16"):
            options: Any = {"input": kind, "precision": precision, "heatmap_size": SIZE, "batch": (1, 8, 32)}
            build = BuildOptions(flavour)
            export_model(
                place / "m.safetensors",
                place / kind / precision,
                ExportOptions(("onnx", "engine"), build=build, **options),
            )
    return place


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_against_the_oracle(folder: Path, kind: Any, precision: str) -> None:
    path = folder / kind / precision / "m.engine"
    assert read_sidecar(path, "engine").verification["artefact_ran"] is True
    backend = Refiner.load(path)._backend
    problems = make_problems(MODEL, kind, SIZE if kind == "heatmaps" else None)
    verify(backend, problems, precision).check(f"{kind} in {precision}")


def poses(count: int) -> tuple[Any, Any]:
    import torch

    joints = torch.from_numpy(RNG.uniform(0, 200, (count, 21, 2)).astype("f4")).cuda()
    return joints, torch.from_numpy(RNG.random((count, 21)).astype("f4")).cuda()


@pytest.mark.parametrize("count", [0, 1, 7, 32, 33, 100])
def test_tensors_on_the_gpu_answer_as_arrays_of_the_host(folder: Path, count: int) -> None:
    refiner = Refiner.load(folder / "joints" / "fp32" / "m.engine")
    joints, confidence = poses(count)
    expected = refiner.refine(joints.cpu().numpy(), confidence.cpu().numpy())
    for _ in range(4):  # queued, recorded, launched
        got = refiner.refine(joints, confidence)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a.cpu().numpy(), b)
    shifted = refiner.refine(joints[1:], confidence[1:])  # not aligned to 256 bytes
    np.testing.assert_allclose(shifted.joints.cpu().numpy(), expected.joints[1:], atol=1e-3)


def test_the_callers_stream_and_graph(folder: Path) -> None:
    import torch

    refiner = Refiner.load(folder / "joints" / "fp32" / "m.engine")
    joints, confidence = poses(16)
    expected = refiner.refine(joints, confidence)
    out = (
        torch.empty_like(joints),
        torch.empty_like(confidence),
        torch.empty((16, 21), dtype=torch.bool, device="cuda"),
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        refiner.refine(joints, confidence, out=out)
    stream.synchronize()
    torch.testing.assert_close(out[0], expected.joints, rtol=0, atol=0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        refiner.refine(joints, confidence, out=out)
    joints.add_(3)
    graph.replay()
    torch.cuda.synchronize()
    moved = refiner.refine(joints, confidence)
    torch.testing.assert_close(out[0], moved.joints, rtol=0, atol=1e-4)


def test_from_many_threads(folder: Path) -> None:
    refiner = Refiner.load(folder / "joints" / "fp32" / "m.engine")
    joints, confidence = RNG.uniform(0, 200, (9, 21, 2)).astype("f4"), RNG.random((9, 21)).astype("f4")
    expected = refiner.refine(joints, confidence)
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(50):
            if not np.array_equal(refiner.refine(joints, confidence).joints, expected.joints, equal_nan=True):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_both_ways_through_an_engine(folder: Path) -> None:
    import torch

    state = backends.availability("native-cuda")
    if not state.available:
        pytest.skip(f"the core has no decode for the GPU here: {state.detail}")
    maps = torch.rand((9, 21, *SIZE), device="cuda")
    boxes = np.tile(np.float32([10, 20, 90, 116]), (9, 1))
    whole, network = (Refiner.load(folder / kind / "fp32" / "m.engine") for kind in ("heatmaps", "joints"))
    first, second = whole(maps, boxes=boxes), network(maps, boxes=boxes)
    torch.testing.assert_close(first.joints, second.joints, rtol=0, atol=1e-2)
    assert torch.equal(first.mask, second.mask)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m.engine whose one layer is the fused kernel, for both inputs, in fp32 and fp16; full TensorRT only."""
    from port_deploy.export import ExportOptions, export_model
    from port_deploy.export.engine_options import BuildOptions
    from port_deploy.export.fused_kernel import layers_folder

    state = backends.availability("tensorrt")
    kernels = state.available and any(layers_folder().glob("port_line_*.ptx"))
    if not kernels:
        why = "the core was built without CUDA" if state.available else f"no full TensorRT here: {state.detail}"
        if "tensorrt" in os.environ.get("PORT_REQUIRE", ""):
            pytest.fail(f"PORT_REQUIRE=tensorrt, and {why}")
        pytest.skip(why)
    place = tmp_path_factory.mktemp("fused")
    save_model(place / "m.safetensors", MODEL.spec, MODEL.tensors)
    for kind in ("joints", "heatmaps"):
        for precision in ("fp32", "fp16"):
            options: Any = {"input": kind, "precision": precision, "heatmap_size": SIZE, "batch": (1, 8, 32)}
            build = BuildOptions("tensorrt", fuse=True, cache=False)
            export_model(
                place / "m.safetensors", place / kind / precision, ExportOptions(("engine",), build=build, **options)
            )
    return place


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_fused_engine_against_the_oracle(fused: Path, kind: Any, precision: str) -> None:
    path = fused / kind / precision / "m.engine"
    side = read_sidecar(path, "engine")
    assert side.verification["artefact_ran"] is True
    assert side.engine is not None
    assert side.engine.fused != "none"
    problems = make_problems(MODEL, kind, SIZE if kind == "heatmaps" else None)
    verify(Refiner.load(path)._backend, problems, precision).check(f"fused, {kind} in {precision}")


@pytest.mark.parametrize("count", [0, 1, 7, 32, 33, 100])
def test_a_fused_engine_answers_as_the_core(fused: Path, count: int) -> None:
    """The same kernel, launched by TensorRT and by the core; in graphs, on streams, in pieces."""
    import torch

    engine = Refiner.load(fused / "joints" / "fp16" / "m.engine")
    core = Refiner.load(fused / "m.safetensors", backend="native-cuda", precision="fp16")
    joints, confidence = poses(count)
    expected = core.refine(joints, confidence)
    for _ in range(4):  # queued, recorded, launched
        got = engine.refine(joints, confidence)
        torch.testing.assert_close(got.joints, expected.joints, rtol=0, atol=0.5, equal_nan=True)
        torch.testing.assert_close(got.confidence, expected.confidence, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got.mask, expected.mask)


def test_a_fused_engine_alone(fused: Path) -> None:
    """An engine that holds its kernel runs in a process that has nothing of ours: no plugin, no package."""
    side = read_sidecar(fused / "joints" / "fp32" / "m.engine", "engine")
    assert side.engine is not None
    if side.engine.fused != "aot":
        pytest.skip(f"no ahead-of-time plugin here: {side.engine.fused_reason}")
    program = (
        "import sys\n"
        "sys.modules['port_deploy'] = None\n"
        "import tensorrt\n"
        f"data = open({str(fused / 'joints' / 'fp32' / 'm.engine')!r}, 'rb').read()\n"
        "engine = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(data)\n"
        "assert engine is not None and engine.create_execution_context() is not None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
