# SPDX-License-Identifier: Apache-2.0
"""The right answers for a graph with a detector: the detector alone, NumPy, then the float64 oracle.

Nothing of `merge` or `nn.detector_line` is used: channels are picked, SimCC is decoded and scales are applied here once
more. May use: head, detector_info, verify, verify_images, backends, NumPy. Test: tests/test_export_detector.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.detector_info import DetectorInfo, prepare
from port_deploy.errors import InputError, missing_extra
from port_deploy.export.detector.head import raw_images
from port_deploy.export.detector.source import Ask, Source
from port_deploy.verify import Problem, solve
from port_deploy.verify_images import ImageProblem, affine_scale, random_affine
from port_deploy.verify_problems import Questions
from port_deploy.weights import Model

BATCH = 8
"""Images that the detector is given at once: bounds memory."""
MAX_PHOTOGRAPHS = 64
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Apart:
    """Detector and oracle, one after the other.

    Args:
        alone: Answers the detector's outputs.
        source: The detector.
        info: Its channels, scale and pixels.
        model: The refiner.
    """

    def __init__(self, alone: Ask, source: Source, info: DetectorInfo, model: Model) -> None:
        self.alone, self.source, self.info, self.model = alone, source, info, model
        self._asked: NDArray[np.uint8] | None = None
        self._answers: list[NDArray[np.float32]] = []

    def problems(self, images: NDArray[np.uint8], seed: int) -> tuple[ImageProblem, ImageProblem]:
        """The same crops [B, H, W, 3] twice: in crop pixels at δ, in image pixels with a third of the joints masked.

        Thresholds lie half-way between two confidences, so that no rounding decides a mask.
        """
        outputs, given = self._outputs(images), prepare(images, self.info)
        answer = self._heatmaps if self.info.head == "heatmaps" else self._simcc
        first = answer(given, outputs, None, 0.3, seed)
        third = self._between(first.confidence, 0.34)
        return (
            answer(given, outputs, None, self._nearest(first.confidence), seed),
            answer(given, outputs, random_affine(len(images), seed), third, seed),
        )

    def detected(self, images: NDArray[np.uint8]) -> ImageProblem:
        """What the detector itself sees on crops [B, H, W, 3]: threshold 0 rebuilds nothing but missing joints."""
        answer = self._heatmaps if self.info.head == "heatmaps" else self._simcc
        return answer(images, self._outputs(images), None, 0.0, 0)

    def _outputs(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        if self._asked is not images:  # once for the same images: a detector takes its time
            raw = raw_images(images, self.source, self.info.values)
            parts = [self.alone(raw[i : i + BATCH]) for i in range(0, len(raw), BATCH)]
            self._answers = [np.concatenate([p[n] for p in parts]).astype(np.float32) for n in self.info.outputs]
            self._asked = images
        return self._answers

    def value_range(self, images: NDArray[np.uint8]) -> tuple[float, float]:
        """Least and largest value of the outputs that are used."""
        found = self._outputs(images)
        return min(float(a.min()) for a in found), max(float(a.max()) for a in found)

    def _between(self, confidence: NDArray[np.float64], share: float) -> float:
        known = np.unique(confidence[:, [i for i, c in enumerate(self.info.order) if c >= 0]])
        at = min(max(int(share * len(known)), 1), len(known) - 1)
        return float(np.float32((known[at - 1] + known[at]) / 2)) if len(known) > 1 else float(known[0]) + 0.1

    def _nearest(self, confidence: NDArray[np.float64]) -> float:
        """The model's own threshold, moved between the two confidences around it."""
        known, delta = np.unique(confidence), self.model.spec.threshold
        at = int(np.searchsorted(known, delta))
        if 0 < at < len(known):
            return float(np.float32((known[at - 1] + known[at]) / 2))
        return delta

    def _heatmaps(
        self,
        images: NDArray[Any],
        outputs: list[NDArray[np.float32]],
        affine: NDArray[np.float32] | None,
        threshold: float,
        seed: int,
    ) -> ImageProblem:
        maps = outputs[0] if self.info.map_layout == "nchw" else outputs[0].transpose(0, 3, 1, 2)
        ordered = np.full((len(maps), len(self.info.order), *self.info.map_size), np.nan, np.float32)
        for joint, channel in enumerate(self.info.order):
            if channel >= 0:
                ordered[:, joint] = maps[:, channel]
        matrix = _chain(affine, self.info.to_crop(), len(maps))
        # solve() wants float32 maps, to find ties; float64 matrices pass through it as they are.
        return self._problem(images, affine, Questions("heatmaps", ordered, matrix, threshold, seed))  # type: ignore[arg-type]

    def _simcc(
        self,
        images: NDArray[Any],
        outputs: list[NDArray[np.float32]],
        affine: NDArray[np.float32] | None,
        threshold: float,
        seed: int,
    ) -> ImageProblem:
        batch, count = len(images), len(self.info.order)
        joints, confidence = np.full((batch, count, 2), np.nan), np.zeros((batch, count), np.float32)
        matrix = _chain(affine, self.info.to_crop(), batch)
        for joint, channel in enumerate(self.info.order):
            if channel < 0:
                continue
            x, y = outputs[0][:, channel], outputs[1][:, channel]
            peak = _peak(x.max(-1), y.max(-1), self.info.score)
            there = np.isfinite(x).all(-1) & np.isfinite(y).all(-1) & (peak > 0)
            place = np.stack([x.argmax(-1), y.argmax(-1), np.ones(batch)], -1)
            joints[there, joint] = np.einsum("bij,bj->bi", matrix, place)[there]
            confidence[there, joint] = peak[there].clip(0, 1)
        # The oracle's joints are float64; a mask does not depend on them but where they are missing.
        questions = Questions("joints", joints, confidence, threshold, seed)  # type: ignore[arg-type]
        return self._problem(images, affine, questions)

    def _problem(self, images: NDArray[Any], affine: NDArray[np.float32] | None, questions: Questions) -> ImageProblem:
        solved: Problem = solve(self.model, questions)
        return ImageProblem(
            images,
            affine,
            questions.threshold,
            solved.joints,
            solved.confidence,
            solved.mask,
            solved.clear,
            affine_scale(affine, len(images)),
            solved.std,
        )


