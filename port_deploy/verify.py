# SPDX-License-Identifier: Apache-2.0
"""Does a backend answer what the oracle answers? The only table of tolerances in the project, and the comparison.

Errors are in pixels of a 256-pixel crop: where a pose spans more (an outlier at 100,000 px), its error is divided by
its span over 256, since every unit of the frame grows with it. Masks must be equal, and joints that are not rebuilt
must come back bit for bit. Left out are only poses on an edge, where float32 and float64 may rightly part: a decoded
joint within 1e-3 px of the boundary between two pixels whose values differ (another confidence is read), and in the
``paper`` frame a root and an axis joint that all but coincide (nothing says which way to turn).
May use: backends, config, errors, NumPy. Test: tests/test_verify.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.base import Backend, HostBuffers
from port_deploy.config import MAX_COORDINATE, ModelSpec
from port_deploy.errors import InputError, VerificationError
from port_deploy.verify_problems import CROP_PX, Questions, heatmap_questions, joint_questions
from port_deploy.weights import Model

TOLERANCE_PX: Mapping[str, float] = {
    "fp32": 1e-3,
    "fp16": 0.5,
    "bf16": 8.0,
}
"""Largest error against the oracle, pixels of a 256-pixel crop, by the precision of the encoder's matrix products.

The shipped models in every runtime and with three seeds show at most 0.0003, 0.30 and 4.3 px, at the 99th percentile of
the rebuilt joints 0.23 (fp16) and 1.7 px (bf16), on average 0.00004, 0.03 and 0.3 px. The largest come from poses whose
few visible joints lie close together, which magnifies any rounding; the bounds leave room for a model trained anew.
"""

STD_TOLERANCE: dict[str, float] = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}
"""Largest relative error of a standard deviation against the oracle, which is the absolute one of log σ. hand21 with a
variance shows at most 0.0003, 0.016 and 0.11 on three seeds, natively, in PyTorch, ONNX Runtime and AOTInductor."""

MAX_CONFIDENCE_ERROR = 0.0
"""Confidence is a value copied out of the heatmap or passed through: it has no arithmetic to go wrong."""

TIE_PX = 1e-3

MIN_AXIS_PX = 4.0


@dataclass(frozen=True)
class Problem:
    """Questions with the oracle's answers.

    Attributes:
        questions: The inputs.
        joints: [B, N, 2] float64.
        confidence: [B, N] float64.
        mask: [B, N] bool.
        clear: [B] bool, False for a pose on an edge, which is not compared.
        std: [B, N] float64, pixels; None where the model has no variance, or the answers were stored without.
    """

    questions: Questions
    joints: NDArray[np.float64]
    confidence: NDArray[np.float64]
    mask: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    std: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        backend: Name of the backend that ran.
        detail: What it ran on.
        tolerance_px: The largest error allowed.
        poses: Poses compared.
        joints: Rebuilt joints compared.
        max_error_px: Largest distance from the oracle's joint, pixels of a 256-pixel crop.
        mean_error_px: Mean of it over the rebuilt joints.
        mask_disagreements: Joints rebuilt by one and not by the other.
        altered_joints: Joints that should have been copied bit for bit and were not (inputs ``joints`` only).
        max_confidence_error: Largest difference of confidence.
        max_std_error: Largest relative error of a rebuilt joint's standard deviation, infinite where one is missing or
            too many; None where it was not compared.
        std_tolerance: The largest allowed.
    """

    backend: str
    detail: str
    tolerance_px: float
    poses: int
    joints: int
    max_error_px: float
    mean_error_px: float
    mask_disagreements: int
    altered_joints: int
    max_confidence_error: float
    max_std_error: float | None = None
    std_tolerance: float = 0.0

    @property
    def passed(self) -> bool:
        """Every number is within bounds."""
        return (
            self.max_error_px <= self.tolerance_px
            and self.mask_disagreements == 0
            and self.altered_joints == 0
            and self.max_confidence_error <= MAX_CONFIDENCE_ERROR
            and (self.max_std_error is None or self.max_std_error <= self.std_tolerance)
        )

    def check(self, what: str) -> None:
        """Raise unless it passed.

        Raises:
            VerificationError: It did not; the message holds the numbers.
        """
        if not self.passed:
            raise VerificationError(f"{what} disagrees with the float64 oracle: {self.summary()}")

    def summary(self) -> str:
        """One line for people."""
        text = (
            f"max {self.max_error_px:.2g} px, mean {self.mean_error_px:.2g} px "
            f"(allowed {self.tolerance_px:g} px) on {self.joints} rebuilt joints of {self.poses} poses"
        )
        if self.mask_disagreements:
            text += f", {self.mask_disagreements} joints masked differently"
        if self.altered_joints:
            text += f", {self.altered_joints} joints altered that should be copied"
        if self.max_confidence_error > MAX_CONFIDENCE_ERROR:
            text += f", confidence off by {self.max_confidence_error:.2g}"
        if self.max_std_error is not None:
            text += f", std within {self.max_std_error:.2g} of its value (allowed {self.std_tolerance:g})"
        return text

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes null."""
        values = dict(vars(self))
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()} | {
            "passed": self.passed
        }


def tolerance_px(precision: str) -> float:
    """The largest error allowed at that precision.

    Raises:
        InputError: Unknown precision.
    """
    if precision not in TOLERANCE_PX:
        raise InputError(f"unknown precision {precision!r}: use one of {', '.join(TOLERANCE_PX)}")
    return TOLERANCE_PX[precision]


def make_problems(
    model: Model, kind: str, heatmap_size: tuple[int, int] | None = None, seed: int = 0
) -> tuple[Problem, ...]:
    """Random and adversarial questions with the oracle's answers (needs PyTorch).

    Args:
        model: The model that the backend should compute.
        kind: ``joints`` or ``heatmaps``.
        heatmap_size: The only (H, W) that the artefact takes; None tries a square and an oblong one.
        seed: Of the random poses.
    """
    if kind == "joints":
        return (solve(model, joint_questions(model.spec, seed=seed)),)
    sizes = (heatmap_size,) if heatmap_size else ((64, 64), (48, 40))
    return tuple(solve(model, heatmap_questions(model.spec, size, seed=seed + i)) for i, size in enumerate(sizes))


def solve(model: Model, questions: Questions) -> Problem:
    """The oracle's answers: nn/line.py in float64.

    Raises:
        BackendUnavailableError: PyTorch is not installed.
    """
    from port_deploy.backends.torch_ import oracle

    definition = oracle(model)
    first, second = questions.first.astype(np.float64), questions.second.astype(np.float64)
    if questions.input == "joints":
        answers = definition.compute(first, second, questions.threshold)
        clear, place = np.ones(len(first), dtype=np.bool_), first
    else:
        answers = definition.compute_heatmaps(first, second, questions.threshold)
        decoded = definition.decode(first)[0]
        clear = _free_of_ties(questions.first, decoded)
        place = decoded * (CROP_PX / np.array([first.shape[3], first.shape[2]]))
    if model.spec.frame == "paper":
        clear = clear & _has_direction(model.spec, place)
    return Problem(questions, answers[0], answers[1], answers[2], clear, answers[3] if len(answers) > 3 else None)


def _free_of_ties(heatmaps: NDArray[np.float32], decoded: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[B]: no joint [B, N, 2] lies so near the boundary of two pixels that another confidence could be read."""
    height, width = heatmaps.shape[2:]
    place = np.nan_to_num(decoded)
    readings = []
    for dx in (-TIE_PX, TIE_PX):
        for dy in (-TIE_PX, TIE_PX):
            x = np.rint(place[..., 0] + dx).clip(0, width - 1).astype(np.intp)
            y = np.rint(place[..., 1] + dy).clip(0, height - 1).astype(np.intp)
            flat = heatmaps.reshape(*heatmaps.shape[:2], -1)
            readings.append(np.take_along_axis(flat, (y * width + x)[..., None], -1)[..., 0])
    stacked = np.stack(readings)
    missing = np.isnan(decoded).any(-1)
    clear: NDArray[np.bool_] = ((stacked == stacked[0]).all(0) | missing).all(-1)
    return clear


