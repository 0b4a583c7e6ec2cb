# SPDX-License-Identifier: Apache-2.0
"""Decoding of heatmaps and SimCC vectors against MMPose's recorded answers, and the same in ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmpose_reference import FILES, Reference, blank

from port_deploy.errors import InputError
from port_deploy.nn.detectors import DetectorDecode, DetectorSpec, PeakDecode, SimccDecode
from port_deploy.nn.onnx_graph import onnx_graph
from port_deploy.skeleton import Skeleton


@pytest.fixture(scope="module")
def reference(shared_data):
    return Reference(shared_data)


@pytest.fixture(scope="module")
def goldens(reference):
    return reference.arrays("decode_goldens")


def spec(target):
    return DetectorSpec("rtmpose_s" if target == "simcc" else "hrnet_w32", Skeleton.load("coco17"), (256, 192), target)


def heatmaps_of(goldens):
    return torch.from_numpy(goldens["heatmaps_q"].astype(np.float32) / 256)


@pytest.mark.parametrize(
    ("codec", "kernel", "key", "atol"),
    [
        ("msra", 11, "msra", 0),
        ("dark", 11, "msra_dark", 1e-3),
        ("dark", 17, "msra_dark_blur17", 1e-3),
        ("udp", 11, "udp", 1e-3),
    ],
)
def test_peak_codecs_answer_as_mmposes(codec, kernel, key, atol, goldens):
    heatmaps = heatmaps_of(goldens)
    decode = DetectorDecode(spec("udp" if codec == "udp" else "msra"), codec, kernel=kernel)
    joints, confidence = (v.numpy() for v in decode(heatmaps))
    present = (heatmaps.amax((2, 3)) > 0).numpy()
    compared = present if codec == "msra" else present & goldens[f"{key}_stable"]
    assert compared.mean() > 0.9
    np.testing.assert_allclose(joints[compared], goldens[f"{key}_keypoints"][compared], atol=atol, rtol=0)
    np.testing.assert_allclose(
        joints[present], goldens[f"{key}_keypoints"][present], atol=0.01, rtol=0
    )  # flat ones too
    np.testing.assert_array_equal(confidence, np.clip(goldens[f"{key}_scores"], 0, 1))
    assert np.isnan(joints[~present]).all()
    assert not confidence[~present].any()


@pytest.mark.parametrize("beta", [1, 50])
def test_softargmax_answers_as_mmposes(beta, goldens):
    joints, _ = DetectorDecode(spec("msra"), "softargmax", temperature=beta)(heatmaps_of(goldens))
    np.testing.assert_allclose(joints, goldens[f"soft_beta{beta}_keypoints"], atol=1e-3, rtol=0)


def simcc_of(goldens):
    return tuple(torch.from_numpy(goldens[f"simcc_{axis}_q"].astype(np.float32) / 256) for axis in "xy")


def test_simcc_answers_as_mmposes(goldens):
    joints, confidence = (v.numpy() for v in DetectorDecode(spec("simcc"))(*simcc_of(goldens)))
    scores = goldens["simcc_scores"]
    present = scores > 0
    assert 0 < (~present).sum() < 50
    np.testing.assert_array_equal(joints[present], goldens["simcc_keypoints"][present])
    np.testing.assert_array_equal(confidence, np.clip(scores, 0, 1))
    assert np.isnan(joints[~present]).all()


def test_the_score_rule_of_simcc_is_the_callers(goldens):
    x, y = simcc_of(goldens)
    _, least = SimccDecode(score="min")(x, y)
    _, mean = SimccDecode(score="mean")(x, y)
    np.testing.assert_allclose(mean, ((x.amax(-1) + y.amax(-1)) / 2).clamp(0, 1), atol=1e-6)
    assert (mean >= least).all()
    assert (mean > least + 0.01).any()


@pytest.mark.parametrize("name", FILES)
def test_a_detectors_recorded_outputs_decode_as_mmposes(name, reference):
    size = "256x256" if FILES[name].startswith("hand") else "256x192"
    golden = reference.arrays(f"{FILES[name]}_{size}_golden")
    detector = blank(name, tuple(map(int, size.split("x"))), "hand21" if size == "256x256" else "coco17")
    outputs = [torch.from_numpy(golden[k]) for k in detector.spec.output_names]
    joints, confidence = DetectorDecode(detector.spec, "msra")(*outputs)
    present = golden["scores"] > 0
    np.testing.assert_allclose(joints[present], golden["keypoints"][present], atol=1e-4)
    np.testing.assert_array_equal(confidence, np.clip(golden["scores"], 0, 1))


def blobs(joints):
    """Gaussian peaks of sigma 2 at joints [B, N, 2]: [B, N, 64, 48]."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    at_x, at_y = (joints[..., i, None, None] for i in (0, 1))
    return torch.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / 8)


