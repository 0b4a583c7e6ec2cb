# SPDX-License-Identifier: Apache-2.0
"""Which of a detector's outputs are heatmaps (or SimCC's two vectors), and how they are laid out.

Shapes are read off what the detector answers, not off what its file declares. May use: options, source, detector_info,
backends.onnxruntime_, errors, NumPy. Test: tests/test_export_detector.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.detector_info import HeadKind, Layout
from port_deploy.errors import InputError
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.detector.source import Source

Outputs = Mapping[str, NDArray[Any]]
MIN_SIDE = 4
"""A heatmap of fewer pixels on a side is no heatmap."""


@dataclass(frozen=True)
class Head:
    """The outputs that PORT is joined to.

    Attributes:
        kind: ``heatmaps`` or ``simcc``.
        outputs: Their names; of SimCC x, then y.
        layout: Of heatmaps.
        map_size: (H, W) of the heatmaps, or the lengths of SimCC's (y, x).
    """

    kind: HeadKind
    outputs: tuple[str, ...]
    layout: Layout
    map_size: tuple[int, int]


def find_head(outputs: Outputs, source: Source, options: DetectorOptions, names: Sequence[str] | None) -> Head:
    """Find the head.

    Args:
        outputs: What the detector answered for B images, by name.
        source: The detector.
        options: What was said about it.
        names: Its joint names in channel order.

    Raises:
        InputError: There are no heatmaps, several, or they do not fit names or image; the message says what to add.
    """
    given = options.outputs
    unknown = [n for n in given if n not in outputs]
    if unknown:
        raise InputError(f"detector {source.name} has no output {', '.join(unknown)}: it has {_listed(outputs)}")
    chosen = {n: outputs[n] for n in given} if given else dict(outputs)
    maps = [n for n, a in chosen.items() if a.ndim == 4 and a.dtype.kind == "f" and _is_map(a.shape)]
    vectors = [n for n, a in chosen.items() if a.ndim == 3 and a.dtype.kind == "f" and a.shape[2] >= MIN_SIDE]
    if not maps and len(vectors) < 2:
        raise InputError(
            f"detector {source.name} has no heatmaps: expected an output [B, joints, H, W] or SimCC's two "
            f"[B, joints, W], it has {_listed(chosen)}: export it without its decoding, or refine its joints with "
            "port-export MODEL --onnx --input joints"
        )
    if names is None:
        raise InputError(
            f"detector {source.name} does not name its joints, and {_listed({n: outputs[n] for n in maps or vectors})} "
            "could be in any order: add --detector-joints with a skeleton's name, a JSON file or names with commas"
        )
    if maps:
        return _heatmaps({n: outputs[n].shape for n in maps}, source, options, len(names))
    return _simcc({n: outputs[n].shape for n in vectors}, source, options, len(names))


def _is_map(shape: tuple[int, ...]) -> bool:
    return min(shape[2:]) >= MIN_SIDE or min(shape[1:3]) >= MIN_SIDE


def _listed(outputs: Outputs) -> str:
    return ", ".join(f"{n} {['B', *a.shape[1:]]}".replace("'", "") for n, a in outputs.items()) or "no output"


def _heatmaps(shapes: Mapping[str, tuple[int, ...]], source: Source, options: DetectorOptions, joints: int) -> Head:
    found: list[Head] = []
    for name, (_, a, b, c) in shapes.items():
        layouts: list[tuple[Layout, int, tuple[int, int]]] = [("nchw", a, (b, c)), ("nhwc", c, (a, b))]
        for layout, channels, size in layouts:
            if channels == joints and min(size) >= MIN_SIDE and options.layout in (None, layout):
                found.append(Head("heatmaps", (name,), layout, size))
    shown = ", ".join(f"{n} {['B', *s[1:]]}".replace("'", "") for n, s in shapes.items())
    if not found:
        wanted = {"nchw": f"[B, {joints}, H, W]", "nhwc": f"[B, H, W, {joints}]"}
        expected = wanted[options.layout] if options.layout else " or ".join(wanted.values())
        raise InputError(
            f"expected heatmaps {expected} of detector {source.name} for its {joints} joint names, got {shown}: "
            "correct --detector-joints, --detector-layout or --detector-output"
        )
    if len({h.outputs for h in found}) > 1:
        raise InputError(f"detector {source.name} has several heatmap outputs ({shown}): choose with --detector-output")
    if len(found) > 1:
        raise InputError(f"heatmaps {shown} of detector {source.name} could be laid out either way: "
                         "add --detector-layout nchw or nhwc")  # fmt: skip
    _check_shape(found[0], source)
    return found[0]


def _check_shape(head: Head, source: Source) -> None:
    """Heatmaps as wide as an image that is high, and the other way round, are swapped."""
    (height, width), (tall, wide) = head.map_size, source.size
    fits, swapped = abs(width * tall - height * wide), abs(height * tall - width * wide)
    if swapped < fits and swapped * 20 <= width * tall:
        raise InputError(
            f"heatmaps of {height} x {width} (H x W) do not lie in images of {tall} x {wide}: height and width of "
            f"detector {source.name} are swapped, so transpose its output, or set --detector-layout"
        )


def _simcc(shapes: Mapping[str, tuple[int, ...]], source: Source, options: DetectorOptions, joints: int) -> Head:
    shown = ", ".join(f"{n} {['B', *s[1:]]}".replace("'", "") for n, s in shapes.items())
    fitting = [n for n, s in shapes.items() if s[1] == joints]
    if len(fitting) != 2:
        raise InputError(
            f"expected SimCC outputs [B, {joints}, W] for x and y of detector {source.name}, got {shown}: correct "
            "--detector-joints, or choose two with --detector-output X,Y"
        )
    x, y = options.outputs or _ordered(fitting, shapes, source, shown)
    length_x, length_y = shapes[x][2], shapes[y][2]
    if abs(length_x * source.size[0] - length_y * source.size[1]) * 50 > length_x * source.size[0]:
        raise InputError(
            f"SimCC vectors of {length_x} (x) and {length_y} (y) bins do not fit images of {source.size[0]} x "
            f"{source.size[1]} (H x W): swap --detector-output {x},{y}"
        )
    return Head("simcc", (x, y), "nchw", (length_y, length_x))


def _ordered(
    names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], source: Source, shown: str
) -> tuple[str, str]:
    by_name = [[n for n in names if n.lower().rstrip("0123456789").endswith(axis)] for axis in ("x", "y")]
    if [len(n) for n in by_name] == [1, 1] and by_name[0] != by_name[1]:
        return by_name[0][0], by_name[1][0]
    height, width = source.size
    a, b = names
    straight = abs(shapes[a][2] * height - shapes[b][2] * width)
    crossed = abs(shapes[b][2] * height - shapes[a][2] * width)
    if straight == crossed:
        raise InputError(f"SimCC outputs {shown} of detector {source.name}: say which is x with --detector-output X,Y")
    return (a, b) if straight < crossed else (b, a)


class Alone:
    """The detector by itself in ONNX Runtime.

    Args:
        source: The detector.
    """

    def __init__(self, source: Source) -> None:
        from port_deploy.backends.onnxruntime_ import open_session

        self.name, self.image = source.name, source.image
        self.session = open_session(source.proto.SerializeToString(), f"detector {source.name}")
        self.names = [o.name for o in self.session.get_outputs()]

    def __call__(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every output for images in the detector's own layout and dtype.

        Raises:
            InputError: It does not run, or answers another batch than it was given.
        """
        batch = len(images)
        try:
            answers = self.session.run(None, {self.image: images})
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"detector {self.name} does not run on a batch of {batch} ({reason}): if it runs on one image alone, a "
                "fixed batch is inside it: export it with a dynamic batch"
            ) from error
        result = dict(zip(self.names, answers, strict=True))
        for name, array in result.items():
            if array.ndim in (3, 4) and array.shape[0] != batch:
                raise InputError(
                    f"output {name} of detector {self.name} is {list(array.shape)} for a batch of {batch}: "
                    "a fixed batch is inside it, so export it with a dynamic batch"
                )
        return result


def raw_images(images: NDArray[np.uint8], source: Source, values: str) -> NDArray[Any]:
    """Photographs [B, H, W, 3] as the detector alone takes them, computed apart from the graph (see `prepare`)."""
    laid = images if source.layout == "nhwc" else images.transpose(0, 3, 1, 2)
    if source.dtype == "uint8":
        return np.ascontiguousarray(laid)
    scaled = laid.astype(np.float64)
    if values != "byte":
        scaled /= 255
    if values == "imagenet":
        axis = (1, 1, 1, 3) if source.layout == "nhwc" else (1, 3, 1, 1)
        mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
        scaled = (scaled - mean.reshape(axis)) / deviation.reshape(axis)
    return np.ascontiguousarray(scaled, dtype=source.dtype)