def _has_direction(spec: ModelSpec, joints: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[B]: root and axis of [B, N, 2] lie clearly apart, exactly together, or one is missing."""
    away = np.abs(joints[:, spec.skeleton.axis] - joints[:, spec.skeleton.root]).max(-1)
    clear: NDArray[np.bool_] = ~((away > 0) & (away < MIN_AXIS_PX))
    return clear


def verify(
    backend: Backend, problems: Sequence[Problem], precision: str, max_px_error: float | None = None
) -> Verification:
    """Run a backend on problems, in batches of 0, 1, 3 and the rest, and compare.

    Args:
        backend: What to try.
        problems: From `make_problems` or verify_golden.py; their kind of input must be one that the backend takes.
        precision: Decides the tolerance.
        max_px_error: Another bound than the table's.

    Raises:
        InputError: There is nothing to compare.
    """
    errors: list[NDArray[np.float64]] = []
    poses = disagreements = altered = 0
    confidence_error, std_error = 0.0, None
    for problem in problems:
        out = _run(backend, problem.questions)
        asked, clear = problem.questions, problem.clear
        poses += int(clear.sum())
        disagreements += int((out.mask != problem.mask)[clear].sum())
        distance = _distance(out.joints, problem.joints) / _span(asked, problem.joints)[:, None]
        errors.append(distance[clear[:, None] & (problem.mask | (distance > 0))])
        difference = _distance(out.confidence[..., None], problem.confidence[..., None])[clear]
        confidence_error = max(confidence_error, float(difference.max(initial=0.0)))
        if problem.std is not None and out.std is not None:
            std_error = max(std_error or 0.0, relative_error(out.std[clear], problem.std[clear]))
        if asked.input == "joints":
            same = (out.joints.view(np.uint32) == asked.first.view(np.uint32)).all(-1)
            altered += int((~same & ~problem.mask)[clear].sum())
    every = np.concatenate(errors) if errors else np.empty(0)
    if poses == 0 or every.size == 0:
        raise InputError("nothing was compared: no pose of these problems has a rebuilt joint")
    return Verification(
        backend=backend.name,
        detail=backend.detail,
        tolerance_px=tolerance_px(precision) if max_px_error is None else max_px_error,
        poses=poses,
        joints=int(every.size),
        max_error_px=float(every.max()),
        mean_error_px=float(every.mean()),
        mask_disagreements=disagreements,
        altered_joints=altered,
        max_confidence_error=confidence_error,
        max_std_error=std_error,
        std_tolerance=STD_TOLERANCE[precision] if std_error is not None else 0.0,
    )


def _run(backend: Backend, asked: Questions) -> HostBuffers:
    b, n = asked.first.shape[:2]
    # Filled so that a backend that writes nothing is found out.
    out = HostBuffers(np.full((b, n, 2), -7e7, np.float32), np.full((b, n), -7, np.float32), np.zeros((b, n), np.bool_))
    if backend.gives_std:
        out.std = np.full((b, n), -7, np.float32)
    start = 0
    for size in (0, 1, 3, b):
        stop = min(start + size, b)
        part = rows_of(out, start, stop)
        first, second = asked.first[start:stop], asked.second[start:stop]
        if asked.input == "joints":
            backend.refine(first, second, asked.threshold, part)
        else:
            backend.run(first, second, asked.threshold, part)
        start = stop
    return out


def rows_of(out: HostBuffers, start: int, stop: int) -> HostBuffers:
    """The same memory, of some poses."""
    std = None if out.std is None else out.std[start:stop]
    return HostBuffers(out.joints[start:stop], out.confidence[start:stop], out.mask[start:stop], std)


def relative_error(got: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Largest relative error of standard deviations, NaN where there is none; infinite where that differs."""
    there = np.isfinite(expected)
    if not np.array_equal(there, np.isfinite(got)) or not (got[there] > 0).all():
        return math.inf
    return float(np.abs(got[there] / expected[there] - 1).max(initial=0.0))


def _distance(got: NDArray[Any], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distance over the last axis; equal NaN or infinities count as 0, other pairs with them as infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        delta = np.where(same, 0.0, np.abs(got.astype(np.float64) - expected))
        length = np.sqrt((delta * delta).sum(-1))
    return np.where(np.isfinite(length), length, np.inf)


def _span(asked: Questions, joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B]: how many 256-pixel crops a pose is wide, at least 1."""
    if asked.input == "heatmaps":
        return np.ones(len(joints))
    given = asked.first.astype(np.float64)
    usable = (np.abs(given) <= MAX_COORDINATE).all(-1, keepdims=True)
    high = np.where(usable, given, -np.inf).max(1)  # [B, 2]
    low = np.where(usable, given, np.inf).min(1)
    extent = np.where(np.isfinite(high), high, 0.0) - np.where(np.isfinite(low), low, 0.0)
    span: NDArray[np.float64] = np.maximum(extent.max(-1) / CROP_PX, 1.0)
    return span
