# SPDX-License-Identifier: Apache-2.0
"""Standard deviations through every backend and export, against the float64 oracle; `Refined.std` as callers see it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import Refined, Refiner
from port_deploy.backends import native
from port_deploy.errors import InputError
from port_deploy.verify import STD_TOLERANCE, Problem, make_problems, verify
from port_deploy.weights import Model, model_from_bytes, model_to_bytes, save_model

torch = pytest.importorskip("torch", reason="the oracle is PyTorch in float64")

from port_deploy.backends import torch_  # noqa: E402

SMALL = {"layers": 2, "head_dim": 16, "variance": True, "std_scale": 1.3}
INFO = native.build_info()


@cache
def model(kind: str = "soft", skeleton: str = "hand21", **changes: Any) -> Model:
    return random_model(kind, skeleton, **{**SMALL, **changes})


@cache
def problems(entry: str, **changes: Any) -> tuple[Problem, ...]:
    return make_problems(model(**changes), entry)


def poses(batch: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    joints = rng.uniform(0, 256, (batch, 21, 2)).astype(np.float32)
    confidence = rng.uniform(0.31, 1, (batch, 21)).astype(np.float32)
    confidence[rng.random((batch, 21)) < 0.3] = 0.1
    return joints, confidence


def check(backend: Any, given: tuple[Problem, ...], precision: str = "fp32") -> None:
    found = verify(backend, given, precision)
    found.check(backend.name)
    assert found.max_std_error is not None, "nothing was compared"
    assert found.std_tolerance == STD_TOLERANCE[precision]


@pytest.mark.parametrize("isa", INFO["available_isas"])
@pytest.mark.parametrize("frame", ["visible", "paper"])
@pytest.mark.parametrize("kind", ["soft", "paper"])
def test_the_core(kind: str, frame: str, isa: str) -> None:
    check(native.load(model(kind, frame=frame), isa=isa), problems("joints", kind=kind, frame=frame))


@pytest.mark.parametrize("isa", INFO["available_isas"])
def test_the_core_from_heatmaps(isa: str) -> None:
    check(native.load(model(refine="all"), isa=isa), problems("heatmaps", refine="all"))


@pytest.mark.skipif(not INFO["bf16"], reason="this processor has no AVX512_BF16")
def test_the_core_in_bf16() -> None:
    check(native.load(model(), precision="bf16"), problems("joints"), "bf16")


def test_pytorch() -> None:
    check(torch_.load(model()), problems("joints"))
    check(torch_.load(model()), problems("heatmaps"))


def test_a_wrong_std_is_found_out() -> None:
    class Wrong(torch_.TorchBackend):
        fault = 1.01

        def refine(self, joints: Any, confidence: Any, threshold: float, out: Any) -> None:
            super().refine(joints, confidence, threshold, out)
            out.std *= self.fault

    assert not verify(Wrong(model()), problems("joints"), "fp32").passed
    Wrong.fault = np.nan
    assert verify(Wrong(model()), problems("joints"), "fp32").max_std_error == np.inf


def test_the_core_reads_what_python_reads() -> None:
    card = native.core().Refiner(model().data, "m").card
    assert (card["variance"], card["std_scale"]) == (True, np.float32(1.3))
    plain = native.core().Refiner(random_model(**{k: SMALL[k] for k in ("layers", "head_dim")}).data, "m").card
    assert (plain["variance"], plain["std_scale"]) == (False, 1.0)


@pytest.mark.parametrize("backend", ["native-cpu", "torch"])
def test_refined_has_it(backend: str) -> None:
    joints, confidence = poses()
    refiner = Refiner.load(model(), backend=backend, device="cpu")
    out = refiner.refine(joints, confidence)
    assert out.std.shape == (7, 21)
    assert out.std.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(out.std), out.mask)
    assert len(out) == 3, "a tuple of three, as of models without it"
    assert "std=" in repr(out)
    tensors = refiner.refine(torch.from_numpy(joints), torch.from_numpy(confidence))
    assert isinstance(tensors.std, torch.Tensor)
    np.testing.assert_array_equal(tensors.std.numpy(), out.std)
    heatmaps = np.random.default_rng(0).random((3, 21, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(
        refiner(heatmaps, boxes=np.tile([0, 0, 160, 160], (3, 1))).std, refiner(heatmaps, affine=np.eye(2, 3) * 10).std
    )
    assert refiner.refine(joints[:0], confidence[:0]).std.shape == (0, 21)


def test_out_with_and_without_it() -> None:
    joints, confidence = poses()
    refiner = Refiner.load(model(), backend="native-cpu")
    want = refiner.refine(joints, confidence)
    given = Refined(*(np.empty_like(a) for a in (*want, want.std)))
    assert refiner.refine(joints, confidence, out=given) is given
    np.testing.assert_array_equal(given.std, want.std)
    four = tuple(np.empty_like(a) for a in (*want, want.std))
    assert refiner.refine(joints, confidence, out=four).std is four[3]
    three = refiner.refine(joints, confidence, out=four[:3])
    assert three.std is None
    np.testing.assert_array_equal(three.joints, want.joints)
    with pytest.raises(InputError, match=r"out\.std"):
        refiner.refine(joints, confidence, out=(*four[:3], four[3][:2]))
    with pytest.raises(InputError, match="overlap"):
        refiner.refine(joints, confidence, out=(*four[:3], four[1]))
    with pytest.raises(InputError, match="overlap"):
        refiner.refine(joints, confidence, out=(*four[:3], confidence))


def test_models_without_a_variance_have_none() -> None:
    joints, confidence = poses()
    refiner = Refiner.load(random_model(layers=1, head_dim=8), backend="native-cpu")
    out = refiner.refine(joints, confidence)
    assert out.std is None
    assert "std" not in repr(out)
    with pytest.raises(InputError, match="no variance"):
        refiner.refine(joints, confidence, out=(*out, np.empty((7, 21), np.float32)))


def test_the_joints_are_those_of_the_model_without() -> None:
    spec = replace(model().spec, config=replace(model().spec.config, variance=False))
    tensors = {k: v[:2] if k.startswith("head.out") else v for k, v in model().tensors.items()}
    plain = model_from_bytes(model_to_bytes(spec, tensors), "plain")
    joints, confidence = poses(64)
    for isa in INFO["available_isas"]:
        one = Refiner.load(plain, backend="native-cpu", isa=isa).refine(joints, confidence)
        other = Refiner.load(model(), backend="native-cpu", isa=isa).refine(joints, confidence)
        np.testing.assert_array_equal(one.joints, other.joints)
        np.testing.assert_array_equal(one.mask, other.mask)


KINDS = ("joints", "heatmaps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    from port_deploy.export import ExportOptions, export_model

    place = tmp_path_factory.mktemp("exports")
    save_model(place / "m.safetensors", model().spec, model().tensors)
    for kind in KINDS:
        options = ExportOptions(("onnx", "ts"), input=kind, heatmap_size=(32, 24))  # type: ignore[arg-type]
        export_model(place / "m.safetensors", place / kind, options)
    return place


@pytest.mark.parametrize("runtime", ["onnxruntime", "torchscript", "openvino", "onnx-reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_exports(folder: Path, kind: str, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    from port_deploy.backends import onnxruntime_, openvino_, torchscript_
    from port_deploy.export.reference import ReferenceBackend
    from port_deploy.sidecar import read_sidecar

    loaders: dict[str, tuple[str, Any]] = {
        "onnxruntime": ("onnx", onnxruntime_.load),
        "torchscript": ("ts", torchscript_.load),
        "openvino": ("onnx", openvino_.load),
        "onnx-reference": ("onnx", ReferenceBackend),
    }
    suffix, load = loaders[runtime]
    backend = load(folder / kind / f"m.{suffix}")
    size = (32, 24) if kind == "heatmaps" else None
    check(backend, make_problems(model(), kind, size))
    sidecar = read_sidecar(folder / kind / f"m.{suffix}", suffix)  # type: ignore[arg-type]
    assert sidecar.to_json()["outputs"][3] == {"name": "std", "dtype": "float32", "shape": ["B", 21]}
    assert sidecar.verification["max_std_error"] <= STD_TOLERANCE["fp32"]


def test_an_exported_graph_answers_through_refiner(folder: Path) -> None:
    joints, confidence = poses()
    want = Refiner.load(model(), backend="native-cpu").refine(joints, confidence)
    refiner = Refiner.load(folder / "joints" / "m.onnx", device="cpu")
    np.testing.assert_allclose(refiner.refine(joints, confidence).std, want.std, rtol=1e-3)
    three = refiner.refine(joints, confidence, out=tuple(np.empty_like(a) for a in want))
    assert three.std is None
    np.testing.assert_allclose(three.joints, want.joints, atol=1e-2)


def test_the_golden_answers_hold_it(folder: Path) -> None:
    from port_deploy.export.compare import stored_problems
    from port_deploy.sidecar import read_sidecar

    sidecar = read_sidecar(folder / "joints" / "m.onnx", "onnx")
    stored = stored_problems(sidecar, "m.onnx")
    assert all(isinstance(p, Problem) and p.std is not None for p in stored)
    check(native.load(model()), stored)  # type: ignore[arg-type]


def test_triton_lists_it(folder: Path, tmp_path: Path) -> None:
    from port_deploy.export.triton_config import TritonOptions, make_config
    from port_deploy.sidecar import read_sidecar

    side = read_sidecar(folder / "joints" / "m.onnx", "onnx")
    config = make_config("m", side, "onnxruntime", (1, 8, 16), None, TritonOptions())
    assert [o["name"] for o in config["output"]] == ["joints_out", "confidence_out", "mask", "std"]
    assert config["output"][3]["dims"] == [21]


@pytest.mark.parametrize("head", ["heatmaps", "simcc"])
def test_behind_a_detector(folder: Path, tmp_path: Path, head: str) -> None:
    from detector_models import tiny_detector

    from port_deploy.export import DetectorOptions, ExportOptions, export_model
    from port_deploy.pose_engine import PoseEngine

    detector = tmp_path / "d.onnx"
    tiny_detector(detector, **({} if head == "heatmaps" else {"kind": "simcc"}))
    given = DetectorOptions(str(detector), joints="hand21")
    export_model(folder / "m.safetensors", tmp_path / "out", ExportOptions(("onnx",), detector=given))
    side = json.loads((tmp_path / "out" / "d_m.onnx.json").read_text())
    assert [o["name"] for o in side["outputs"]] == ["joints", "confidence", "mask", "std"]
    assert side["verification"]["max_std_error"] <= side["verification"]["std_tolerance"]
    engine = PoseEngine.load(tmp_path / "out" / "d_m.onnx", device="cpu")
    height, width = engine.detector.image_size
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    out = engine(images, threshold=0.9)
    np.testing.assert_array_equal(np.isfinite(out.std), out.mask)
