# SPDX-License-Identifier: Apache-2.0
"""A detector and PORT in one graph: every layout and version, against the two apart; what is written about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from detector_models import IMAGE, MAP, remember_tails, tiny_detector

from port_deploy.cli.export import main
from port_deploy.errors import InputError, VerificationError
from port_deploy.export import DetectorOptions, ExportOptions, export_model
from port_deploy.export.detector import run
from port_deploy.export.detector.joints import check_order
from port_deploy.pose_engine import PoseEngine
from port_deploy.sidecar import Sidecar, read_sidecar
from port_deploy.skeleton import Skeleton
from port_deploy.weights import save_model

for library in ("torch", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
onnx = pytest.importorskip("onnx")

HAND = Skeleton.load("hand21").names
TAIL_OF = run.tail_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = random_model("soft", layers=1, head_dim=8)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, made.spec, made.tensors)
    return str(path)


@pytest.fixture(autouse=True)
def one_export_for_each_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing what follows a detector takes seconds."""
    remember_tails(monkeypatch)


def export(model: str, folder: Path, detector: Path, precision: Any = None, **options: Any) -> Sidecar:
    """Join, verify and read the sidecar; ``joints`` are hand21's unless given."""
    given = DetectorOptions(str(detector), **{"joints": "hand21", **options})
    export_model(model, folder / "out", ExportOptions(("onnx",), precision=precision, detector=given))
    return read_sidecar(folder / "out" / f"{detector.stem}_m.onnx", "onnx")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "images and maps channels last": ({"image_layout": "nhwc", "map_layout": "nhwc"}, {"scale": "udp"}),
    "simcc": ({"kind": "simcc"}, {}),
    "simcc by its mean": ({"kind": "simcc", "opset": 18}, {"score": "mean", "scale": "half-pixel"}),
    "simcc named": ({"kind": "simcc"}, {"outputs": ("simcc_x", "simcc_y"), "score": "mean"}),
    "opset 11": ({"opset": 11}, {"values": "byte"}),
    "opset 21": ({"opset": 21}, {"values": "imagenet"}),
    "uint8 images": ({"dtype": "uint8", "image_layout": "nhwc"}, {}),
    "uint8 added": ({}, {"uint8": True, "values": "imagenet"}),
    "half already": ({"dtype": "float16"}, {"uint8": True}),
    "any image size": ({"size": ("h", "w")}, {"image_size": IMAGE}),
    "chosen output": ({"more_outputs": True}, {"outputs": ("output",)}),
    "external weights": ({"external": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_joined_as_apart(case: str, model: str, tmp_path: Path) -> None:
    made, options = CASES[case]
    side = export(model, tmp_path, tiny_detector(tmp_path / "d.onnx", **made), **options)
    assert side.verification["passed"] is True
    info = side.detector
    assert info is not None
    assert info.precision == ("fp16" if made.get("dtype") == "float16" else "fp32")
    assert side.verification["max_error_px"] <= (1e-3 if info.precision == "fp32" else 0.5)
    assert side.verification["joints"] > (200 if info.precision == "fp32" else 20)
    assert (info.image_size, info.map_size) == (IMAGE, MAP)
    assert info.head == made.get("kind", "heatmaps")
    assert info.image_layout == made.get("image_layout", "nchw")
    assert info.image_type == ("uint8" if options.get("uint8") else made.get("dtype", "float32"))
    assert info.scale == options.get("scale", "corner" if info.head == "simcc" else "half-pixel")


def test_what_is_written(model: str, tmp_path: Path) -> None:
    detector = tiny_detector(tmp_path / "hand net-v1.onnx", names=json.dumps(HAND), more_outputs=True)
    options = DetectorOptions(str(detector), outputs=("output",))
    (done,) = export_model(model, tmp_path / "out", ExportOptions(("onnx",), detector=options))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["hand_net-v1_m.onnx", "hand_net-v1_m.onnx.json"]
    proto = onnx.load(done.path)
    onnx.checker.check_model(proto, full_check=True)
    named = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    assert named == {"image": ["B", 3, *IMAGE], "affine": ["A", 2, 3], "threshold": [1]}
    assert [o.name for o in proto.graph.output] == ["joints", "confidence", "mask"]
    names = {n for node in proto.graph.node for n in (*node.input, *node.output) if n}
    plain = {n for n in names if not n.startswith(("lead/", "detector/", "port/"))}
    assert plain == {"image", "affine", "threshold", "joints", "confidence", "mask"}
    assert not any("coarse" in n for n in names)
    data = json.loads(Path(f"{done.path}.json").read_text())
    assert data["detector"]["sha256"] == __import__("hashlib").sha256(detector.read_bytes()).hexdigest()
    assert data["detector"]["joints"] == list(HAND)
    assert data["inputs"][0] == {"name": "image", "dtype": "float32", "shape": ["B", 3, *IMAGE]}
    assert str(tmp_path).encode() not in done.path.read_bytes()


def test_affine_and_threshold_may_be_left_out(model: str, tmp_path: Path) -> None:
    from port_deploy.backends.onnxruntime_ import open_session

    side = export(model, tmp_path, tiny_detector(tmp_path / "d.onnx"))
    session = open_session((tmp_path / "out" / "d_m.onnx").read_bytes(), "the graph")
    images = np.random.default_rng(0).random((3, 3, *IMAGE), np.float32)
    alone = session.run(None, {"image": images})
    half = np.float32([[[0.5, 0, 7], [0, 0.5, -3]]])
    for affine in (half, np.repeat(half, 3, 0)):
        joints, _, mask = session.run(None, {"image": images, "affine": affine})
        np.testing.assert_array_equal(mask, alone[2])
        np.testing.assert_allclose(joints, alone[0] * 0.5 + np.float32([7, -3]), atol=2e-3)
    assert session.run(None, {"image": images, "threshold": np.float32([0])})[2].sum() == 0
    assert side.spec.threshold == 0.3


def test_joints_that_one_side_lacks(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["tail", *reversed(HAND[:18]), "left_ear"]
    detector = tiny_detector(tmp_path / "d.onnx", joints=20)
    (tmp_path / "names.json").write_text(json.dumps({"names": names}))
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", str(tmp_path / "names.json")]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"not detected, so always rebuilt: {', '.join(HAND[18:])}" in out
    assert "dropped: tail, left_ear" in out
    engine = PoseEngine.load(tmp_path / "out" / "d_m.onnx")
    assert engine.detector.order == (*range(18, 0, -1), -1, -1, -1)
    answer = engine(np.random.default_rng(0).integers(0, 256, (4, *IMAGE, 3), np.uint8), threshold=0.0)
    assert (answer.confidence[:, 18:] == 0).all()
    np.testing.assert_array_equal(answer.mask, [[False] * 18 + [True] * 3] * 4)
    assert np.isfinite(answer.joints).all()


def test_half_precision(model: str, tmp_path: Path) -> None:
    side = export(model, tmp_path, tiny_detector(tmp_path / "d.onnx"), "fp16")
    assert side.precision == "fp16"
    assert 1e-5 < side.verification["max_error_px"] <= 4
    proto = onnx.load(tmp_path / "out" / "d_m.onnx")
    types = {i.name: i.data_type for i in proto.graph.initializer}
    assert types["detector/w1"] == onnx.TensorProto.FLOAT16
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_a_graph_that_disagrees_is_not_left(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = tiny_detector(tmp_path / "d.onnx")
    arguments = [model, "--onnx", "--detector", str(detector), "--detector-joints", "hand21", "-o", str(tmp_path / "o")]
    assert main([*arguments, "--max-px-error", "1e-9"]) == 1
    assert "d_m.onnx in onnxruntime disagrees" in capsys.readouterr().err
    swapped = (1, 0, *range(2, 21))
    for wrong in ({"order": swapped}, {"scale": "udp"}):
        monkeypatch.setattr(run, "tail_of", lambda m, i, p, w=wrong: TAIL_OF(m, replace(i, **w), p))
        with pytest.raises(VerificationError, match="disagrees with the float64 oracle"):
            export(model, tmp_path, detector)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "out").exists()


def test_an_engine_from_the_merged_onnx(model: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    detector = tiny_detector(tmp_path / "d.onnx")
    options = [
        "--detector",
        str(detector),
        "--detector-joints",
        "hand21",
        "--tensorrt",
        "tensorrt-rtx",
        "--batch",
        "1,2,4",
    ]
    assert main([model, "--all", *options, "-o", str(tmp_path / "out")]) == 0
    names = ["d_m.engine", "d_m.engine.json", "d_m.onnx", "d_m.onnx.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    side = read_sidecar(tmp_path / "out" / "d_m.engine", "engine")
    assert side.input == "image"
    assert side.batch == (1, 2, 4)
    assert side.detector is not None
    again = [str(tmp_path / "out" / "d_m.onnx"), "--trt", "--tensorrt", "tensorrt-rtx", "--batch", "1,1,2"]
    assert main([*again, "-o", str(tmp_path / "again")]) == 0
    side = read_sidecar(tmp_path / "again" / "d_m.engine", "engine")
    assert side.detector is not None
    assert side.verification["passed"] is True


def test_photographs(model: str, tmp_path: Path) -> None:
    detector = tiny_detector(tmp_path / "d.onnx")
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        image.fromarray(rng.integers(0, 256, (90, 70, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    np.save(tmp_path / "crops.npy", rng.integers(0, 256, (2, *IMAGE, 3), np.uint8))
    for source, count in (("photos", 3), ("photos/1.png", 1), ("crops.npy", 2)):
        side = export(model, tmp_path, detector, images=str(tmp_path / source))
        assert side.verification["poses"] == 2 * (6 + count)


def test_an_order_that_is_not_the_skeletons() -> None:
    """What it finds and what it cannot: check_order's own words."""
    body = Skeleton.load("mpii16")
    place = {
        "right_ankle": (40, 180), "right_knee": (42, 140), "right_hip": (45, 100), "left_hip": (65, 100),
        "left_knee": (68, 140), "left_ankle": (70, 180), "pelvis": (55, 98), "thorax": (55, 50), "neck": (55, 40),
        "head": (55, 15), "right_wrist": (20, 105), "right_elbow": (28, 78), "right_shoulder": (38, 52),
        "left_shoulder": (72, 52), "left_elbow": (82, 78), "left_wrist": (90, 105),
    }  # fmt: skip
    pose = np.float64([place[n] for n in body.names])[None]
    sure = np.ones((1, 16))
    check_order(body, pose, sure)
    check_order(body, pose[:, ::-1] * 0, sure * 0)  # nothing is sure: nothing is said
    with pytest.raises(InputError, match="do not look like skeleton 'mpii16'"):
        check_order(body, np.roll(pose, 1, 1), sure)
    with pytest.raises(InputError, match="not its channel order"):
        check_order(body, np.random.default_rng(0).permutation(pose, axis=1), sure)
