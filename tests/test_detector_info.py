# SPDX-License-Identifier: Apache-2.0
"""The description of a detector in a sidecar: there and back, its three scales, and crops as its graph takes them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from port_deploy.detector_info import IMAGENET_MEAN, IMAGENET_STD, DetectorInfo, prepare
from port_deploy.errors import InputError, ModelFileError

INFO = DetectorInfo(
    name="det",
    sha256="0" * 64,
    outputs=("heatmaps",),
    head="heatmaps",
    map_layout="nchw",
    map_size=(24, 16),
    joints=("a", "b", "c"),
    order=(2, -1, 0),
    scale="half-pixel",
    image_layout="nchw",
    image_type="float32",
    image_size=(96, 64),
    values="unit",
)


def test_there_and_back() -> None:
    assert DetectorInfo.from_json(json.loads(json.dumps(INFO.to_json()))).to_json() == INFO.to_json()
    assert INFO.channels == (2, 0)
    assert INFO.dropped == ("b",)
    assert INFO.image_shape == (3, 96, 64)
    assert replace(INFO, image_layout="nhwc").image_shape == (96, 64, 3)


@pytest.mark.parametrize(("scale", "first", "last"), [("half-pixel", 1.5, 61.5), ("corner", 0, 60), ("udp", 0, 63)])
def test_where_the_first_and_last_heatmap_pixel_lie(scale: Any, first: float, last: float) -> None:
    matrix = replace(INFO, scale=scale).to_crop()
    x = matrix[0, :2] @ np.array([[0, 15], [0, 23]]) + matrix[0, 2]
    np.testing.assert_allclose(x, [first, last])
    y = matrix[1, :2] @ np.array([[0, 15], [0, 23]]) + matrix[1, 2]
    np.testing.assert_allclose(y, [first, last + 32])


def test_crops_as_the_graph_takes_them() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), np.uint8)
    unit = prepare(images, INFO)
    assert (unit.dtype, unit.shape, unit.flags.c_contiguous) == (np.float32, (2, 3, 96, 64), True)
    np.testing.assert_allclose(unit, images.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    byte = prepare(images, replace(INFO, values="byte", image_layout="nhwc"))
    np.testing.assert_array_equal(byte, images.astype(np.float32))
    expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(
        prepare(images, replace(INFO, values="imagenet")), expected.transpose(0, 3, 1, 2), atol=1e-5
    )
    assert prepare(images, replace(INFO, values="imagenet", image_type="float16")).dtype == np.float16
    np.testing.assert_array_equal(prepare(images, replace(INFO, image_type="uint8")), images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "middle"}, "unknown scale 'middle': use one of half-pixel, corner, udp"),
        ({"order": (3, 0)}, "expected channels from -1 to 2"),
        ({"outputs": ("x", "y")}, "expected one heatmap output or two of SimCC"),
        ({"image_size": (0, 64)}, "expected heatmap and image sizes"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(INFO, **changes)
    with pytest.raises(ModelFileError, match="the sidecar's detector is unusable"):
        DetectorInfo.from_json(INFO.to_json() | changes)


def test_a_sidecar_with_a_field_too_few() -> None:
    data = INFO.to_json()
    del data["value_range"], data["score"]  # of an older version
    assert DetectorInfo.from_json(data).to_json() == INFO.to_json()
    for broken in ({k: v for k, v in data.items() if k != "scale"}, data | {"later": 1}, None):
        with pytest.raises(ModelFileError, match="does not describe its detector"):
            DetectorInfo.from_json(broken)
