# SPDX-License-Identifier: Apache-2.0
"""formats.py, formats_predictions.py, safe_pickle.py and port-convert: each public format in small, and bad ones."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from port_deploy.cli.convert import main
from port_deploy.errors import InputError
from port_deploy.formats import FPHB_NAMES, HAND_NAMES, READERS, RHD_NAMES
from port_deploy.formats_predictions import read_coco, read_mmpose
from port_deploy.joint_names import match_names
from port_deploy.predictions import load_predictions
from port_deploy.safe_pickle import read_pickle
from port_deploy.skeleton import Skeleton

HAND = Skeleton.load("hand21")
COCO = Skeleton.load("coco17")
RNG = np.random.default_rng(0)


def test_panoptic_hands(tmp_path: Path) -> None:
    points = RNG.uniform(0, 300, (2, 21, 3))
    points[..., 2] = 1
    points[1, 4, 2] = 0
    for i, hand in enumerate(points):
        (tmp_path / f"{i}_l.json").write_text(json.dumps({"hand_pts": hand.tolist(), "is_left": float(i)}))
    arrays = READERS["panoptic"](tmp_path)
    np.testing.assert_allclose(arrays["joints"], points[..., :2], rtol=1e-6)
    assert arrays["labelled"].sum() == 41
    assert arrays["left"].tolist() == [False, True]
    assert (match_names(list(HAND_NAMES), HAND) == np.arange(21)).all()
    (tmp_path / "bad.json").write_text('{"hand_pts": [[1, 2, 3]]}')
    with pytest.raises(InputError, match=r"bad.json: expected hand_pts of 21 joints"):
        READERS["panoptic"](tmp_path)


def test_fphb(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    """Written from the shared file's 3D joints, its 2D joints come out: order, camera and units agree."""
    with np.load(shared_data("data/fphb_hand21.npz")) as data:
        world, flat, names = data["joints3d"][:50], data["joints"][:50], data["names"]
    order = [list(names).index(n) for n in FPHB_NAMES]
    folder = tmp_path / "Subject_3" / "open_milk" / "2"
    folder.mkdir(parents=True)
    np.savetxt(folder / "skeleton.txt", np.concatenate([np.arange(50)[:, None], world[:, order].reshape(50, -1)], 1))
    arrays = READERS["fphb"](tmp_path)
    index = match_names(list(arrays["names"]), HAND)
    np.testing.assert_allclose(arrays["joints"][:, index], flat, atol=0.1)
    assert set(arrays["subject"]) == {3}
    (folder / "skeleton.txt").write_text("0 1 2 3\n")
    with pytest.raises(InputError, match="63 coordinates"):
        READERS["fphb"](tmp_path)


def test_rhd(tmp_path: Path) -> None:
    uv, xyz = RNG.uniform(0, 320, (2, 42, 3)), RNG.normal(size=(2, 42, 3))
    uv[..., 2] = 1
    uv[0, :21, 2] = 0  # the first sample shows its right hand only
    content = {i: {"uv_vis": uv[i], "xyz": xyz[i], "K": np.eye(3)} for i in range(2)}
    (tmp_path / "anno.pickle").write_bytes(pickle.dumps(content, protocol=2))
    arrays = READERS["rhd"](tmp_path / "anno.pickle")
    assert arrays["left"].tolist() == [False, True, False]
    np.testing.assert_allclose(arrays["joints"][0], uv[0, 21:, :2], rtol=1e-6)
    np.testing.assert_allclose(arrays["joints3d"][2], xyz[1, 21:] * [1, -1, -1], rtol=1e-6)
    assert (match_names(list(RHD_NAMES), Skeleton.load("hand21-rhd")) == np.arange(21)).all()


def test_human36m(tmp_path: Path) -> None:
    poses = RNG.normal(size=(7, 32, 3))
    np.savez(tmp_path / "h.npz", positions_3d=np.array({"S9": {"Walking 1": poses, "Eating": poses[:2]}}, dtype=object))
    arrays = READERS["h36m"](tmp_path / "h.npz")
    assert arrays["joints3d"].shape == (9, 17, 3)
    walking = arrays["joints3d"][2:]
    np.testing.assert_allclose(walking[:, 10, 1], poses[:, 15, 2], rtol=1e-6)  # the head's height is z
    np.testing.assert_allclose(walking[:, 16, 0], poses[:, 27, 0], rtol=1e-6)
    turn = np.linalg.lstsq(poses[:, 1], walking[:, 1], rcond=None)[0]
    assert np.linalg.det(turn) == pytest.approx(1), "turned, not mirrored"
    assert set(arrays["subject"]) == {9}
    assert (match_names(list(arrays["names"]), Skeleton.load("h36m17")) >= 0).all()
    part = RNG.uniform(0, 1000, (5, 17, 3))
    np.savez(tmp_path / "m.npz", part=part, S=np.zeros((5, 17, 4)), imgname=np.array(["a"] * 5))
    assert READERS["h36m"](tmp_path / "m.npz")["joints"].shape == (5, 17, 2)


