# SPDX-License-Identifier: Apache-2.0
"""A graph with a detector in it against the two apart: the detector alone, then the float64 oracle.

In float32 every joint counts. A float16 detector rounds differently in every runtime, and where its maps have no clear
peak a soft-argmax turns that into whole pixels: there only joints that it is sure of count (SURE), a few may be masked
differently, and the largest error of all is told beside it. Errors are crop pixels.
May use: verify, backends, config, detector_info, errors, NumPy. Test: tests/test_verify_images.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.artefact import ArtefactBackend
from port_deploy.backends.base import HostBuffers
from port_deploy.config import ModelSpec
from port_deploy.detector_info import DetectorInfo, prepare
from port_deploy.errors import InputError, ModelFileError
from port_deploy.verify import STD_TOLERANCE, Verification, relative_error, rows_of

IMAGE_TOLERANCE_PX: Mapping[str, float] = {"fp32": 1e-3, "fp16": 4.0, "bf16": 8.0}
"""Largest error allowed, crop pixels: of every joint, with an fp16 detector of the joints it is sure of.

EfficientPose II Lite in front of mpii16, crops of 368 px: fp32 0.0003 px; fp16 0.43 px on photographs and 1.8 px on
random images, which show it nothing to be sure of; 4 px are one pixel of its heatmaps.
"""

CONFIDENCE_MARGIN: Mapping[str, float] = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.25}
"""Largest difference of confidence, with an fp16 detector the mean: a joint that moves over the edge of a pixel reads
another one. So near to δ a joint may be masked differently. That detector in fp16: at most 0.023, mean 0.002."""

STD_MARGIN = 10.0
"""By how much more a standard deviation may differ here: the detector's own joints round, too."""

SURE = 0.3
"""Confidence from which a joint counts with an fp16 detector, or the upper tenth where none reaches it."""

GOLDEN_IMAGES = 6


@dataclass(frozen=True)
class ImageProblem:
    """Crops with the right answers.

    Attributes:
        images: [B, …] as the graph takes them.
        affine: [B, 2, 3] float32, or None for crop pixels.
        threshold: δ.
        joints: [B, N, 2] float64.
        confidence: [B, N] float64.
        mask: [B, N] bool.
        clear: [B] bool, False for a pose on an edge (see verify.py), which is not compared.
        scale: [B], image pixels in a crop pixel.
        std: [B, N] float64, image pixels; None where the model has no variance, or the answers were stored without.
    """

    images: NDArray[Any]
    affine: NDArray[np.float32] | None
    threshold: float
    joints: NDArray[np.float64]
    confidence: NDArray[np.float64]
    mask: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    scale: NDArray[np.float64]
    std: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ImageVerification(Verification):
    """As `Verification`; ``joints`` and the errors are those of the joints that count.

    Attributes:
        max_error_all_px: Largest error of any joint in poses that are masked alike.
        mean_confidence_error: Mean difference of confidence.
        allowed_confidence_error: See CONFIDENCE_MARGIN: of the largest difference, with an fp16 detector of the mean.
        allowed_mask_disagreements: Joints that may be masked differently: with an fp16 detector 5 % of them.
    """

    max_error_all_px: float = 0.0
    mean_confidence_error: float = 0.0
    allowed_confidence_error: float = 0.0
    allowed_mask_disagreements: int = 0
    low_precision: bool = False

    @property
    def passed(self) -> bool:
        """Every number is within bounds."""
        confidence = self.mean_confidence_error if self.low_precision else self.max_confidence_error
        return (
            self.max_error_px <= self.tolerance_px
            and self.mask_disagreements <= self.allowed_mask_disagreements
            and confidence <= self.allowed_confidence_error
            and (self.max_std_error is None or self.max_std_error <= self.std_tolerance)
        )

    def summary(self) -> str:
        """One line for people."""
        text = (
            f"max {self.max_error_px:.2g} px, mean {self.mean_error_px:.2g} px (allowed {self.tolerance_px:g} px) on "
            f"{self.joints} joints of {self.poses} crops"
        )
        if self.mask_disagreements > self.allowed_mask_disagreements:
            text += f", {self.mask_disagreements} joints masked differently"
        if self.max_confidence_error > self.allowed_confidence_error:
            text += f", confidence off by {self.max_confidence_error:.2g}"
        if self.max_std_error is not None:
            text += f", std within {self.max_std_error:.2g} of its value (allowed {self.std_tolerance:g})"
        return text


