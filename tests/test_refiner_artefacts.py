# SPDX-License-Identifier: Apache-2.0
"""`Refiner` around exported artefacts: the same calls, the same answers as the native core from every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import random_model

from port_deploy import InputError, Refined, Refiner, backends
from port_deploy.weights import save_model

MODEL = random_model("soft", "hand21", layers=1, head_dim=8, width=16, heads=2)
RNG = np.random.default_rng(0)
JOINTS = RNG.uniform(0, 200, (5, 21, 2)).astype("f4")
CONFIDENCE = RNG.random((5, 21)).astype("f4")
MAPS = RNG.random((5, 21, 24, 20)).astype("f4")
BOXES = np.array([[0, 0, 40, 48], [10, 20, 110, 140], [5, 5, 45, 53], [1, 2, 3, 4], [0, 0, 20, 24]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as ``.onnx`` and ``.ts``, of both inputs."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from port_deploy.export import ExportOptions, export_model

    place = tmp_path_factory.mktemp("artefacts")
    save_model(place / "small.safetensors", MODEL.spec, MODEL.tensors)
    export_model(place / "small.safetensors", place / "heatmaps", ExportOptions(("onnx", "ts"), input="heatmaps"))
    export_model(place / "small.safetensors", place / "joints", ExportOptions(("onnx", "ts"), input="joints"))
    return place


def load(folder: Path, kind: str, backend: str) -> Refiner:
    state = backends.availability(backend)
    if not state.available:
        pytest.skip(f"{backend}: {state.detail}")
    (path,) = (folder / kind).glob(f"*{backends.entry(backend).suffix}")
    return Refiner.load(path, backend=backend, threads=1)


def same(got: Refined, expected: Refined) -> None:
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_array_equal(got.confidence, expected.confidence)
    np.testing.assert_allclose(got.joints, expected.joints, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torchscript"])
def test_both_kinds_answer_as_the_native_core(folder: Path, backend: str) -> None:
    native = Refiner.load(MODEL, threads=1)
    whole, network = load(folder, "heatmaps", backend), load(folder, "joints", backend)
    for threshold in (None, 0.7):
        expected = native(MAPS, boxes=BOXES, threshold=threshold)
        same(whole(MAPS, boxes=BOXES, threshold=threshold), expected)
        same(network(MAPS, boxes=BOXES, threshold=threshold), expected)  # the native decode stands in front
        got, wanted = (r.refine(JOINTS, CONFIDENCE, threshold=threshold) for r in (network, native))
        same(got, wanted)
        assert got.joints[~got.mask].tobytes() == JOINTS[~got.mask].tobytes()
    assert whole(MAPS[:0]).joints.shape == network.refine(JOINTS[:0], CONFIDENCE[:0]).joints.shape == (0, 21, 2)
    same(whole(MAPS.astype("f2")), native(MAPS.astype("f2")))
    same(whole(MAPS[::-1, :, ::-1]), native(MAPS[::-1, :, ::-1]))
    out = Refined(*(np.empty_like(a) for a in got))
    assert network.refine(JOINTS, CONFIDENCE, out=out) is out
    same(out, network.refine(JOINTS, CONFIDENCE))


def test_auto_picks_the_runtime_by_the_suffix(folder: Path) -> None:
    assert Refiner.load(next((folder / "heatmaps").glob("*.onnx"))).backend.name == "onnxruntime"
    assert Refiner.load(next((folder / "heatmaps").glob("*.ts"))).backend.name == "torchscript"


def test_options_reach_the_runtime_and_others_are_refused(folder: Path) -> None:
    path = next((folder / "joints").glob("*.onnx"))
    assert "CPU" in Refiner.load(path, providers=["CPUExecutionProvider"]).backend.detail
    with pytest.raises(InputError, match="backend onnxruntime takes no option isa"):
        Refiner.load(path, isa="avx2")
    with pytest.raises(InputError, match="takes heatmaps: call refiner"):
        load(folder, "heatmaps", "onnxruntime").refine(JOINTS, CONFIDENCE)
