# SPDX-License-Identifier: Apache-2.0
"""config.py: what a specification takes, and that it survives its JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import random_model

from port_deploy import InputError, ModelFileError
from port_deploy.config import ModelSpec, PortConfig, check_threshold
from port_deploy.skeleton import Skeleton

SPEC = random_model("soft", "mpii16", training={"data": ["a"]}, metrics={"epe": 1.5}).spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "expected width to be a whole number from 8 to 512, got 0"),
        ({"width": 12}, "multiple of 8"),
        ({"width": True}, "width"),
        ({"width": 64.0}, "width"),
        ({"head_dim": 12}, "head_dim to be a multiple of 8"),
        ({"layers": 33}, "layers"),
        ({"heads": "4"}, "heads"),
        ({"se_reduction": 3}, "expected se_reduction to divide width 64, got 3"),
        ({"hops": ()}, "hops"),
        ({"hops": (1, 1)}, "hops"),
        ({"hops": (0, 1, 2, 3, 4)}, "hops"),
        ({"hops": (9,)}, "hops"),
        ({"attention_scale": "depth"}, "attention_scale"),
        ({"input_channels": 1}, "input_channels"),
        ({"masked_coordinates": "drop"}, "masked_coordinates"),
        ({"residual": 1}, "residual"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    ],
)
def test_unusable_shapes_of_a_network_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PortConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "centroid"}, "unknown codec"),
        ({"frame": "camera"}, "unknown frame"),
        ({"refine": "some"}, "use masked or all"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"frame_size": (0, 1)}, "frame_size"),
        ({"frame_size": (1, 2, 3)}, "frame_size"),
        ({"min_visible": 1}, "min_visible"),
        ({"max_masked": -1}, "max_masked"),
        ({"fusion": 1.1}, "fusion"),
        ({"confidence_divisor": 0}, "confidence_divisor"),
    ],
)
def test_unusable_specifications_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelSpec("x", Skeleton.load("hand21"), PortConfig(), **changes)


def test_it_survives_its_json() -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize("data", [None, [], "x", {}, {"format_version": 1}, {"format_version": True}])
def test_what_is_no_specification_is_refused(data: Any) -> None:
    with pytest.raises(ModelFileError):
        ModelSpec.from_json(data)


def test_a_newer_format_says_what_to_do() -> None:
    with pytest.raises(ModelFileError, match=r"expected specification format 1 to 1, got 2: upgrade port-deploy"):
        ModelSpec.from_json(SPEC.to_json() | {"format_version": 2})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ModelFileError, match=r"unknown fields \['colour'\]"):
        ModelSpec.from_json(SPEC.to_json() | {"colour": "blue"})


def test_presets_are_what_the_notes_say() -> None:
    paper, soft = PortConfig.preset("paper"), PortConfig.preset("soft")
    assert (paper.input_channels, paper.residual, paper.mask_embedding) == (2, False, True)
    assert (soft.input_channels, soft.residual, soft.mask_embedding) == (3, True, False)
    with pytest.raises(InputError, match="use one of paper, soft"):
        PortConfig.preset("hard")


@pytest.mark.parametrize("value", [0, 0.5, 3])
def test_thresholds(value: float) -> None:
    assert check_threshold(value) == value


@pytest.mark.parametrize("value", [None, "1", True, -1, float("inf")])
def test_unusable_thresholds(value: Any) -> None:
    with pytest.raises(InputError, match="0 masks nothing"):
        check_threshold(value)


@pytest.mark.parametrize("value", [10**400, "256", None, True, float("nan")])
def test_a_number_that_is_none_is_refused_in_one_line(value):
    skeleton = Skeleton.load("hand21")
    for changes in ({"temperature": value}, {"frame_size": (value, 256.0)}, {"threshold": value}):
        with pytest.raises(InputError, match="expected"):
            ModelSpec("x", skeleton, PortConfig(), **changes)