def verify_images(
    backend: ArtefactBackend, problems: Sequence[ImageProblem], precision: str, max_px_error: float | None = None
) -> ImageVerification:
    """Run a graph on crops, in batches of 0, 1 and the rest, and compare.

    Args:
        backend: What to try.
        problems: The questions with their answers.
        precision: Of PORT; with the detector's it decides the tolerance.
        max_px_error: Another bound than the table's.

    Raises:
        InputError: Nothing could be compared.
    """
    info = backend.sidecar.detector
    ways = (precision, info.precision) if info is not None else (precision,)
    low = info is not None and info.precision != "fp32"
    margin, bound = max(CONFIDENCE_MARGIN[w] for w in ways), max(IMAGE_TOLERANCE_PX[w] for w in ways)
    counted: list[NDArray[np.float64]] = []
    off: list[NDArray[np.float64]] = []
    every, poses, disagreements, std_error = 0.0, 0, 0, None
    for problem in problems:
        out = _run(backend, problem)
        near = np.abs(problem.confidence - np.float32(problem.threshold)) <= margin
        other = out.mask != problem.mask
        disagreements += int((other & ~near.any(1, keepdims=True))[problem.clear].sum())
        alike = problem.clear & ~other.any(1)
        poses += int(alike.sum())
        error = _distance(out.joints, problem.joints) / problem.scale[:, None]
        sure = np.ones(error.shape, np.bool_)
        if low:
            sure = problem.confidence >= min(SURE, float(np.quantile(problem.confidence, 0.9)))
        counted.append(error[alike[:, None] & sure])
        every = max(every, float(error[alike].max(initial=0.0)))
        if problem.std is not None and out.std is not None and not low:  # an fp16 detector sees other joints
            std_error = max(std_error or 0.0, relative_error(out.std[alike], problem.std[alike]))
        off.append(np.nan_to_num(np.abs(out.confidence - problem.confidence)[problem.clear], nan=np.inf).ravel())
    errors = np.concatenate(counted) if counted else np.empty(0)
    if errors.size == 0 or not any(p.mask.any() for p in problems):
        raise InputError("nothing was compared: no pose of these crops has a rebuilt joint, so give real photographs")
    differences = np.concatenate(off)
    return ImageVerification(
        backend=backend.name,
        detail=backend.detail,
        tolerance_px=bound if max_px_error is None else max_px_error,
        poses=poses,
        joints=int(errors.size),
        max_error_px=float(errors.max()),
        mean_error_px=float(errors.mean()),
        mask_disagreements=disagreements,
        altered_joints=0,
        max_confidence_error=float(differences.max()),
        max_std_error=std_error,
        std_tolerance=STD_MARGIN * STD_TOLERANCE[precision] if std_error is not None else 0.0,
        max_error_all_px=every,
        mean_confidence_error=float(differences.mean()),
        allowed_confidence_error=margin,
        allowed_mask_disagreements=int(0.05 * differences.size) if low else 0,
        low_precision=low,
    )


def _run(backend: ArtefactBackend, problem: ImageProblem) -> HostBuffers:
    b, n = problem.mask.shape
    # Filled so that a backend that writes nothing is found out.
    out = HostBuffers(np.full((b, n, 2), -7e7, np.float32), np.full((b, n), -7, np.float32), np.zeros((b, n), np.bool_))
    if backend.gives_std:
        out.std = np.full((b, n), -7, np.float32)
    for start, stop in ((0, 0), (0, min(1, b)), (min(1, b), b)):
        part = rows_of(out, start, stop)
        affine = None if problem.affine is None else problem.affine[start:stop]
        backend.run_images(problem.images[start:stop], affine, problem.threshold, part)
    return out