def _peak(across: NDArray[np.float32], down: NDArray[np.float32], rule: str) -> NDArray[np.float32]:
    both: NDArray[np.float32] = np.stack([across, down])
    result: NDArray[np.float32] = both.min(0) if rule == "min" else both.mean(0)
    return result


def _chain(affine: NDArray[np.float32] | None, crop: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
    """[B, 2, 3]: heatmap to crop to image pixels."""
    if affine is None:
        return np.tile(crop, (batch, 1, 1))
    square = np.vstack([crop, [0, 0, 1]])
    return np.asarray(affine.astype(np.float64) @ square, np.float64)


def load_photographs(source: str, size: tuple[int, int], most: int = MAX_PHOTOGRAPHS) -> NDArray[np.uint8]:
    """Photographs as crops [B, H, W, 3] of the detector's size: the middle of each, as large as fits.

    Args:
        source: A picture, a folder of pictures, an ``.npy`` of crops, or an ``.npz`` with crops ``images``.
        size: (H, W).
        most: So many at most, the first by name.

    Raises:
        InputError: There are none, or one cannot be read.
        BackendUnavailableError: Pillow is not installed.
    """
    path = Path(source)
    if path.suffix in (".npy", ".npz"):
        return _array(path, size)[:most]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise InputError(
            f"no pictures at {source}: expected one of {', '.join(SUFFIXES)}, a folder of them, an .npy or an .npz"
        )
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise missing_extra("reading pictures", "viz") from error
    crops = []
    for file in files[:most]:
        try:
            with Image.open(file) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise InputError(f"cannot read picture {file}: {error}") from error
        crops.append(np.asarray(ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR), np.uint8))
    return np.stack(crops)


def _array(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        crops = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            crops = crops["images"]
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"cannot read crops {path}: {error}") from error
    if not isinstance(crops, np.ndarray) or crops.dtype != np.uint8 or crops.shape[1:] != (*size, 3) or not len(crops):
        got = f"{crops.dtype} {list(crops.shape)}" if isinstance(crops, np.ndarray) else "several arrays"
        raise InputError(f"expected uint8 crops [B, {size[0]}, {size[1]}, 3] in {path}, got {got}")
    return np.ascontiguousarray(crops)
