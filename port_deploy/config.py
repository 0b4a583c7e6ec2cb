# SPDX-License-Identifier: Apache-2.0
"""What a PORT model is: the network's shape (`PortConfig`, network_config.py) and all around it (`ModelSpec`).

Both are plain frozen data, checked when made, and written as JSON into model files and sidecars. Every backend,
kernel and export honours every field. May use: errors, network_config, skeleton. Test: tests/test_config.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from port_deploy.errors import InputError, ModelFileError
from port_deploy.network_config import PortConfig as PortConfig
from port_deploy.network_config import check
from port_deploy.skeleton import Skeleton

FORMAT_VERSION = 1
"""Version of the specification written into model files; a reader refuses a higher one."""

MAX_COORDINATE = 1e6
"""Pixels. A joint that is not finite or lies beyond this counts as missing: it is rebuilt and never read."""

MIN_SCALE = 1e-3
"""Pixels. Below this spread of the visible joints there is nothing to anchor a frame on: the pose is left alone."""

LOG_STD_RANGE = (-7.0, 0.0)
"""The network's log σ, in units of the frame, is clamped to this by every backend. At the top, a joint as uncertain as
the visible ones are spread, nothing is known but that it belongs to the pose: a linear row overshoots where most of a
pose is hidden, and with 1 instead of 0 held-out hands were less likely (-log L a joint -2.349 against -2.367)."""

CodecName = Literal["softargmax", "softargmax-sum", "argmax"]
"""Codecs of a model: every backend and export decodes with them."""

PeakCodecName = Literal["msra", "dark", "udp"]
"""Codecs of detectors' own evaluations, which start from the largest pixel: in `decode` and nn.detectors."""

FrameName = Literal["visible", "paper"]
RefineMode = Literal["masked", "all"]


@dataclass(frozen=True)
class ModelSpec:
    """Everything beside the weights that decides what a model answers; stored in the model file and in sidecars.

    Attributes:
        name: The model's name, e.g. ``hand21``.
        skeleton: Joints, bones, mirror pairs.
        config: Shape of the network.
        codec: How a heatmap becomes a joint: ``softargmax`` (softmax of temperature * map), ``softargmax-sum`` (map
            clipped at 0 and divided by its sum), ``argmax``. Eq. (1).
        temperature: Factor on the map inside the softmax of ``softargmax``. The default was read off the heatmaps of
            EfficientPose II Lite on 200 labelled photographs, all 2,400 labelled joints, mean error in pixels of the
            46 grid / of the 92 grid: softargmax at 10 3.03 / 7.21, 20 1.18 / 2.37, 30 1.17 / 2.31, **40 1.17 / 2.29**,
            75 1.19 / 2.27, 200 1.21 / 2.27; softargmax-sum 1.36 / 2.69; argmax 1.23 / 2.31. Lower ones pull a weak
            peak towards the middle of the map.
        frame: Coordinates that the network sees: ``visible`` or ``paper`` (nn/line.py defines both).
        frame_size: (width, height) in pixels that the ``paper`` frame divides by.
        threshold: δ, eq. (13): a joint whose confidence is below it is masked.
        threshold_source: How δ was chosen.
        min_visible: With fewer visible joints the pose is returned unchanged.
        max_masked: With more masked joints the pose is returned unchanged.
        refine: Which joints of a refined pose change: the ``masked`` ones or ``all``.
        fusion: Weight of the reconstruction in a changed joint, 0..1; the rest is the detector's joint. Eq. (14) has 1.
        confidence_divisor: Confidence is divided by this and clipped to 0..1 before it enters the network.
        std_scale: Factor on the network's σ, which makes it the error of a certain detector's repairs; of no effect
            without `PortConfig.variance`, and written into files only with it.
        training: What it was trained on and how.
        licence: Licence of the weights, as their data allow.
        metrics: What was measured.
    """

    name: str
    skeleton: Skeleton
    config: PortConfig
    codec: CodecName = "softargmax"
    temperature: float = 40.0
    frame: FrameName = "visible"
    frame_size: tuple[float, float] = (256.0, 256.0)
    threshold: float = 0.3
    threshold_source: str = "fixed"
    min_visible: int = 4
    max_masked: int = 64
    refine: RefineMode = "masked"
    fusion: float = 1.0
    confidence_divisor: float = 1.0
    std_scale: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(len(self.frame_size) == 2 and all(map(_positive, self.frame_size)), "expected frame_size (w, h) > 0")
        object.__setattr__(self, "frame_size", tuple(float(v) for v in self.frame_size))
        check_threshold(self.threshold)
        check(self.codec in get_args(CodecName), f"unknown codec {self.codec!r}: {', '.join(get_args(CodecName))}")
        check(self.frame in get_args(FrameName), f"unknown frame {self.frame!r}: {', '.join(get_args(FrameName))}")
        check(self.refine in get_args(RefineMode), f"unknown refine {self.refine!r}: use masked or all")
        check(_positive(self.temperature), f"expected a positive temperature, got {self.temperature!r}")
        check(_positive(self.confidence_divisor), f"expected confidence_divisor > 0, got {self.confidence_divisor!r}")
        check(_positive(self.std_scale), f"expected std_scale > 0, got {self.std_scale!r}")
        check(
            isinstance(self.min_visible, int) and self.min_visible >= 2,
            f"expected min_visible to be a whole number of at least 2, got {self.min_visible!r}",
        )
        check(
            isinstance(self.max_masked, int) and self.max_masked >= 0,
            f"expected max_masked to be a whole number of at least 0, got {self.max_masked!r}",
        )
        check(
            isinstance(self.fusion, (int, float)) and 0 <= self.fusion <= 1,
            f"expected fusion from 0 to 1, got {self.fusion!r}",
        )

    @property
    def joints(self) -> int:
        """N."""
        return len(self.skeleton.names)

    def to_json(self) -> dict[str, Any]:
        """The specification as plain JSON values, with ``format_version``."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["skeleton"] = self.skeleton.to_json()
        data["config"] = self.config.to_json()
        if not self.config.variance:
            del data["std_scale"]
        data["training"] = dict(self.training)
        data["metrics"] = dict(self.metrics)
        return {"format_version": FORMAT_VERSION, **data}

    @classmethod
    def from_json(cls, data: Any) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            ModelFileError: It is not a specification, is of a newer format, or a field has an unusable value.
        """
        if not isinstance(data, dict) or "format_version" not in data:
            raise ModelFileError("expected a port_deploy specification with format_version: re-export the model")
        version = data["format_version"]
        if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
            raise ModelFileError(
                f"expected specification format 1 to {FORMAT_VERSION}, got {version!r}: upgrade port-deploy"
            )
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known - {"format_version"}
        missing = {"name", "skeleton", "config"} - set(data)
        if unknown or missing:
            raise ModelFileError(
                f"specification has unknown fields {sorted(unknown)} or lacks {sorted(missing)}: re-export the model"
            )
        try:
            values = {k: v for k, v in data.items() if k in known}
            values["skeleton"] = Skeleton.from_json(values["skeleton"])
            values["config"] = PortConfig(**values["config"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"unusable specification: {error}") from error


def _finite(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _positive(value: Any) -> bool:
    return _finite(value) and bool(value > 0)


def check_threshold(value: Any) -> float:
    """δ as a float, or an InputError that says what it must be."""
    if not _finite(value) or value < 0:
        raise InputError(f"expected threshold to be a finite number of at least 0, got {value!r}: 0 masks nothing")
    return float(value)
