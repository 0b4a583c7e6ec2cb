# SPDX-License-Identifier: Apache-2.0
"""What follows a detector, in PyTorch, against the same written out in NumPy: order, missing joints, scales, SimCC."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from test_detector_info import INFO

from port_deploy.detector_info import DetectorInfo
from port_deploy.skeleton import Skeleton

torch = pytest.importorskip("torch")

from port_deploy.nn.detector_line import DetectedHeatmaps, DetectedSimcc  # noqa: E402
from port_deploy.nn.port import Port  # noqa: E402

MODEL = random_model("soft", layers=1, head_dim=8)
N = 21
THRESHOLD = torch.tensor([0.0])  # nothing is masked but missing joints
RNG = np.random.default_rng(0)


def line(kind: Any, info: DetectorInfo) -> Any:
    port = Port(MODEL.spec.config, MODEL.spec.skeleton)
    port.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in MODEL.tensors.items()})
    return kind(MODEL.spec, port, info).eval().double().requires_grad_(False)


def describe(order: tuple[int, ...], **changes: Any) -> DetectorInfo:
    names = tuple(f"j{i}" for i in range(max(order) + 2))
    return replace(INFO, joints=names, order=order, **changes)


ORDERS = {
    "as they are": tuple(range(N)),
    "reversed, one too many": tuple(range(N, 0, -1)),
    "three missing": (-1, *range(8), -1, *range(8, 18), -1),
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("order", ORDERS)
def test_heatmaps(order: str, layout: Any) -> None:
    info = describe(ORDERS[order], map_layout=layout, scale="udp")
    height, width = info.map_size
    across, down = (RNG.integers(2, side - 2, (3, len(info.joints))) for side in (width, height))
    place = np.stack([across, down], -1)
    maps = np.zeros((3, len(info.joints), height, width))
    for b in range(3):
        for j, (x, y) in enumerate(place[b]):
            maps[b, j, y, x] = 0.5 + 0.01 * j  # so sharp that a soft-argmax answers the pixel itself
    given = torch.from_numpy(maps * 100 if layout == "nchw" else maps.transpose(0, 2, 3, 1) * 100)
    affine = torch.tensor([[[2.0, 0.0, 5.0], [0.0, 3.0, 7.0]]], dtype=torch.float64)
    joints, confidence, mask = (t.numpy() for t in line(DetectedHeatmaps, info)(given, affine, THRESHOLD.double()))
    crop = place * [(64 - 1) / (width - 1), (96 - 1) / (height - 1)]
    for joint, channel in enumerate(info.order):
        assert (mask[:, joint] == (channel < 0)).all()
        if channel < 0:
            assert (confidence[:, joint] == 0).all()
            assert np.isfinite(joints[:, joint]).all()
        else:
            np.testing.assert_allclose(joints[:, joint], crop[:, channel] * [2, 3] + [5, 7], atol=1e-4)
            assert (confidence[:, joint] == 1).all()  # 50 and more, clipped


def test_an_affine_for_each_crop_or_one_for_all() -> None:
    info = describe(ORDERS["as they are"])
    module = line(DetectedHeatmaps, info)
    maps = torch.from_numpy(RNG.random((4, N + 1, *info.map_size)))
    one = torch.from_numpy(RNG.normal(size=(1, 2, 3)))
    for got, wanted in zip(module(maps, one, THRESHOLD), module(maps, one.repeat(4, 1, 1), THRESHOLD), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("score", ["min", "mean"])
def test_simcc(score: Any) -> None:
    info = describe(
        ORDERS["three missing"], head="simcc", outputs=("x", "y"), map_size=(192, 128), score=score, scale="corner"
    )
    x, y = RNG.random((2, 19, 128)), RNG.random((2, 19, 192))
    y[0, 3] = -1.0  # nothing there
    x[1, 4, 7] = np.nan
    affine = torch.eye(2, 3, dtype=torch.float64)[None]
    given = (torch.from_numpy(x), torch.from_numpy(y))
    joints, confidence, mask = (t.numpy() for t in line(DetectedSimcc, info)(*given, affine, THRESHOLD.double()))
    for joint, channel in enumerate(info.order):
        for b in range(2):
            high = x[b, channel].max(), y[b, channel].max()
            peak = min(high) if score == "min" else sum(high) / 2
            there = channel >= 0 and np.isfinite(peak) and peak > 0
            assert mask[b, joint] == (not there), (joint, b)
            assert confidence[b, joint] == pytest.approx(peak if there else 0.0)
            if there:
                np.testing.assert_allclose(joints[b, joint], [x[b, channel].argmax() / 2, y[b, channel].argmax() / 2])


def test_skeletons_of_the_package_are_matched_by_name() -> None:
    from port_deploy.export.detector.joints import channel_order, joint_names

    efficientpose = "head,neck,rsho,relb,rwri,thorax,lsho,lelb,lwri,pelvis,rhip,rkne,rank,lhip,lkne,lank"
    body = random_model("soft", "mpii16", layers=1, head_dim=8).spec
    names = joint_names(efficientpose, {})
    assert names is not None
    order = channel_order(names, body)
    assert order == (12, 11, 10, 13, 14, 15, 9, 5, 1, 0, 4, 3, 2, 6, 7, 8)
    coco = channel_order(Skeleton.load("coco17").names, body)
    assert sum(c < 0 for c in coco) == 4
    assert joint_names(None, {"keypoints": efficientpose}) == names
    assert joint_names(None, {}) is None