def coco(folder: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Two people in one picture, one in another, one without a keypoint; results in another order."""
    labels = RNG.uniform(0, 400, (3, 17, 3))
    labels[1, :, :2] += 500
    labels[..., 2] = 2
    labels[0, 3, 2] = 0
    results = labels + RNG.normal(size=labels.shape)
    results[..., 2] = RNG.uniform(size=(3, 17))
    owners = (7, 7, 8)
    annotations = [
        {"image_id": o, "category_id": 1, "keypoints": k.reshape(-1).tolist(), "bbox": [0, 0, 900, 900]}
        for o, k in zip(owners, labels, strict=True)
    ]
    annotations.insert(1, {"image_id": 7, "keypoints": [0] * 51, "bbox": [0, 0, 1, 1]})
    content = {
        "images": [{"id": 7, "width": 640, "height": 480}, {"id": 8, "width": 640, "height": 480}],
        "annotations": annotations,
        "categories": [{"id": 1, "keypoints": list(COCO.names)}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    flat = [{"image_id": owners[i], "score": 1, "keypoints": results[i].reshape(-1).tolist()} for i in (2, 1)]
    nested = [{"image_id": owners[0], "score": 1, "keypoints": results[0].tolist()}]
    (folder / "r.json").write_text(json.dumps(flat + nested))
    return folder / "a.json", folder / "r.json", labels, results


def test_coco_with_results(tmp_path: Path) -> None:
    annotations, found, labels, results = coco(tmp_path)
    arrays = read_coco(annotations, found)
    np.testing.assert_allclose(arrays["joints"], labels[..., :2], rtol=1e-6)
    np.testing.assert_allclose(arrays["pred"], results[..., :2], rtol=1e-6)
    np.testing.assert_allclose(arrays["conf"], results[..., 2], rtol=1e-6)
    assert arrays["labelled"].sum() == 50
    assert main(["coco", str(annotations), "--results", str(found), "-o", str(tmp_path / "c.npz")]) == 0
    predictions = load_predictions(tmp_path / "c.npz", COCO)
    np.testing.assert_allclose(predictions.detected, results[..., :2], rtol=1e-6)
    assert set(predictions.sizes) == {"bbox", "image", "pose"}
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 99, "keypoints": [0.0] * 51}]))
    with pytest.raises(InputError, match="are the image ids"):
        read_coco(annotations, found)


@pytest.mark.parametrize("suffix", [".pkl", ".json"])
def test_mmpose_dumps(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    samples = []
    for _ in range(4):
        truth = {
            "keypoints": RNG.uniform(0, 300, (1, 21, 2)),
            "keypoints_visible": np.ones((1, 21)),
            "bboxes": np.array([[10.0, 20.0, 110.0, 220.0]]),
        }
        found = {"keypoints": truth["keypoints"] + 1, "keypoint_scores": RNG.uniform(size=(1, 21))}
        samples.append({"pred_instances": found, "gt_instances": truth, "id": 1, "img_path": "x.jpg"})
    path = tmp_path / f"dump{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(samples))
    else:
        path.write_text(json.dumps(samples, default=lambda a: a.tolist()))
    arrays = read_mmpose(path)
    np.testing.assert_allclose(arrays["pred"] - arrays["joints"], 1, atol=1e-3)
    assert arrays["bbox"][0].tolist() == [10, 20, 100, 200]
    out = tmp_path / "m.npz"
    assert main(["mmpose", str(path), "-o", str(out), "--skeleton", "hand21", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arrays"]["pred"] == [4, 21, 2]
    assert load_predictions(out, HAND).sizes["bbox"].tolist() == [200] * 4


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def test_pickles_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"a": np.arange(3), "b": [1.5, "x", None], "c": np.float32(2)}
    back = read_pickle(pickle.dumps(plain), "here", "a dump")
    assert back["a"].tolist() == [0, 1, 2]
    assert back["b"] == [1.5, "x", None]
    for hostile in ([Hostile()], np.array([Hostile()], dtype=object)):
        with pytest.raises(InputError, match=r"here: the pickle names builtins.print"):
            read_pickle(pickle.dumps(hostile), "here", "a dump")
    with pytest.raises(InputError, match=r"no usable pickle .*: expected a dump$"):
        read_pickle(pickle.dumps(plain)[:20], "here", "a dump")
    assert "printed" not in capsys.readouterr().out


def test_a_file_that_is_absent_or_of_another_kind_is_named_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def message(form: str, name: str, *more: str) -> str:
        assert main([form, str(tmp_path / name), "-o", str(tmp_path / "out.npz"), *more]) == 2
        return capsys.readouterr().err

    for name in ("text.json", "text.pkl"):
        (tmp_path / name).write_text("nothing of the kind")
    absent = tmp_path / "absent.json"
    for form in (*READERS, "coco", "mmpose"):
        assert message(form, "absent.json").startswith(f"error: there is no file or folder {absent}: "), form
    assert message("coco", "text.json", "--results", str(absent)).startswith("error: there is no file or folder")
    with pytest.raises(InputError, match=f"^there is no file {absent}: "):
        read_coco(absent)
    assert message("coco", "text.json").endswith("): expected a COCO-style annotation file\n")
    assert message("mmpose", "text.json").endswith("): expected an MMPose dump (.pkl, or .json of the same)\n")
    assert message("mmpose", "text.pkl").endswith("): expected an MMPose dump (.pkl, or .json of the same)\n")


@pytest.mark.parametrize("form", [*READERS, "coco", "mmpose"])
def test_bad_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    (tmp_path / "text.pkl").write_text("nothing of the kind")
    (tmp_path / "list.json").write_text("[]")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "folder").mkdir()
    for name in ("text.pkl", "list.json", "other.npz", "folder", "absent"):
        assert main([form, str(tmp_path / name), "-o", str(tmp_path / "out.npz")]) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1, name
        assert name.split(".")[0] in error, name
    assert not (tmp_path / "out.npz").exists()
