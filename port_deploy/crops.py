# SPDX-License-Identifier: Apache-2.0
"""Photographs to the crops that a detector takes, and the way back: boxes, regions, pixels.

A region is the part of the picture that a crop shows: the box about its centre, widened by a padding and brought to the
crop's proportions. Regions are what `Refiner` takes as ``boxes=`` behind the detector's heatmaps (`heatmap_to_image` is
the same as ``affine=``). NumPy alone; whoever has OpenCV may warp with `image_to_crop` instead of `cut_crops`.
May use: arrays, errors, NumPy. Test: tests/test_crops.py holds it against MMPose's recorded answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.arrays import affine_of_boxes, check_boxes, host_view
from port_deploy.errors import InputError

PADDING = 1.25
"""Of MMPose's detectors: the region is a quarter wider and higher than the box."""


def crop_regions(boxes: Any, size: tuple[int, int], padding: float = PADDING) -> NDArray[np.float32]:
    """The region of the picture that the crop of each box shows.

    Args:
        boxes: [B, 4] x1, y1, x2, y2 in image pixels, x2 > x1 and y2 > y1; ints or floats.
        size: (H, W) of the crops, e.g. `DetectorSpec.input_size`.
        padding: Factor on the box's width and height.

    Returns:
        [B, 4] x1, y1, x2, y2 in image pixels, with the proportions of ``size`` about the boxes' centres.

    Raises:
        InputError: An argument does not fit, or a box is empty; the message names the rows.
    """
    height, width = _checked_size(size)
    if not 0 < padding < float("inf"):
        raise InputError(f"expected a padding above 0, got {padding!r}")
    corners = check_boxes(boxes, "boxes")
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    extent = (corners[:, 2:] - corners[:, :2]) * padding
    wide = np.maximum(extent[:, 0], extent[:, 1] * width / height)
    half = np.stack([wide, wide * height / width], 1) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def image_to_crop(regions: Any, size: tuple[int, int], udp: bool = False) -> NDArray[np.float32]:
    """[B, 2, 3] that takes image pixels to crop pixels: the matrix that ``cv2.warpAffine`` cuts the crop with.

    Args:
        regions: [B, 4] as `crop_regions` gives them.
        size: (H, W) of the crops.
        udp: The detector was trained with unbiased data processing (``DetectorSpec.target == "udp"``): the crop's first
            and last pixel lie on the region's edges, not a pixel short of the last one.

    Raises:
        InputError: An argument does not fit.
    """
    height, width = _checked_size(size)
    corners = check_boxes(regions, "regions")
    scale = np.array([width - udp, height - udp]) / (corners[:, 2:] - corners[:, :2])
    result = np.zeros((len(corners), 2, 3), np.float32)
    result[:, (0, 1), (0, 1)] = scale
    result[:, :, 2] = -corners[:, :2] * scale
    return result


def crop_to_image(regions: Any, size: tuple[int, int]) -> NDArray[np.float32]:
    """[B, 2, 3] that takes decoded crop pixels (`DetectorDecode`, SimCC) to image pixels.

    Args:
        regions: [B, 4] as `crop_regions` gives them.
        size: (H, W) of the crops.

    Raises:
        InputError: An argument does not fit.
    """
    height, width = _checked_size(size)
    corners = check_boxes(regions, "regions")
    return affine_of_boxes(corners, len(corners), height, width, udp=False)


def heatmap_to_image(regions: Any, heatmap_size: tuple[int, int], udp: bool = False) -> NDArray[np.float32]:
    """[B, 2, 3] that takes heatmap pixels to image pixels: the ``affine=`` of `Refiner`, and an artefact's input.

    Args:
        regions: [B, 4] as `crop_regions` gives them.
        heatmap_size: (H, W) of the heatmaps.
        udp: As for `image_to_crop`.

    Raises:
        InputError: An argument does not fit.
    """
    height, width = _checked_size(heatmap_size)
    corners = check_boxes(regions, "regions")
    return affine_of_boxes(corners, len(corners), height, width, udp)


def cut_crops(image: Any, regions: Any, size: tuple[int, int], udp: bool = False) -> NDArray[np.uint8]:
    """Cut regions out of a picture, bilinear, black beyond its edges.

    Args:
        image: [H, W, 3] uint8, RGB (OpenCV reads BGR: pass ``image[..., ::-1]``).
        regions: [B, 4] as `crop_regions` gives them.
        size: (H, W) of the crops.
        udp: As for `image_to_crop`.

    Returns:
        Crops uint8 [B, H, W, 3], RGB, as `Detector` and exported detectors take them.

    Raises:
        InputError: An argument does not fit.
    """
    pixels, _ = host_view(image, "image")
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(f"expected image [H, W, 3] uint8, RGB, got {pixels.dtype} {list(pixels.shape)}")
    matrices = image_to_crop(regions, size, udp).astype(np.float64)
    height, width = size
    crops = np.empty((len(matrices), height, width, 3), np.uint8)
    for crop, matrix in zip(crops, matrices, strict=True):
        columns, right = _samples(width, matrix[0, 0], matrix[0, 2], pixels.shape[1])
        rows, below = _samples(height, matrix[1, 1], matrix[1, 2], pixels.shape[0])
        total = np.zeros((height, width, 3), np.float32)
        for row, row_weight in zip(rows, below, strict=True):
            for column, column_weight in zip(columns, right, strict=True):
                weight = row_weight[:, None, None] * column_weight[None, :, None]
                total += pixels[row[:, None], column[None, :]] * weight
        np.rint(total, out=total)
        crop[:] = total
    return crops


def _samples(count: int, scale: float, offset: float, limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The two picture pixels [2, count] beside each crop pixel of an axis, and their weights; 0 beyond the picture."""
    place = np.clip((np.arange(count) - offset) / scale, -2.0, limit + 1.0)
    first = np.floor(place)
    part = place - first
    index = np.stack([first, first + 1]).astype(np.int64)
    weights = np.stack([1 - part, part]).astype(np.float32)
    weights[(index < 0) | (index >= limit)] = 0
    return np.clip(index, 0, limit - 1), weights


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2 or not all(isinstance(v, (int, np.integer)) and 2 <= v <= 1 << 14 for v in size):
        raise InputError(f"expected a crop size (H, W) of whole numbers from 2 to {1 << 14}, got {size!r}")
    return int(size[0]), int(size[1])