def _distance(got: NDArray[Any], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B, N]: equal NaN count as 0, one NaN as infinite."""
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        length = np.linalg.norm(np.where(same, 0.0, got.astype(np.float64) - expected), axis=-1)
    return np.where(np.isfinite(length), length, np.inf)


def random_images(size: tuple[int, int], count: int, seed: int) -> NDArray[np.uint8]:
    """[count, H, W, 3]: blurred patches of colour, coarse and fine, with a little noise; the same on every machine."""
    bits, (height, width) = np.random.PCG64(seed), size
    images = np.empty((count, height, width, 3), np.uint8)
    for image, cells in zip(images, (4, 8, 16, 32) * count, strict=False):
        coarse = (bits.random_raw(cells * cells * 3) >> np.uint64(40)).astype(np.float64).reshape(cells, cells, 3)
        down, right = _weights(height, cells), _weights(width, cells)
        values = np.einsum("hi,ijc,wj->hwc", down, coarse / (1 << 24), right) * 255
        noise = (bits.random_raw(height * width * 3) >> np.uint64(58)).astype(np.float64).reshape(image.shape)
        image[...] = (values + noise * 0.5 - 16).clip(0, 255)
    return images


def _weights(length: int, cells: int) -> NDArray[np.float64]:
    """[length, cells]: linear interpolation."""
    place = np.linspace(0, cells - 1, length)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(cells)))


def random_affine(count: int, seed: int) -> NDArray[np.float32]:
    """[count, 2, 3]: crops turned, scaled and moved, as boxes in a photograph are."""
    unit = (np.random.PCG64(seed).random_raw(count * 4) >> np.uint64(11)).astype(np.float64).reshape(
        4, count
    ) * 2.0**-53
    turn, scale = unit[0] - 0.5, 0.5 + 1.5 * unit[1]
    rows = [[np.cos(turn), -np.sin(turn), unit[2] * 1000 / scale], [np.sin(turn), np.cos(turn), unit[3] * 700 / scale]]
    return np.ascontiguousarray((np.array(rows) * scale).transpose(2, 0, 1), dtype=np.float32)


def affine_scale(affine: NDArray[np.float32] | None, count: int) -> NDArray[np.float64]:
    """[count]: image pixels in a crop pixel."""
    if affine is None:
        return np.ones(count)
    return np.asarray(np.sqrt(np.abs(np.linalg.det(affine[:, :, :2].astype(np.float64)))), np.float64)


def image_golden(problem: ImageProblem, seed: int) -> dict[str, Any]:
    """A problem on `random_images` for a sidecar; `golden_images` reads it anywhere."""
    arrays = {"joints": problem.joints, "confidence": problem.confidence, "mask": problem.mask, "clear": problem.clear}
    if problem.std is not None:
        arrays["std"] = problem.std
    return {"seed": seed, "poses": len(problem.mask), "threshold": problem.threshold} | {
        k: base64.b64encode(v.astype(v.dtype.newbyteorder("<")).tobytes()).decode("ascii") for k, v in arrays.items()
    }


def golden_images(spec: ModelSpec, info: DetectorInfo, golden: Mapping[str, Any]) -> tuple[ImageProblem, ...]:
    """The problem that `image_golden` stored.

    Raises:
        ModelFileError: It is damaged.
    """
    try:
        count, seed, n = int(golden["poses"]), int(golden["seed"]), spec.joints
        if not 1 <= count <= 64:
            raise ValueError(f"{count} images")

        def read(key: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
            return np.frombuffer(base64.b64decode(golden[key], validate=True), dtype).reshape(shape)

        affine = random_affine(count, seed)
        problem = ImageProblem(
            images=prepare(random_images(info.image_size, count, seed), info),
            affine=affine,
            threshold=float(golden["threshold"]),
            joints=read("joints", "<f8", (count, n, 2)),
            confidence=read("confidence", "<f8", (count, n)),
            mask=read("mask", "?", (count, n)),
            clear=read("clear", "?", (count,)),
            scale=affine_scale(affine, count),
            std=read("std", "<f8", (count, n)) if "std" in golden else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"the sidecar's golden answers are unusable ({error}): export the ONNX again") from error
    return (problem,)
