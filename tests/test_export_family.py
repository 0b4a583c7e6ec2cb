# SPDX-License-Identifier: Apache-2.0
"""A named detector's checkpoint to one graph and one engine, in one command; against the detector in PyTorch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import random_model

from port_deploy.cli.export import main
from port_deploy.pose_engine import PoseEngine
from port_deploy.sidecar import read_sidecar
from port_deploy.verify_images import random_images
from port_deploy.weights import save_model

for library in ("torch", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)
import torch  # noqa: E402
from mmpose_reference import TINY, Reference, blank  # noqa: E402

from port_deploy.nn.detectors.family import FAMILY  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = random_model("soft", layers=1, head_dim=8)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, made.spec, made.tensors)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small network of the family, 64 x 64 crops, whose maps are as strong as a trained one's."""
    monkeypatch.setitem(FAMILY, "tiny", TINY)
    torch.manual_seed(0)
    detector = blank("tiny", (64, 64))
    images = torch.from_numpy(random_images((64, 64), 16, 3))
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # running statistics become those of what follows
        detector.train()(images)
        detector.eval()
        detector.head.final_layer.weight.mul_(0.02 / detector(images)[0].std((2, 3)).mean())
    torch.save({"meta": {}, "state_dict": detector.state_dict()}, tmp_path / "c.pth")
    return tmp_path / "c.pth"


def test_checkpoint_to_graph_and_engine(
    model: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    detector = ["--detector", "tiny", "--checkpoint", str(checkpoint), "--image-size", "64,64"]
    engine = ["--tensorrt", "tensorrt-rtx", "--target", "sm_89", "--batch", "1,2,4"]
    assert main([model, "--all", *detector, *engine, "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    found = re.search(r"against the detector in PyTorch max (\S+) px", out)
    assert found is not None
    assert float(found[1]) <= 2e-3  # of weights that are random everywhere; test_real_networks has 1e-3
    names = ["tiny_m.engine", "tiny_m.engine.json", "tiny_m.onnx", "tiny_m.onnx.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    info = read_sidecar(tmp_path / "out" / "tiny_m.engine", "engine").detector
    assert info is not None
    assert (info.image_type, info.image_layout, info.image_size) == ("uint8", "nhwc", (64, 64))
    assert (info.scale, info.values, info.order) == ("corner", "byte", tuple(range(21)))
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    assert PoseEngine.load(tmp_path / "out" / "tiny_m.onnx")(crops).joints.shape == (3, 21, 2)


def test_half_precision_is_the_networks_own(model: str, checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    detector = [
        "--detector",
        "tiny",
        "--checkpoint",
        str(checkpoint),
        "--image-size",
        "64,64",
        "--detector-scale",
        "udp",
    ]
    assert main([model, "--onnx", "--precision", "fp16", *detector, "-o", str(tmp_path / "out")]) == 0
    side = read_sidecar(tmp_path / "out" / "tiny_m.onnx", "onnx")
    assert side.detector is not None
    assert (side.detector.precision, side.detector.scale) == ("fp16", "udp")
    weights = onnx.load(tmp_path / "out" / "tiny_m.onnx").graph.initializer
    big = {i.data_type for i in weights if i.name.startswith("detector/") and len(i.dims) == 4 and i.dims[0] > 1}
    assert big == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "tiny"], "detector tiny needs its weights: add --checkpoint FILE.pth"),
        (["--detector", "hrnet"], "no detector 'hrnet': expected an .onnx file or one of hrnet_w32"),
        (["--detector", "tiny", "--checkpoint", "none.pth"], "none.pth"),
        (["--detector", "tiny", "--checkpoint", "none.pth", "--image-values", "unit"], "--image-values is known of"),
        (["--detector", "tiny", "--checkpoint", "none.pth", "--detector-scale", "half-pixel"], "half-pixel is neither"),
        (["--detector", "tiny", "--checkpoint", "c.pth", "--detector-joints", "coco17"], "expected a skeleton of 21"),
    ],
)
def test_mistakes(
    options: list[str],
    message: str,
    model: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([model, "--onnx", *options, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2", "rtmpose_s"])
def test_real_networks(name: str, shared_data, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    """At their real size, with the weights of the recorded answers, scaled to what trained ones answer."""
    hand = name == "mobilenetv2"
    detector = Reference(shared_data).detector(name, (256, 256) if hand else (256, 192), "hand21" if hand else "coco17")
    with torch.no_grad():
        for layer in (detector.head.final_layer,) if hand else (detector.head.cls_x, detector.head.cls_y):
            for parameter in layer.parameters():
                parameter.mul_(0.1 if hand else 0.01)
    torch.save({"meta": {}, "state_dict": detector.state_dict()}, tmp_path / "c.pth")
    source = model if hand else "mpii16"
    arguments = [source, "--onnx", "--detector", name, "--checkpoint", str(tmp_path / "c.pth"), "-o", str(tmp_path)]
    assert main([*arguments, "--max-px-error", "1e-3"]) == 0
    assert "against the detector in PyTorch" in capsys.readouterr().out
