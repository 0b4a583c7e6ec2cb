# SPDX-License-Identifier: Apache-2.0
"""Every way in which a detector does not fit: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from detector_models import IMAGE, tiny_detector

from port_deploy.cli.export import main
from port_deploy.skeleton import Skeleton
from port_deploy.weights import save_model

for library in ("torch", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
onnx = pytest.importorskip("onnx")

HAND = Skeleton.load("hand21").names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = random_model("soft", layers=1, head_dim=8)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, made.spec, made.tensors)
    return str(path)


def node(operator: str, domain: str = "") -> Any:
    return onnx.helper.make_node(operator, ["feature"], ["feature2"], name="n7", domain=domain)


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no heatmaps": ({"kind": "boxes"}, ["--detector-joints", "hand21"], "has no heatmaps: expected an output"),
    "no names": ({}, [], "does not name its joints, and output [B, 21, 16, 12] could be in any order"),
    "wrong count": ({}, ["--detector-joints", "coco17"], "for its 17 joint names, got output [B, 21, 16, 12]"),
    "wrong count of simcc": ({"kind": "simcc"}, ["--detector-joints", "coco17"], "expected SimCC outputs [B, 17, W]"),
    "foreign joints": (
        {"joints": 3},
        ["--detector-joints", "nose,tail,whisker"],
        "none of the joints nose, tail, whisker… belongs to skeleton 'hand21'",
    ),
    "a joint twice": (
        {"joints": 3},
        ["--detector-joints", "wrist,thumb1,thumb_cmc"],
        "'thumb1' and 'thumb_cmc' mean the same joint",
    ),
    "too few joints": (
        {"joints": 3},
        ["--detector-joints", "wrist,thumb1,thumb2"],
        "has 3 of the 21 joints of skeleton 'hand21'",
    ),
    "names that contradict": (
        {"names": json.dumps(HAND)},
        ["--detector-joints", ",".join(HAND[::-1])],
        "own metadata names its joints wrist, thumb1, thumb2, thumb3…",
    ),
    "no such names": ({}, ["--detector-joints", "hand"], "expected joint names as one of coco17, h36m17"),
    "no such file of names": ({}, ["--detector-joints", "none.json"], "cannot read joint names none.json"),
    "swapped layout": (
        {},
        ["--detector-joints", "hand21", "--detector-layout", "nhwc"],
        "expected heatmaps [B, H, W, 21] of detector d for its 21 joint names, got output [B, 21, 16, 12]",
    ),
    "ambiguous output": (
        {"more_outputs": True},
        ["--detector-joints", "hand21"],
        "has several heatmap outputs (output [B, 21, 16, 12], coarse [B, 21, 16, 12]",
    ),
    "no such output": (
        {},
        ["--detector-joints", "hand21", "--detector-output", "heat"],
        "has no output heat: it has output [B, 21, 16, 12]",
    ),
    "swapped simcc": (
        {"kind": "simcc"},
        ["--detector-joints", "hand21", "--detector-output", "simcc_y,simcc_x"],
        "SimCC vectors of 16 (x) and 12 (y) bins do not fit images of 64 x 48 (H x W): swap",
    ),
    "fixed batch": (
        {"batch": 1},
        ["--detector-joints", "hand21"],
        "takes batches of exactly 1, and a batch must be free",
    ),
    "fixed batch inside": ({"inner_batch": 1}, ["--detector-joints", "hand21"], "a fixed batch is inside it"),
    "any size": ({"size": ("h", "w")}, ["--detector-joints", "hand21"], "choose one with --image-size H,W"),
    "another size": (
        {},
        ["--detector-joints", "hand21", "--image-size", "128,96"],
        "takes images ['B', 3, 64, 48], asked for --image-size (128, 96)",
    ),
    "another opset": ({"opset": 6}, ["--detector-joints", "hand21"], "has ONNX opset 6, and onnx"),
    "no photographs": ({}, ["--detector-joints", "hand21", "--verify-images", "nowhere"], "no pictures at nowhere"),
}


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run port-export, which must end with 2, one line, and nothing written."""
    before = sorted(folder.rglob("*"))
    assert main([*arguments, "-o", str(folder / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert sorted(folder.rglob("*")) == before
    return captured.err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, options, message = MISTAKES[mistake]
    detector = tiny_detector(tmp_path / "d.onnx", **made)
    error = refused([model, "--onnx", "--detector", str(detector), *options], tmp_path, capsys)
    assert message in error


@pytest.mark.parametrize(
    ("operator", "domain", "message"),
    [
        ("Attend", "mmdeploy", "unknown operator 'Attend' of domain 'mmdeploy' (node 'n7')"),
        ("Sigmoidd", "", "unknown operator 'Sigmoidd' (node 'n7')"),
        ("FusedNothing", "com.microsoft", "does not take detector d"),
    ],
)
def test_unknown_operators(
    operator: str, domain: str, message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = tiny_detector(tmp_path / "d.onnx", node=node(operator, domain))
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", "hand21"]
    assert message in refused(arguments, tmp_path, capsys)


@pytest.mark.parametrize(
    "data",
    [b"", b"junk that is no protobuf", b"\xff" * 64, b"PK\x03\x04", None],
    ids=["empty", "text", "ff", "zip", "cut"],
)
def test_a_corrupt_file(data: bytes | None, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = tiny_detector(tmp_path / "d.onnx")
    detector.write_bytes(detector.read_bytes()[:-900] if data is None else data)
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", "hand21"]
    assert "d is not a readable ONNX file" in refused(arguments, tmp_path, capsys)


def test_external_weights_that_are_not_there(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = tiny_detector(tmp_path / "d.onnx", external=True)
    (tmp_path / "weights.bin").unlink()
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", "hand21"]
    assert "lie in a file of their own that cannot be read" in refused(arguments, tmp_path, capsys)


def test_maps_that_are_swapped(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = tiny_detector(tmp_path / "d.onnx")
    proto = onnx.load(detector)
    last = proto.graph.node[-1]
    last.op_type = "Transpose"
    last.attribute.append(onnx.helper.make_attribute("perm", [0, 1, 3, 2]))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(proto, detector)
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", "hand21"]
    assert "heatmaps of 12 x 16 (H x W) do not lie in images of 64 x 48" in refused(arguments, tmp_path, capsys)


def test_images_that_are_grey_or_several(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [model, "--onnx", "--detector", str(tmp_path / "d.onnx"), "--detector-joints", "hand21"]
    proto = onnx.load(tiny_detector(tmp_path / "d.onnx"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("centre", 1, ["B", 2]))
    onnx.save(proto, tmp_path / "d.onnx")
    assert "to take one image, it has inputs input.1, centre" in refused(arguments, tmp_path, capsys)
    del proto.graph.input[1]
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(proto, tmp_path / "d.onnx")
    assert "expected images [B, 3, H, W] or [B, H, W, 3]" in refused(arguments, tmp_path, capsys)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(proto, tmp_path / "d.onnx")
    assert "expected images of float32, float16 or uint8" in refused(arguments, tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnx", "--detector-joints", "hand21"], "--detector-joints says something of a detector: add --detector"),
        (["--onnx", "--image-uint8"], "--image-uint8 says something of a detector"),
        (["--torchscript", "--detector", "d.onnx"], "joined in ONNX: use --onnx, --trt or both"),
        (["--onnx", "--detector", "d.onnx", "--input", "joints"], "takes images: leave out --input"),
        (["--onnx", "--detector", "none.onnx"], "no detector 'none.onnx'"),
        (["--onnx", "--detector", "d.onnx", "--checkpoint", "d.pth"], "an .onnx holds its weights already"),
        (["--onnx", "--detector", "d.onnx", "--image-size", "4,4"], "expected an image size H,W from 8"),
        (["--onnx", "--detector", "d.onnx", "--detector-output", "a,b,c"], "expected one heatmap output or SimCC's"),
    ],
)
def test_options(
    options: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused([model, *options], tmp_path, capsys)


def test_a_detector_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = tiny_detector(tmp_path / "d.onnx")
    arguments = [str(detector), "--onnx", "--detector", str(detector)]
    assert "a detector is joined to a model" in refused(arguments, tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [("text.png", "cannot read picture"), ("small.npy", f"expected uint8 crops [B, {IMAGE[0]}, {IMAGE[1]}, 3]")],
)
def test_pictures(name: str, message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL")
    detector = tiny_detector(tmp_path / "d.onnx")
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "small.npy", np.zeros((2, 32, 32, 3), np.uint8))
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", "hand21"]
    assert message in refused([*arguments, "--verify-images", str(tmp_path / name)], tmp_path, capsys)
