# SPDX-License-Identifier: Apache-2.0
"""The native decoding of MMPose's codecs and of SimCC, against recorded answers and against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import port_deploy
from port_deploy.errors import InputError

pytest.importorskip("port_deploy._core", reason="the native core is not built")

PEAK_CODECS = ("msra", "dark", "udp")


@pytest.fixture(scope="module")
def goldens(shared_data):
    return np.load(shared_data("reference/mmpose/decode_goldens.npz"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("codec", "blur", "key"),
    [("msra", 11, "msra"), ("dark", 11, "msra_dark"), ("dark", 17, "msra_dark_blur17"), ("udp", 11, "udp")],
)
def test_heatmaps_decode_as_mmposes(codec, blur, key, dtype, goldens):
    heatmaps = (goldens["heatmaps_q"] / np.float32(256)).astype(dtype)
    joints, confidence, mask = port_deploy.decode(heatmaps, codec=codec, blur=blur, threshold=0.4)
    scale = (192 / 47, 256 / 63) if codec == "udp" else (4, 4)
    present = heatmaps.max((2, 3)) > 0
    compared = present if codec == "msra" else present & goldens[f"{key}_stable"]
    atol = 0 if codec == "msra" else 2e-3
    np.testing.assert_allclose((joints * scale)[compared], goldens[f"{key}_keypoints"][compared], atol=atol, rtol=0)
    np.testing.assert_allclose((joints * scale)[present], goldens[f"{key}_keypoints"][present], atol=0.01, rtol=0)
    np.testing.assert_array_equal(confidence, np.clip(goldens[f"{key}_scores"], 0, 1))
    np.testing.assert_array_equal(mask, confidence < 0.4)
    assert np.isnan(joints[~present]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_simcc_decodes_as_mmposes(dtype, goldens):
    x, y = ((goldens[f"simcc_{axis}_q"] / np.float32(256)).astype(dtype) for axis in "xy")
    joints, confidence, mask = port_deploy.decode_simcc(x, y, threshold=0.4)
    scores = goldens["simcc_scores"]
    np.testing.assert_array_equal(joints[scores > 0], goldens["simcc_keypoints"][scores > 0])
    np.testing.assert_array_equal(confidence, np.clip(scores, 0, 1))
    np.testing.assert_array_equal(mask, confidence < 0.4)
    assert np.isnan(joints[scores <= 0]).all()


def rough_maps(shape, seed):
    """Blobs, two to a map, on noise, some of it below 0."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[2], : shape[3]]
    maps = rng.normal(0, 0.02, shape)
    for weight in (0.8, 0.5):
        at_x, at_y = (rng.uniform(-1, side + 1, (*shape[:2], 1, 1)) for side in (shape[3], shape[2]))
        maps += weight * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / 8)
    return maps.astype(np.float32)


@pytest.mark.parametrize("codec", PEAK_CODECS)
@pytest.mark.parametrize("size", [(64, 48), (5, 5), (1, 1), (3, 70), (40, 2)])
def test_native_answers_as_pytorch(codec, size):
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "port-deploy[export]"')
    from port_deploy.nn.detectors import PeakDecode

    maps = rough_maps((8, 17, *size), 1)
    maps[0, 0], maps[0, 1, 0, 0], maps[0, 2, 0, 0], maps[0, 3] = -1.0, np.nan, np.inf, 0.25
    wanted, scores = (v.numpy() for v in PeakDecode(codec, 13)(torch.from_numpy(maps)))
    joints, confidence, _ = port_deploy.decode(maps, codec=codec, blur=13)
    np.testing.assert_array_equal(confidence, scores)
    np.testing.assert_array_equal(np.isnan(joints), np.isnan(wanted))
    off = np.abs(joints - wanted)[~np.isnan(wanted)]
    moved = np.abs(wanted - np.rint(wanted))[~np.isnan(wanted)]
    # Where a Newton step is longer than a pixel the curvature is next to nothing, and so is what rounding leaves of it.
    assert off[moved < 0.5].max(initial=0) < (1e-6 if codec == "msra" else 1e-2)
    assert np.median(off) < 1e-5


