# SPDX-License-Identifier: Apache-2.0
"""Boxes to regions, regions to crops and back, against MMPose's recorded answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from port_deploy import Refiner
from port_deploy.crops import crop_regions, crop_to_image, cut_crops, heatmap_to_image, image_to_crop
from port_deploy.errors import InputError


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data("reference/mmpose")


def apply(affine, points):
    return np.asarray(points) @ affine[:, :2].T + affine[:, 2]


def test_regions_and_both_ways_are_mmposes(folder):
    boxes = np.load(folder / "preprocess_goldens.npz")["bboxes_xyxy"]
    rows = json.loads((folder / "preprocess_goldens.json").read_text("utf-8"))["rows"]
    assert {r["use_udp"] for r in rows} == {True, False}
    for row in rows:
        size = row["input_size"][::-1]
        (region,) = regions = crop_regions(boxes[row["bbox"], None], size, row["padding"])
        np.testing.assert_allclose((region[:2] + region[2:]) / 2, row["input_center"], atol=1e-4)
        np.testing.assert_allclose(region[2:] - region[:2], row["input_scale"], atol=1e-4)
        (there,) = image_to_crop(regions, size, row["use_udp"])
        np.testing.assert_allclose(apply(there, row["keypoints_in"]), row["keypoints_in_crop"], atol=2e-3)
        (back,) = crop_to_image(regions, size)
        np.testing.assert_allclose(apply(back, row["crop_points"]), row["crop_points_in_image"], atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "udp"])
def test_crops_are_opencvs_up_to_its_fixed_point(kind, folder):
    arrays = np.load(folder / "preprocess_goldens.npz")
    image = arrays["image_bgr"][..., ::-1]
    regions = crop_regions(arrays["bboxes_xyxy"][:2], (256, 192))
    crops = cut_crops(image, regions, (256, 192), udp=kind == "udp")
    assert (crops.shape, crops.dtype) == ((2, 256, 192, 3), np.uint8)
    difference = np.abs(crops[0].astype(int) - arrays[f"crop_{kind}_box0"][..., ::-1])
    assert difference.max() <= 4  # OpenCV rounds places to a 32nd of a pixel
    assert difference.mean() < 0.5


def test_a_crop_of_whole_pixels_is_a_copy_and_black_beyond_the_edges():
    image = np.random.default_rng(0).integers(1, 256, (40, 50, 3), dtype=np.uint8)
    (crop,) = cut_crops(image, np.float32([[10, 4, 42, 36]]), (32, 32))
    assert np.array_equal(crop, image[4:36, 10:42])
    (crop,) = cut_crops(image, np.float32([[-16, 24, 16, 56]]), (32, 32))
    assert np.array_equal(crop[:16, 16:], image[24:, :16])
    assert not crop[16:].any()
    assert not crop[:, :16].any()
    (far,) = cut_crops(image, np.float32([[1e6, 1e6, 1e6 + 32, 1e6 + 32]]), (32, 32))
    assert not far.any()
    assert cut_crops(image, np.zeros((0, 4), np.float32), (32, 32)).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("udp", [False, True])
def test_a_joint_goes_into_the_crop_and_comes_back_through_the_refiner(udp, make_model):
    refiner = Refiner.load(make_model(), device="cpu")
    regions = crop_regions(np.float32([[100, 40, 180, 240]]), (256, 256))
    joints = np.random.default_rng(0).uniform((80, 60), (200, 220), (21, 2))
    in_crop = apply(image_to_crop(regions, (256, 256), udp)[0], joints)
    places = np.rint(in_crop * (63 / 255 if udp else 0.25)).astype(int)
    heatmaps = np.zeros((1, 21, 64, 64), np.float32)
    heatmaps[0, np.arange(21), places[:, 1], places[:, 0]] = 1
    out = refiner(heatmaps, boxes=regions, udp=udp, threshold=0.0)
    step = (regions[0, 2] - regions[0, 0]) / (63 if udp else 64)
    assert np.abs(out.joints[0] - joints).max() <= step / 2 + 1e-3
    affine = heatmap_to_image(regions, (64, 64), udp)
    np.testing.assert_allclose(out.joints[0], apply(affine[0], places), atol=1e-3)
    np.testing.assert_array_equal(refiner(heatmaps, affine=affine, threshold=0.0).joints, out.joints)


def test_bad_arguments_are_refused_in_one_line():
    image, region = np.zeros((8, 8, 3), np.uint8), np.float32([[0, 0, 8, 8]])
    with pytest.raises(InputError, match=r"expected boxes \[B, 4\] as x1, y1, x2, y2, got float64 \[4\]"):
        crop_regions(np.zeros(4), (256, 192))
    with pytest.raises(InputError, match="with x2 > x1 and y2 > y1, not so in rows 1, 2: leave those out"):
        crop_regions(np.float32([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, np.nan, 1]]), (256, 192))
    with pytest.raises(InputError, match="expected a padding above 0, got 0"):
        crop_regions(region, (256, 192), padding=0)
    for size in ((256,), (256.0, 192), (1, 5)):
        with pytest.raises(InputError, match=r"expected a crop size \(H, W\) of whole numbers from 2 to 16384"):
            crop_regions(region, size)
    for bad in (image[0], image[..., :1], image.astype(np.float32), image[:0]):
        with pytest.raises(InputError, match=r"expected image \[H, W, 3\] uint8, RGB, got "):
            cut_crops(bad, region, (32, 32))
