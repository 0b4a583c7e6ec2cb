# SPDX-License-Identifier: Apache-2.0
"""What an artefact with input ``image`` holds in front of PORT: the detector, its joints, its scale, its pixels.

Plain frozen data, checked when made, written into sidecars. May use: errors, NumPy. Test: tests/test_detector_info.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError, ModelFileError

HeadKind = Literal["heatmaps", "simcc"]
Layout = Literal["nchw", "nhwc"]
ImageType = Literal["float32", "float16", "uint8"]
Scale = Literal["half-pixel", "corner", "udp"]
Values = Literal["unit", "byte", "imagenet"]
ScoreRule = Literal["min", "mean"]
Arithmetic = Literal["fp32", "fp16", "bf16"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 8192


@dataclass(frozen=True)
class DetectorInfo:
    """A detector inside an artefact.

    Attributes:
        name: Its file's stem, or its name in the family of detectors.
        sha256: Of the file that it was read from.
        outputs: Names of the tensors that were joined to PORT.
        head: ``heatmaps`` or ``simcc`` (two outputs: one vector for x and one for y).
        map_layout: ``nchw`` for [B, M, H, W], ``nhwc`` for [B, H, W, M]; SimCC is always ``nchw`` ([B, M, W]).
        map_size: (H, W) of the heatmaps, or the lengths of SimCC's (y, x).
        joints: Its joint names, in channel order; M of them.
        order: For each joint of the skeleton its channel, -1 where the detector has none.
        scale: Heatmap to crop pixels. With f = crop / map, ``half-pixel``: (x + 0.5) f - 0.5, where pixel areas line
            up; ``corner``: x f, as MMPose's MSRA targets have it; ``udp``: x (crop - 1) / (map - 1).
        precision: Of its arithmetic: ``fp16`` where its weights are.
        quantized: ``int8`` or ``fp8`` where its convolutions are; empty elsewhere.
        score: How SimCC's two peaks become one confidence.
        image_layout: Of the crops.
        image_type: dtype of the crops; a ``uint8`` graph turns them into ``values`` itself.
        image_size: (H, W) of the crops.
        values: What the detector itself reads: RGB in 0..1 (``unit``), 0..255 (``byte``), or 0..1 less ImageNet's
            mean over its standard deviation (``imagenet``).
        value_range: Least and largest heatmap value seen while it was verified.
    """

    name: str
    sha256: str
    outputs: tuple[str, ...]
    head: HeadKind
    map_layout: Layout
    map_size: tuple[int, int]
    joints: tuple[str, ...]
    order: tuple[int, ...]
    scale: Scale
    image_layout: Layout
    image_type: ImageType
    image_size: tuple[int, int]
    values: Values
    precision: Arithmetic = "fp32"
    quantized: str = ""
    score: ScoreRule = "min"
    value_range: tuple[float, float] = (math.nan, math.nan)

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"unknown {name} {getattr(self, name)!r}: use one of {', '.join(get_args(kind))}")
        for name in ("outputs", "map_size", "joints", "order", "image_size", "value_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        count = len(self.joints)
        sizes = (*self.map_size, *self.image_size)
        if len(sizes) != 4 or not all(isinstance(v, int) and 1 <= v <= MAX_SIDE for v in sizes):
            raise InputError(f"expected heatmap and image sizes H,W from 1 to {MAX_SIDE}, got {sizes}")
        if not all(isinstance(i, int) and -1 <= i < count for i in self.order) or len(self.value_range) != 2:
            raise InputError(f"expected channels from -1 to {count - 1}, got {self.order}")
        if len(self.outputs) != (2 if self.head == "simcc" else 1) or not all(
            isinstance(v, str) for v in (*self.outputs, *self.joints, self.name, self.sha256)
        ):
            raise InputError(f"expected one heatmap output or two of SimCC, got {self.outputs!r}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one crop: [3, H, W] or [H, W, 3]."""
        height, width = self.image_size
        return (3, height, width) if self.image_layout == "nchw" else (height, width, 3)

    @property
    def channels(self) -> tuple[int, ...]:
        """The detector's channels that are used, in the skeleton's order."""
        return tuple(i for i in self.order if i >= 0)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Joints of the detector that the skeleton does not have."""
        return tuple(name for i, name in enumerate(self.joints) if i not in self.order)

    def to_crop(self) -> NDArray[np.float64]:
        """[2, 3]: heatmap (or SimCC) pixels to crop pixels."""
        matrix = np.zeros((2, 3))
        for axis, (there, here) in enumerate(zip(self.image_size[::-1], self.map_size[::-1], strict=True)):
            factor = (there - 1) / max(here - 1, 1) if self.scale == "udp" else there / here
            matrix[axis, axis] = factor
            matrix[axis, 2] = 0.5 * factor - 0.5 if self.scale == "half-pixel" else 0.0
        return matrix

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        values["value_range"] = [v if math.isfinite(v) else None for v in self.value_range]
        return values

    @classmethod
    def from_json(cls, data: Any) -> DetectorInfo:
        """Read what `to_json` wrote; what older files lack has its default.

        Raises:
            ModelFileError: A field is missing or has an unusable value.
        """
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        if not isinstance(data, Mapping) or not needed <= set(data) <= {f.name for f in fields(cls)}:
            raise ModelFileError("the sidecar does not describe its detector: export the model again")
        try:
            given = dict(data)
            seen = given.get("value_range", (None, None))
            given["value_range"] = tuple(math.nan if v is None else float(v) for v in seen)
            return cls(**given)
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"the sidecar's detector is unusable ({error}): export the model again") from error


_CHOICES: Mapping[str, Any] = {
    "head": HeadKind,
    "map_layout": Layout,
    "scale": Scale,
    "image_layout": Layout,
    "image_type": ImageType,
    "values": Values,
    "precision": Arithmetic,
    "score": ScoreRule,
}


def prepare(images: NDArray[np.uint8], info: DetectorInfo) -> NDArray[Any]:
    """RGB crops as the graph takes them.

    Args:
        images: [B, H, W, 3] uint8, of the size that the graph takes.
        info: What it takes.

    Returns:
        [B, 3, H, W] or [B, H, W, 3] in the graph's dtype, C-contiguous.
    """
    laid = images if info.image_layout == "nhwc" else images.transpose(0, 3, 1, 2)
    if info.image_type == "uint8":
        return np.ascontiguousarray(laid)
    values = np.array(laid, np.float32, order="C")
    if info.values != "byte":
        values *= np.float32(1 / 255)
    if info.values == "imagenet":
        shape = (1, 1, 1, 3) if info.image_layout == "nhwc" else (1, 3, 1, 1)
        values -= np.array(IMAGENET_MEAN, np.float32).reshape(shape)
        values /= np.array(IMAGENET_STD, np.float32).reshape(shape)
    return values.astype(info.image_type, copy=False)
