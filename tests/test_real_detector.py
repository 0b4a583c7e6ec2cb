# SPDX-License-Identifier: Apache-2.0
"""A real heatmap detector and the bundled body model in one graph, on real photographs. Skipped where it is absent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from port_deploy import PoseEngine, Refiner
from port_deploy.cli.export import main
from port_deploy.joint_names import match_names
from port_deploy.sidecar import read_sidecar

for library in ("torch", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import photographs  # noqa: E402

FOLDER = "reference/heatmap_detector"
BOXES = {name: box for name, (box, _) in photographs.PHOTOGRAPHS.items()}


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """The two photographs as the detector takes them."""
    image = pytest.importorskip("PIL.Image")
    skimage = pytest.importorskip("skimage.data")
    made = []
    for name, box in BOXES.items():
        pixels = np.asarray(getattr(skimage, name)())
        pixels = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
        made.append(np.asarray(image.fromarray(pixels).crop(box).resize((368, 368), image.Resampling.BILINEAR)))
    return np.stack(made)


@pytest.fixture(scope="module")
def merged(shared_data: Callable[[str], Path], crops: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientPose II Lite and mpii16, verified on the photographs, too; and an engine where TensorRT-RTX is."""
    detector = shared_data(f"{FOLDER}/efficientpose2lite_s4.onnx")
    folder = tmp_path_factory.mktemp("real")
    np.save(folder / "crops.npy", crops)
    arguments = ["mpii16", "--detector", str(detector), "--detector-joints", photographs.NAMES]
    kinds = ["--onnx"]
    try:
        import tensorrt_rtx  # noqa: F401
    except ImportError:
        pass
    else:
        kinds += ["--trt", "--tensorrt", "tensorrt-rtx", "--target", "sm_89", "--batch", "1,4,16"]
    assert main([*arguments, *kinds, "--verify-images", str(folder / "crops.npy"), "-o", str(folder)]) == 0
    return folder / "efficientpose2lite_s4_mpii16.onnx"


def test_it_is_the_two_apart(merged: Path) -> None:
    side = read_sidecar(merged, "onnx")
    assert side.verification["passed"] is True
    assert side.verification["max_error_px"] <= 1e-3
    assert side.verification["poses"] == 2 * (6 + 2)
    assert side.detector is not None
    assert side.detector.order == (12, 11, 10, 13, 14, 15, 9, 5, 1, 0, 4, 3, 2, 6, 7, 8)
    low, high = side.detector.value_range
    assert -0.1 < low < 0 < 0.7 < high < 1


def test_its_heatmaps_are_those_recorded(merged: Path, crops: np.ndarray, shared_data: Callable[[str], Path]) -> None:
    """The whole line from pixels, against the line from the recorded heatmaps of the same photographs."""
    engine, refiner = PoseEngine.load(merged), Refiner.load("mpii16")
    with np.load(shared_data(f"{FOLDER}/demo_heatmaps.npz"), allow_pickle=False) as data:
        order = match_names(data["names"].tolist(), refiner.model.skeleton)
        maps = np.ascontiguousarray(data["heatmaps92"][:, order])[[0, 2]]
        affine = data["affine"][[0, 2]].astype(np.float32)
    recorded = refiner(maps, affine=affine)
    scale = np.array([(box[2] - box[0]) / 368 for box in BOXES.values()])
    to_photo = np.zeros((2, 2, 3), np.float32)
    to_photo[:, 0, 0] = to_photo[:, 1, 1] = scale
    to_photo[:, :, 2] = np.array([box[:2] for box in BOXES.values()]) + scale[:, None] / 2 - 0.5
    out = engine(crops, affine=to_photo)
    sure = recorded.confidence >= 0.5
    assert sure.sum() >= 20
    np.testing.assert_allclose(out.confidence[sure], recorded.confidence[sure], atol=0.05)
    distance = np.linalg.norm(out.joints - recorded.joints, axis=-1)
    assert np.median(distance[sure]) < 2  # photograph pixels: a heatmap's is 12.5 and 16.3 of them
    assert distance[sure].max() < 8
    near = np.abs(recorded.confidence - refiner.threshold) < 0.05
    np.testing.assert_array_equal((out.mask == recorded.mask) | near, True)


def test_an_engine_of_both(merged: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    side = read_sidecar(merged.with_suffix(".engine"), "engine")
    assert side.engine is not None
    assert side.engine.compute_capabilities == ("8.9",)
    assert side.batch == (1, 4, 16)
    assert side.detector is not None
    assert side.detector.image_size == (368, 368)


def test_a_wrong_list_of_joints_is_found_out(
    merged: Path,
    crops: np.ndarray,
    shared_data: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """MPII's own order is not this detector's; nothing but its answers on photographs shows it."""
    np.save(tmp_path / "crops.npy", crops)
    detector = str(shared_data(f"{FOLDER}/efficientpose2lite_s4.onnx"))
    arguments = ["mpii16", "--onnx", "--detector", detector, "--detector-joints", "mpii16"]
    assert main([*arguments, "--verify-images", str(tmp_path / "crops.npy"), "-o", str(tmp_path / "out")]) == 2
    assert "do not look like skeleton 'mpii16'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_of_the_readme_is_the_measured_one(
    shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the recorded heatmaps; the photographs' columns are `benchmarks/photographs.py`'s own."""
    parts = photographs.labelled(shared_data(FOLDER), "mpii16")
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    rows = readme.split("<!-- photographs:start -->\n")[1].split("<!-- photographs:end -->")[0].splitlines()[2:-1]
    found = [[cell.strip() for cell in row.strip("|").split("|")[1:3]] for row in rows]
    wanted = [[f"{r['joints']:,}", photographs._pair(r, 2)] for r in photographs.table(*parts)]
    assert found == wanted, "python benchmarks/photographs.py FOLDER --readme mends it"