@pytest.mark.parametrize("codec", PEAK_CODECS)
def test_strides_threads_and_given_memory(codec):
    maps = rough_maps((6, 5, 32, 24), 2)
    whole = port_deploy.decode(maps, codec=codec)
    np.testing.assert_array_equal(port_deploy.decode(maps, codec=codec, threads=2).joints, whole.joints)
    wide = np.zeros((12, 5, 40, 30), np.float32)
    wide[::2, ::-1, 3:35, 2:26] = maps
    view = wide[::2, ::-1, 3:35, 2:26]
    out = port_deploy.Refined(np.zeros((6, 5, 2), np.float32), np.zeros((6, 5), np.float32), np.zeros((6, 5), bool))
    assert port_deploy.decode(view, codec=codec, out=out) is out
    for got, wanted in zip(out, whole, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert port_deploy.decode(maps[:0], codec=codec).joints.shape == (0, 5, 2)


def test_simcc_score_rules_broken_vectors_and_torch():
    rng = np.random.default_rng(3)
    x, y = rng.random((5, 70, 96), np.float32), rng.random((5, 70, 128), np.float32) * np.float32(0.9)
    x[0, 0, 5], y[0, 1, 5], x[0, 2] = np.nan, np.inf, -1.0
    least, mean = (port_deploy.decode_simcc(x, y, score=rule) for rule in ("min", "mean"))
    with np.errstate(invalid="ignore"):
        highest = np.stack([x.max(-1), y.max(-1)])
    for rule, got in ((np.min, least), (np.mean, mean)):
        expected = rule(highest, axis=0)
        broken = ~(np.isfinite(highest).all(0) & (expected > 0))
        np.testing.assert_allclose(got.confidence, np.where(broken, 0, np.clip(expected, 0, 1)), atol=1e-6)
        assert np.isnan(got.joints[broken]).all()
        np.testing.assert_array_equal(got.joints[..., 0][~broken], (x.argmax(-1) / 2)[~broken])
        np.testing.assert_array_equal(got.joints[..., 1][~broken], (y.argmax(-1) / 2)[~broken])
    again = port_deploy.decode_simcc(x[:, ::-1], y[:, ::-1], threads=2, split_ratio=1)
    np.testing.assert_array_equal(again.joints, least.joints[:, ::-1] * 2)
    assert port_deploy.decode_simcc(x[:0], y[:0]).mask.shape == (0, 70)
    torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "port-deploy[export]"')
    tensors = port_deploy.decode_simcc(torch.from_numpy(x), torch.from_numpy(y))
    assert isinstance(tensors.joints, torch.Tensor)
    np.testing.assert_array_equal(tensors.joints, least.joints)


def test_bad_arguments_are_refused_in_one_line():
    maps, vector = np.zeros((1, 2, 8, 8), np.float32), np.zeros((1, 2, 8), np.float32)
    for blur in (10, 7, 65, 11.0, True):
        with pytest.raises(InputError, match=f"expected an odd blur from 9 to 63, got {blur}"):
            port_deploy.decode(maps, codec="dark", blur=blur)
    with pytest.raises(
        InputError, match="unknown codec 'megvii': use one of softargmax, softargmax-sum, argmax, msra, "
    ):
        port_deploy.decode(maps, codec="megvii")
    with pytest.raises(InputError, match=r"unknown codec 'simcc': .*; decode_simcc takes SimCC's vectors"):
        port_deploy.decode(maps, codec="simcc")
    with pytest.raises(InputError, match="unknown score rule 'max': use min or mean"):
        port_deploy.decode_simcc(vector, vector, score="max")
    with pytest.raises(InputError, match="expected a split ratio above 0, got 0"):
        port_deploy.decode_simcc(vector, vector, split_ratio=0)
    with pytest.raises(
        InputError,
        match=r"expected simcc_y of the same poses and joints as simcc_x \[1, 2, bins\], got .*: pass both outputs of",
    ):
        port_deploy.decode_simcc(vector, vector[:, :1])
    with pytest.raises(InputError, match=r"expected simcc_x \[B, N, bins\] of at most 4096 bins, got \[2, 8\]"):
        port_deploy.decode_simcc(vector[0], vector[0])
    with pytest.raises(InputError, match="expected simcc_y float32 or float16, got float64"):
        port_deploy.decode_simcc(vector, vector.astype(float))
    with pytest.raises(InputError, match="threshold"):
        port_deploy.decode_simcc(vector, vector, threshold=-1)
