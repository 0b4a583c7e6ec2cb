# SPDX-License-Identifier: Apache-2.0
"""nn/line.py, the rules that every backend keeps: decode, missing, masked, refined, frames, blend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy.config import MAX_COORDINATE

torch = pytest.importorskip("torch")

from port_deploy.backends.torch_ import TorchBackend, oracle  # noqa: E402
from port_deploy.nn.line import Decode, to_image  # noqa: E402


def decode(maps: Any, codec: str, temperature: float = 40.0) -> tuple[np.ndarray, np.ndarray]:
    joints, confidence = Decode(codec, temperature)(torch.as_tensor(np.asarray(maps, np.float64)))
    return joints.numpy(), confidence.numpy()


def decode_by_hand(one: np.ndarray, codec: str, temperature: float) -> tuple[np.ndarray, float]:
    """Eqs. (1) and (2) for one map, pixel by pixel."""
    height, width = one.shape
    if codec == "argmax":
        y, x = np.unravel_index(one.argmax(), one.shape)
        place = np.array([x, y], np.float64)
    else:
        if codec == "softargmax":
            weight = np.exp(temperature * (one - one.max()))
        else:
            weight = one.clip(min=0)
        place = np.zeros(2)
        for y in range(height):
            for x in range(width):
                place += weight[y, x] * np.array([x, y])
        place = place / weight.sum() if weight.sum() > 0 else np.array([(width - 1) / 2, (height - 1) / 2])
    x, y = np.rint(place).astype(int)
    return place, float(one[y, x].clip(0, 1))


@pytest.mark.parametrize("codec", ["softargmax", "softargmax-sum", "argmax"])
def test_decode_is_the_equations(codec: str) -> None:
    maps = np.random.default_rng(0).normal(0.1, 0.3, (2, 3, 7, 11))
    joints, confidence = decode(maps, codec)
    for b in range(2):
        for n in range(3):
            place, peak = decode_by_hand(maps[b, n], codec, 40.0)
            np.testing.assert_allclose(joints[b, n], place, atol=1e-12)
            assert confidence[b, n] == peak


@pytest.mark.parametrize("codec", ["softargmax", "softargmax-sum", "argmax"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_with_nan_or_infinity_is_missing(codec: str, value: float) -> None:
    maps = np.zeros((1, 2, 5, 5))
    maps[0, 0, 2, 3] = value
    maps[0, 1, 2, 3] = 1
    joints, confidence = decode(maps, codec)
    assert np.isnan(joints[0, 0]).all()
    assert confidence[0, 0] == 0
    assert np.isfinite(joints[0, 1]).all()


def test_an_empty_map_answers_its_centre_or_its_first_pixel() -> None:
    maps = np.zeros((1, 1, 5, 8))
    for codec, place in (("softargmax", (3.5, 2)), ("softargmax-sum", (3.5, 2)), ("argmax", (0, 0))):
        joints, confidence = decode(maps, codec)
        np.testing.assert_allclose(joints[0, 0], place, atol=1e-12)
        assert confidence[0, 0] == 0


def test_the_first_of_two_equal_peaks_wins() -> None:
    maps = np.zeros((1, 1, 4, 4))
    maps[0, 0, 1, 2] = maps[0, 0, 2, 0] = 1
    assert decode(maps, "argmax")[0].tolist() == [[[2, 1]]]


def test_confidence_is_clipped() -> None:
    maps = np.zeros((1, 2, 3, 3))
    maps[0, 0, 1, 1], maps[0, 1] = 5, -1
    assert decode(maps, "argmax")[1].tolist() == [[1, 0]]


def test_to_image_is_the_affine_map() -> None:
    affine = np.array([[[2.0, 0.5, 10], [-1, 3, 20]]])
    got = to_image(torch.tensor([[[4.0, 5.0]]], dtype=torch.float64), torch.from_numpy(affine))
    assert got.tolist() == [[[2 * 4 + 0.5 * 5 + 10, -4 + 15 + 20]]]


def poses(n: int, batch: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    joints, confidence = rng.uniform(0, 256, (batch, n, 2)), rng.uniform(0.31, 1, (batch, n))
    confidence[rng.random((batch, n)) < 0.3] = 0.1
    return joints, confidence


@pytest.fixture(params=[("soft", "visible"), ("soft", "paper"), ("paper", "visible"), ("paper", "paper")])
def line(request: pytest.FixtureRequest) -> TorchBackend:
    kind, frame = request.param
    return oracle(random_model(kind, "mpii16", frame=frame, layers=2, head_dim=16))


def test_masked_joints_change_and_others_do_not(line: TorchBackend) -> None:
    joints, confidence = poses(16)
    out, same, mask = line.compute(joints, confidence, 0.3)
    np.testing.assert_array_equal(mask, confidence < 0.3)
    np.testing.assert_array_equal(out[~mask], joints[~mask])
    assert (np.abs(out[mask] - joints[mask]).max(-1) > 1e-6).all()
    np.testing.assert_array_equal(same, confidence)


def test_the_visible_frame_moves_and_scales_with_the_pose() -> None:
    for kind in ("soft", "paper"):
        backend = oracle(random_model(kind, "mpii16", layers=2))
        joints, confidence = poses(16)
        out = backend.compute(joints, confidence, 0.3)[0]
        moved = backend.compute(joints * 0.7 + [300, -50], confidence, 0.3)[0]
        np.testing.assert_allclose(moved, out * 0.7 + [300, -50], atol=1e-9)


def test_the_paper_frame_moves_and_turns_with_the_pose() -> None:
    backend = oracle(random_model("paper", "mpii16", frame="paper", layers=2))
    joints, confidence = poses(16)
    turn = np.array([[np.cos(0.8), np.sin(0.8)], [-np.sin(0.8), np.cos(0.8)]])
    out = backend.compute(joints, confidence, 0.3)[0]
    moved = backend.compute(joints @ turn + [30, 40], confidence, 0.3)[0]
    np.testing.assert_allclose(moved, out @ turn + [30, 40], atol=1e-9)


def test_a_hidden_joint_does_not_move_the_visible_frame() -> None:
    """What the detector said of a masked joint enters only as that joint's own input; zeroed, not at all."""
    backend = oracle(random_model("paper", "mpii16", masked_coordinates="zero", layers=2))
    joints, confidence = poses(16)
    out, _, mask = backend.compute(joints, confidence, 0.3)
    elsewhere = np.where(mask[..., None], joints + 90, joints)
    np.testing.assert_allclose(backend.compute(elsewhere, confidence, 0.3)[0][mask], out[mask], atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, MAX_COORDINATE * 1.001, -1e30])
