# SPDX-License-Identifier: Apache-2.0
"""INT8 in a detector: where Q/DQ goes and where it does not, what it costs, what the builder makes of it, bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from detector_models import IMAGE, remember_tails, tiny_detector

from port_deploy.backends import onnxruntime_
from port_deploy.cli.export import main
from port_deploy.errors import BackendUnavailableError, ExportError, InputError
from port_deploy.export.quantize import is_quantized, quantize_detector
from port_deploy.sidecar import read_sidecar
from port_deploy.weights import save_model

for library in ("torch", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
onnx = pytest.importorskip("onnx")

RNG = np.random.default_rng(0)
CROPS = RNG.integers(0, 256, (20, *IMAGE, 3), np.uint8)
IMAGES = (CROPS.transpose(0, 3, 1, 2) / 255).astype(np.float32)


def operators(proto: Any) -> list[str]:
    return [n.op_type for n in proto.graph.node]


def test_convolutions_but_the_last_are_quantized(tmp_path: Path) -> None:
    detector = onnx.load(str(tiny_detector(tmp_path / "d.onnx")))
    before = detector.SerializeToString()
    result = quantize_detector(detector, "int8", IMAGES, ("output",))
    assert detector.SerializeToString() == before
    assert not is_quantized(detector)
    makers = {o: n for n in result.graph.node for o in n.output}
    first, last = (n for n in result.graph.node if n.op_type == "Conv")
    assert [makers[i].op_type for i in first.input[:2]] == ["DequantizeLinear"] * 2
    assert first.input[2] not in makers  # the bias
    assert makers[last.input[0]].op_type == "Relu"
    assert last.input[1] not in makers
    weights = next(i for i in result.graph.initializer if i.name == makers[first.input[1]].input[0])
    assert (weights.data_type, list(weights.dims)) == (onnx.TensorProto.INT8, [16, 3, 3, 3])
    a, b = (
        onnxruntime_.run_once(p.SerializeToString(), ["output"], {"input.1": IMAGES})[0] for p in (detector, result)
    )
    assert 0 < np.abs(a - b).max() < 0.1
    assert np.abs(a - b).mean() < 0.01


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    remember_tails(monkeypatch)
    made = random_model("soft", layers=1, head_dim=16)
    save_model(tmp_path / "m.safetensors", made.spec, made.tensors)
    np.savez(tmp_path / "crops.npz", images=CROPS)
    return str(tmp_path / "m.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_decode_and_port_stay_in_floating_point(
    model: str, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    detector = tiny_detector(tmp_path / "d.onnx")
    arguments = [model, "--detector", str(detector), "--detector-joints", "hand21", "-o", str(tmp_path / "out")]
    arguments += ["--quantize", "int8", "--calibration", str(tmp_path / "crops.npz"), "--precision", precision]
    arguments += ["--onnx", "--trt", "--tensorrt", "tensorrt-rtx", "--batch", "1,2,4", "--target", "sm_89"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "INT8 from 16 images of crops.npz; on the other 4, the " in out
    path = tmp_path / "out" / "d_m.onnx"
    merged = onnx.load(str(path))
    quantized = [n for n in merged.graph.node if "QuantizeLinear" in n.op_type or "DequantizeLinear" in n.op_type]
    assert len(quantized) == 3
    assert all(o.startswith("detector/") for n in quantized for o in n.output)
    side = read_sidecar(path, "onnx")
    assert side.detector is not None
    assert side.detector.quantized == "int8"
    assert read_sidecar(tmp_path / "out" / "d_m.engine", "engine").detector == side.detector


def test_a_detector_that_is_quantized_already_is_taken_as_it_is(model: str, tmp_path: Path) -> None:
    detector = tiny_detector(tmp_path / "d.onnx")
    quantized = quantize_detector(onnx.load(str(detector)), "int8", IMAGES, ("output",))
    onnx.save(quantized, str(tmp_path / "q.onnx"))
    arguments = [model, "--detector", str(tmp_path / "q.onnx"), "--detector-joints", "hand21", "--onnx"]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert is_quantized(onnx.load(str(tmp_path / "out" / "q_m.onnx")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int8"], "--quantize finds its ranges on --calibration images: give both"),
        (
            ["--quantize", "int8", "--calibration", "few.npy"],
            "expected at least 10 calibration images in few.npy, got 4",
        ),
        (["--quantize", "int8", "--calibration", "other.npz"], "cannot read crops other.npz"),
        (["--quantize", "int8", "--calibration", "floats.npz"], "expected uint8 crops [B, 64, 48, 3] in floats.npz"),
        (["--quantize", "int8", "--calibration", "none"], "no pictures at none"),
        (["--quantize", "fp8", "--calibration", "crops.npz"], "--quantize fp8 needs NVIDIA ModelOpt: pip install"),
    ],
)
def test_what_cannot_be_calibrated(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    np.save("few.npy", CROPS[:4])
    np.savez("other.npz", pictures=CROPS)
    np.savez("floats.npz", images=IMAGES)
    tiny_detector(tmp_path / "d.onnx")
    assert main([model, "--detector", "d.onnx", "--detector-joints", "hand21", "--onnx", "-o", "out", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_graphs_that_cannot_be_quantized(tmp_path: Path) -> None:
    detector = onnx.load(str(tiny_detector(tmp_path / "d.onnx")))
    done = quantize_detector(detector, "int8", IMAGES, ("output",))
    relu = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["B", 3])],
        [onnx.helper.make_tensor_value_info("y", 1, ["B", 3])],
    )
    old = onnx.ModelProto()
    old.CopyFrom(detector)
    old.opset_import[0].version = 11
    for proto, images, message in (
        (done, IMAGES, "quantized already: leave out --quantize"),
        (onnx.helper.make_model(relu), IMAGES, "nothing to quantize"),
        (old, IMAGES, "expected a detector of opset 13 or later to quantize, got 11"),
        (detector, IMAGES[:7], "expected at least 8 calibration images, got 7"),
        (detector, np.full_like(IMAGES, np.nan), "calibration images of finite values"),
    ):
        with pytest.raises(InputError, match=message):
            quantize_detector(proto, "int8", images, ("output",))
    with pytest.raises(InputError, match="unknown quantization 'int4'"):
        quantize_detector(detector, "int4", IMAGES, ("output",))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="could not be quantized"):
        quantize_detector(detector, "int8", IMAGES[:, :, :1], ("output",))


def test_fp8_is_modelopts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for ModelOpt: what it is asked for, and that its graph is the one that comes back."""
    detector = onnx.load(str(tiny_detector(tmp_path / "d.onnx")))
    stand_in = quantize_detector(detector, "int8", IMAGES, ("output",))
    asked: dict[str, Any] = {}

    def quantize(onnx_path: str, output_path: str, **options: Any) -> None:
        asked.update(options, nodes=len(onnx.load(onnx_path).graph.node))
        onnx.save(stand_in, output_path)

    module = SimpleNamespace(quantize=quantize, __spec__=SimpleNamespace(name="modelopt"))
    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    result = quantize_detector(detector, "fp8", IMAGES, ("output",), keep=("mine",))
    assert result.SerializeToString() == stand_in.SerializeToString()
    assert (asked["quantize_mode"], asked["nodes"]) == ("fp8", len(detector.graph.node))
    assert asked["nodes_to_exclude"][0] == "mine"
    assert len(asked["nodes_to_exclude"]) == 2
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(BackendUnavailableError, match="needs NVIDIA ModelOpt"):
        quantize_detector(detector, "fp8", IMAGES, ("output",))


def test_json_of_a_quantized_export(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = tiny_detector(tmp_path / "d.onnx", names=None)
    arguments = [model, "--detector", str(detector), "--detector-joints", "hand21", "--onnx", "-o", str(tmp_path / "o")]
    assert main([*arguments, "--quantize", "int8", "--calibration", str(tmp_path / "crops.npz"), "--json"]) == 0
    (artefact,) = json.loads(capsys.readouterr().out)["artefacts"]
    assert artefact["verification"]["passed"] is True
    assert "INT8 from 16 images" in artefact["verification"]["note"]


def test_max_px_error_bounds_what_quantization_moves(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [model, "--detector", str(tiny_detector(tmp_path / "d.onnx")), "--detector-joints", "hand21", "--onnx"]
    arguments += ["--quantize", "int8", "--calibration", str(tmp_path / "crops.npz"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--max-px-error", "0.001"]) == 1
    assert "INT8 from 16 images of crops.npz moves joints by up to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