CODECS = ("argmax", "softargmax", "softargmax-sum", "msra", "dark", "udp")


@pytest.mark.parametrize("codec", CODECS)
def test_a_broken_map_is_missing_and_its_neighbours_are_not(codec):
    maps = blobs(torch.tensor([20.3, 31.6]).expand(2, 17, 2))
    maps[0, 3, 5, 5], maps[0, 4, 5, 5], maps[1, 2] = torch.nan, torch.inf, torch.nan
    joints, confidence = DetectorDecode(spec("msra"), codec)(maps)
    broken = torch.zeros((2, 17), dtype=torch.bool)
    broken[0, 3] = broken[0, 4] = broken[1, 2] = True
    assert torch.isnan(joints[broken]).all()
    assert (confidence[broken] == 0).all()
    off = (joints[~broken] / 4 - torch.tensor([20.3, 31.6])).abs().max()
    assert off < {"msra": 0.25, "argmax": 0.5, "softargmax": 0.25}.get(codec, 0.02)


@pytest.mark.parametrize("codec", ["msra", "dark", "udp"])
def test_small_and_flat_maps_keep_their_peak(codec):
    for shape in ((2, 3, 1, 1), (1, 2, 2, 3), (0, 5, 8, 8)):
        joints, confidence = PeakDecode(codec)(torch.full(shape, 0.5))
        assert joints.shape == (*shape[:2], 2)
        assert torch.isfinite(joints).all()
        assert (confidence == 0.5).all()
    half, _ = PeakDecode(codec)(torch.rand((1, 2, 16, 16), generator=torch.Generator().manual_seed(0)).half())
    assert half.dtype == torch.float32


def test_unusable_options_are_refused():
    with pytest.raises(
        InputError, match="unknown codec 'megvii': use softargmax, softargmax-sum, argmax, msra, dark, udp"
    ):
        DetectorDecode(spec("msra"), "megvii")
    with pytest.raises(InputError, match="unknown codec 'argmax': use msra, dark, udp"):
        PeakDecode("argmax")
    for kernel in (10, 7, 65):
        with pytest.raises(InputError, match=f"expected an odd blur kernel from 9 to 63, got {kernel}"):
            PeakDecode("dark", kernel)
    with pytest.raises(InputError, match="unknown score rule 'max': use min or mean"):
        SimccDecode(score="max")
    with pytest.raises(InputError, match="expected a split ratio above 0, got 0"):
        SimccDecode(0)


@pytest.mark.parametrize("codec", ["msra", "dark", "udp", "simcc"])
def test_decoding_in_onnx_answers_as_in_pytorch(codec):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    generator = torch.Generator().manual_seed(0)
    simcc = codec == "simcc"
    decode = SimccDecode() if simcc else PeakDecode(codec)

    def inputs(batch):
        if simcc:
            made = [torch.rand((batch, 17, bins), generator=generator) - 0.2 for bins in (384, 512)]
        else:
            made = [blobs(torch.rand((batch, 17, 2), generator=generator) * 50 - 2)]
        made[0][:1, 0], made[0][:1, 1] = -1.0, torch.nan
        return made

    names = ["simcc_x", "simcc_y"] if simcc else ["heatmaps"]
    free = torch.export.Dim.DYNAMIC
    shapes = [{0: free} for _ in names]
    proto, _ = onnx_graph(decode, inputs(2), names, ["joints", "confidence"], shapes, {0: "B"})
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for batch in (0, 1, 3):
        given = inputs(batch)
        got = session.run(None, {n: v.numpy() for n, v in zip(names, given, strict=True)})
        for ours, wanted in zip(got, decode(*given), strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-3)
