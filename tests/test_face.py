# SPDX-License-Identifier: Apache-2.0
"""port_deploy/nn/face.py: simulated faces sit on their heads, face forward, and are drawn alike from one seed."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from port_deploy.errors import InputError
from port_deploy.nn.data import DataSpec, load_source
from port_deploy.nn.face import FACE, with_face
from port_deploy.skeleton import Skeleton

NAMES = ["LShoulder", "RShoulder", "LHip", "RHip"]


def trunks(count: int) -> np.ndarray:
    """People 0.4 wide who look along +z: their left is +x, up is +y."""
    pose = np.array([[0.2, 1.5, 0], [-0.2, 1.5, 0], [0.1, 1.0, 0], [-0.1, 1.0, 0]], np.float32)
    return np.repeat(pose[None], count, 0)


def test_face_is_above_the_shoulders_and_looks_forward() -> None:
    points, names = with_face(trunks(2000), NAMES, seed=0)
    at = {n: points[:, names.index(n)] for n in FACE}
    assert points.shape == (2000, 9, 3)
    assert (at["nose"][:, 1] > 1.5).all()
    assert (at["left_eye"] - at["right_eye"])[:, 0].mean() > 0
    ears = np.linalg.norm(at["left_ear"] - at["right_ear"], axis=-1)
    assert np.median(ears) == pytest.approx(0.42 * 0.4, rel=0.02)
    forward = at["nose"] - (at["left_ear"] + at["right_ear"]) / 2
    assert (forward[:, 2] > 0).mean() > 0.97
    yaw = np.arctan2(forward[:, 0], forward[:, 2])
    assert 0.3 < yaw.std() < 0.7
    assert abs(yaw.mean()) < 0.05
    np.testing.assert_array_equal(points[:, :4], trunks(2000))


def test_face_turns_with_the_trunk() -> None:
    turn = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)  # +z to -x... a quarter about y
    straight, _ = with_face(trunks(50), NAMES, seed=3)
    turned, _ = with_face(trunks(50) @ turn, NAMES, seed=3)
    np.testing.assert_allclose(turned, straight @ turn, atol=1e-5)
    again, _ = with_face(trunks(50), NAMES, seed=3)
    np.testing.assert_array_equal(again, straight)


def test_face_needs_shoulders_and_hips() -> None:
    with pytest.raises(InputError, match="no right_hip"):
        with_face(trunks(2)[:, :3], NAMES[:3], 0)
    with pytest.raises(InputError, match="a nose already"):
        with_face(trunks(2), ["Nose", *NAMES[1:], "LShoulder"], 0)


def test_face_option_gives_a_coco_skeleton_its_face(tmp_path) -> None:
    path = tmp_path / "mocap.npz"
    np.savez(path, joints3d=trunks(40), names=np.array(NAMES))
    skeleton = Skeleton.load("coco17")
    source = load_source(DataSpec.parse(f"{path}:1:face"), skeleton, {})
    assert source.labelled[:, :5].all()
    assert source.facts["face"] == "simulated"
    assert not load_source(DataSpec.parse(f"{path}:1"), skeleton, {}).labelled[:, :5].any()
    flat = tmp_path / "flat.npz"
    np.savez(flat, joints=trunks(40)[..., :2], names=np.array(NAMES))
    with pytest.raises(InputError, match="joints3d"):
        load_source(DataSpec.parse(f"{flat}:face"), skeleton, {})
