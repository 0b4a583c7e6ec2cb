# SPDX-License-Identifier: Apache-2.0
"""The registry, the choice of a backend and its reason, and the `torch` backend against the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import BackendUnavailableError, InputError, Refiner, backends
from port_deploy.backends import native, native_cuda, select
from port_deploy.backends.base import Availability, HostBuffers
from port_deploy.weights import save_model

MODEL = random_model("soft", "hand21", layers=1, head_dim=16)


def test_every_backend_answers_whether_it_can_run() -> None:
    for name in backends.names():
        state = backends.availability(name)
        assert state.detail
        assert "\n" not in state.detail
        assert state.available or state.remedy


def test_every_backend_has_one_entry_and_a_module() -> None:
    assert len(set(backends.names())) == len(backends.ENTRIES)
    for entry in backends.ENTRIES:
        module = backends.module_of(entry)
        assert callable(module.load)
        assert callable(module.availability)
        assert (entry.flag == "") == (entry.suffix == backends.MODEL_SUFFIX)


def test_auto_takes_the_native_core_and_says_why() -> None:
    refiner = Refiner.load(MODEL)
    assert refiner.backend.name == "native-cpu"
    assert refiner.backend.reason.startswith("chosen by auto (no native-cuda, ")
    assert Refiner.load(MODEL, backend="native-cpu").backend.reason == "asked for"
    assert Refiner.load(MODEL, device="cpu").backend.reason == "chosen by auto (the best for this file)"


def test_auto_never_falls_back_to_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_core", None)
    monkeypatch.setattr(native, "_why_not", "it was taken away")
    with pytest.raises(BackendUnavailableError, match=r"no native-cuda or native-cpu, .*taken away: pip install \."):
        Refiner.load(MODEL)
    with pytest.raises(BackendUnavailableError, match=r"native core is not built .*pip install \."):
        native.build_info()


def test_cuda_where_there_is_none_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Availability(False, "no GPU answers", "nvidia-smi says why")
    monkeypatch.setattr(native_cuda, "availability", lambda: lost)
    with pytest.raises(BackendUnavailableError, match=r"'cuda' here: no native-cuda, no GPU answers: nvidia-smi"):
        Refiner.load(MODEL, device="cuda")
    with pytest.raises(BackendUnavailableError, match=r"native-cuda cannot run here \(no GPU answers\): nvidia"):
        Refiner.load(MODEL, backend="native-cuda")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tensorflow"}, r"unknown backend 'tensorflow': use auto or one of native-cuda, native-cpu, torch"),
        ({"device": "tpu"}, "unknown device 'tpu': use auto, cpu, cuda"),
        ({"device": None}, "unknown device None"),
        ({"backend": "native-cpu", "device": "cuda"}, "backend native-cpu runs on cpu, got device 'cuda'"),
        ({"backend": "onnxruntime"}, r"runs \.onnx files, got 'random': port-export random -o \. --onnx, then load"),
        ({"isa": "mmx"}, "mmx"),
        ({"providers": []}, "backend native-cpu takes no option providers: leave it out"),
        ({"precision": "fp8"}, "fp8"),
        ({"threads": -1}, "expected threads from 0"),
        ({"threads": 257}, "expected threads from 0"),
        ({"threads": 1.5}, "expected threads from 0"),
        ({"threads": True}, "expected threads from 0"),
        ({"min_visible": 1}, "min_visible"),
        ({"max_masked": -1}, "max_masked"),
        ({"refine": "some"}, "refine"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
    ],
)
def test_unusable_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Refiner.load(MODEL, **arguments)


def test_files_that_no_backend_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model 'nobody': use one of .*file of \.safetensors, \.ts"):
        Refiner.load("nobody")
    with pytest.raises(InputError, match=r"no model 'x\.pt'"):
        Refiner.load("x.pt")
    with pytest.raises(InputError, match="cannot read model"):
        Refiner.load(tmp_path / "absent.safetensors")
    for suffix, flag in ((".onnx", "--onnx"), (".ts", "--torchscript"), (".pt2", "--pt2"), (".engine", "--trt")):
        for backend in ("auto", "native-cpu", "tensorrt"):  # whatever of them is here
            with pytest.raises(InputError, match=rf"no file .*absent\{suffix}.*port-export MODEL -o DIR {flag} writes"):
                Refiner.load(tmp_path / f"absent{suffix}", backend=backend)
    pytest.importorskip("onnxruntime")
    (tmp_path / "some.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match="min_visible of an artefact are fixed when it is exported"):
        Refiner.load(tmp_path / "some.onnx", min_visible=3)
    with pytest.raises(InputError, match="precision of an artefact"):
        Refiner.load(tmp_path / "some.onnx", precision="bf16")
    with pytest.raises(InputError, match=r"backend torch runs \.safetensors files.*onnxruntime or openvino"):
        Refiner.load(tmp_path / "some.onnx", backend="torch")


class Recorded:
    """A backend that takes joints only, as an engine built with ``--input joints`` does."""

    name, detail, spec = "recorded", "for this test", MODEL.spec
    takes_joints, takes_heatmaps = True, False

    def refine(self, joints: np.ndarray, confidence: np.ndarray, threshold: float, out: HostBuffers) -> None:
        native.load(MODEL, threads=1).refine(joints.copy(), confidence.copy(), threshold, out)


def test_decode_goes_in_front_of_a_backend_that_takes_joints() -> None:
    maps = np.random.default_rng(0).random((3, 21, 16, 12)).astype(np.float32)
    boxes = np.array([[0, 0, 50, 40], [3, 4, 9, 99], [1, 1, 2, 2]])
    refiner = Refiner(Recorded(), select.Choice("recorded", "cpu", "for this test", "asked for"))
    got, expected = refiner(maps, boxes, threshold=0.99), Refiner.load(MODEL)(maps, boxes, threshold=0.99)
    np.testing.assert_array_equal(got.mask, expected.mask)
    np.testing.assert_array_equal(got.confidence, expected.confidence)
    np.testing.assert_allclose(got.joints, expected.joints, atol=1e-3)


def test_a_backend_that_takes_heatmaps_only_says_so() -> None:
    class Blind(Recorded):
        takes_joints, takes_heatmaps = False, True

    refiner = Refiner(Blind(), select.Choice("blind", "cpu", "", ""))
    with pytest.raises(InputError, match="takes heatmaps: call refiner"):
        refiner.refine(np.zeros((1, 21, 2), "f4"), np.zeros((1, 21), "f4"))


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
@pytest.mark.parametrize("source", ["soft", "paper"])
@pytest.mark.parametrize("frame", ["visible", "paper"])
def test_torch_in_float32_keeps_the_tolerance(kind: str, source: str, frame: str) -> None:
    pytest.importorskip("torch")
    from port_deploy.backends import torch_
    from port_deploy.verify import make_problems, verify

    model = random_model(source, "mpii16", frame=frame)
    # Decoded joints are float32 at 1,500 px, and the paper frame turns by the direction of one bone: where it is a
    # few pixels long, the rounding of its two ends moves the far end of the body by more.
    bound = 1e-2 if frame == "paper" else None
    verify(torch_.load(model), make_problems(model, kind), "fp32", bound).check("torch")


def test_torch_in_bf16_keeps_its_tolerance() -> None:
    pytest.importorskip("torch")
    from port_deploy.backends import torch_
    from port_deploy.verify import make_problems, verify

    verify(torch_.load(MODEL, precision="bf16"), make_problems(MODEL, "joints"), "bf16").check("torch in bf16")
    with pytest.raises(InputError, match="unknown precision 'int8'"):
        torch_.load(MODEL, precision="int8")


def test_torch_and_native_serve_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "one.safetensors"
    save_model(path, replace(MODEL.spec, name="one"), MODEL.tensors)
    rng = np.random.default_rng(0)
    joints, confidence = rng.uniform(0, 256, (5, 21, 2)).astype("f4"), rng.random((5, 21)).astype("f4")
    one = Refiner.load(path, backend="torch").refine(joints, confidence)
    two = Refiner.load(path, backend="native-cpu").refine(joints, confidence)
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_allclose(one.joints, two.joints, atol=1e-3)