def test_missing_joints_are_masked_and_rebuilt_whatever_they_held(line: TorchBackend, value: float) -> None:
    joints, confidence = poses(16)
    confidence[0, 3] = 0.9  # sure, and yet missing
    joints[0, 3] = np.nan
    expected = line.compute(joints, confidence, 0.3)
    joints[0, 3, 1] = value
    out, _, mask = line.compute(joints, confidence, 0.3)
    assert mask[0, 3]
    assert np.isfinite(out[0, 3]).all()
    np.testing.assert_allclose(out[0], expected[0][0], atol=1e-9)


def test_nan_confidence_masks(line: TorchBackend) -> None:
    joints, confidence = poses(16)
    confidence[0, 5] = np.nan
    assert line.compute(joints, confidence, 0.3)[2][0, 5]
    assert line.compute(joints, confidence, 0.0)[2].sum() == 1


def test_poses_that_cannot_be_refined_come_back() -> None:
    backend = oracle(random_model("soft", "mpii16", min_visible=5, max_masked=9, layers=1))
    joints, confidence = poses(16, 5)
    confidence[:] = 0.9
    confidence[0, :12] = 0  # 4 visible
    confidence[1, :10] = 0  # 10 masked
    confidence[2, :9] = 0  # just allowed
    confidence[3, :3] = 0
    joints[3] = 5.0  # all in one place
    joints[4] = np.nan
    out, _, mask = backend.compute(joints, confidence, 0.3)
    assert mask.sum(1).tolist() == [0, 0, 9, 0, 0]
    np.testing.assert_array_equal(out[[0, 1, 3, 4]], joints[[0, 1, 3, 4]])


def test_fusion_blends_what_was_seen() -> None:
    joints, confidence = poses(16)
    whole = oracle(random_model("soft", "mpii16")).compute(joints, confidence, 0.3)[0]
    half = oracle(random_model("soft", "mpii16", fusion=0.25)).compute(joints, confidence, 0.3)[0]
    np.testing.assert_allclose(half, joints + 0.25 * (whole - joints), atol=1e-9)


def test_refine_all_changes_every_joint_of_a_refined_pose() -> None:
    joints, confidence = poses(16)
    confidence[0] = 0
    out, _, mask = oracle(random_model("soft", "mpii16", refine="all")).compute(joints, confidence, 0.3)
    assert mask[1:].all()
    assert not mask[0].any()
    assert (np.abs(out[1:] - joints[1:]).max(-1) > 1e-9).all()


def test_the_line_is_its_parts() -> None:
    backend = oracle(random_model("soft", "mpii16", layers=1))
    maps = np.random.default_rng(0).random((3, 16, 9, 8))
    affine = np.tile(np.array([[3.0, 0, 7], [0, 2.0, 9]]), (3, 1, 1))
    joints, confidence = backend.decode(maps)
    expected = backend.compute(joints * [3, 2] + [7, 9], confidence, 0.95)
    got = backend.compute_heatmaps(maps, affine, 0.95)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_no_poses(line: TorchBackend) -> None:
    out = line.compute(np.zeros((0, 16, 2)), np.zeros((0, 16)), 0.3)
    assert [a.shape for a in out] == [(0, 16, 2), (0, 16), (0, 16)]
