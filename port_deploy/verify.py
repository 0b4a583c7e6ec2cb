# SPDX-License-Identifier: Apache-2.0
"""Does a backend answer what the oracle answers? The only table of tolerances in the project, and the comparison.

Errors are in pixels of a 256-pixel crop: where a pose spans more (an outlier at 100,000 px), its error is divided by
its span over 256, since every unit of the frame grows with it. Masks must be equal, and joints that are not rebuilt
must come back bit for bit. Left out are only poses that hold a tie: a decoded joint within 1e-3 px of the boundary
between two pixels whose values differ, where float32 and float64 may rightly read another confidence.
May use: backends, config, errors, NumPy. Test: tests/test_verify.py.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.base import Backend, HostBuffers
from port_deploy.config import MAX_COORDINATE, ModelSpec
from port_deploy.errors import InputError, ModelFileError, VerificationError
from port_deploy.verify_problems import CROP_PX, Questions, heatmap_questions, joint_questions
from port_deploy.weights import Model

TOLERANCE_PX: Mapping[str, float] = {
    "fp32": 1e-3,
    "fp16": 0.05,
    "bf16": 0.5,
}
"""Largest error against the oracle, pixels of a 256-pixel crop, by the precision of the encoder's matrix products."""

MAX_CONFIDENCE_ERROR = 0.0
"""Confidence is a value copied out of the heatmap or passed through: it has no arithmetic to go wrong."""

TIE_PX = 1e-3

GOLDEN_POSES = {"joints": 16, "heatmaps": 12}
GOLDEN_SEED = 16


@dataclass(frozen=True)
class Problem:
    """Questions with the oracle's answers.

    Attributes:
        questions: The inputs.
        joints: [B, N, 2] float64.
        confidence: [B, N] float64.
        mask: [B, N] bool.
        clear: [B] bool, False for a pose that holds a tie and is not compared.
    """

    questions: Questions
    joints: NDArray[np.float64]
    confidence: NDArray[np.float64]
    mask: NDArray[np.bool_]
    clear: NDArray[np.bool_]


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

    @property
    def passed(self) -> bool:
        """Every number is within bounds."""
        return (
            self.max_error_px <= self.tolerance_px
            and self.mask_disagreements == 0
            and self.altered_joints == 0
            and self.max_confidence_error <= MAX_CONFIDENCE_ERROR
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
        clear = np.ones(len(first), dtype=np.bool_)
    else:
        answers = definition.compute_heatmaps(first, second, questions.threshold)
        clear = _free_of_ties(questions.first, definition.decode(first)[0])
    return Problem(questions, *answers, clear)


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


def verify(
    backend: Backend, problems: Sequence[Problem], precision: str, max_px_error: float | None = None
) -> Verification:
    """Run a backend on problems, in batches of 0, 1, 3 and the rest, and compare.

    Args:
        backend: What to try.
        problems: From `make_problems` or `golden_problems`; their kind of input must be one that the backend takes.
        precision: Decides the tolerance.
        max_px_error: Another bound than the table's.

    Raises:
        InputError: There is nothing to compare.
    """
    errors: list[NDArray[np.float64]] = []
    poses = disagreements = altered = 0
    confidence_error = 0.0
    for problem in problems:
        out = _run(backend, problem.questions)
        asked, clear = problem.questions, problem.clear
        poses += int(clear.sum())
        disagreements += int((out.mask != problem.mask)[clear].sum())
        distance = _distance(out.joints, problem.joints) / _span(asked, problem.joints)[:, None]
        errors.append(distance[clear[:, None] & (problem.mask | (distance > 0))])
        difference = _distance(out.confidence[..., None], problem.confidence[..., None])[clear]
        confidence_error = max(confidence_error, float(difference.max(initial=0.0)))
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
    )


def _run(backend: Backend, asked: Questions) -> HostBuffers:
    b, n = asked.first.shape[:2]
    # Filled so that a backend that writes nothing is found out.
    out = HostBuffers(np.full((b, n, 2), -7e7, np.float32), np.full((b, n), -7, np.float32), np.zeros((b, n), np.bool_))
    start = 0
    for size in (0, 1, 3, b):
        stop = min(start + size, b)
        part = HostBuffers(out.joints[start:stop], out.confidence[start:stop], out.mask[start:stop])
        first, second = asked.first[start:stop], asked.second[start:stop]
        if asked.input == "joints":
            backend.refine(first, second, asked.threshold, part)
        else:
            backend.run(first, second, asked.threshold, part)
        start = stop
    return out


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


def golden_answers(model: Model, kind: str, heatmap_size: tuple[int, int] | None) -> dict[str, Any]:
    """A few of the oracle's answers for a sidecar (needs PyTorch); `golden_problems` reads them anywhere."""
    height, width = heatmap_size or (32, 24)
    questions = _golden_questions(model.spec, kind, GOLDEN_SEED, GOLDEN_POSES[kind], (height, width))
    problem = solve(model, questions)
    return {
        "seed": GOLDEN_SEED,
        "poses": GOLDEN_POSES[kind],
        "heatmap_size": [height, width],
        "joints": _encode(problem.joints),
        "confidence": _encode(problem.confidence),
        "mask": _encode(problem.mask),
        "clear": _encode(problem.clear),
    }


def golden_problems(spec: ModelSpec, kind: str, golden: Mapping[str, Any]) -> tuple[Problem, ...]:
    """The problems that `golden_answers` stored.

    Raises:
        ModelFileError: The stored answers are damaged.
    """
    try:
        poses, (height, width) = int(golden["poses"]), golden["heatmap_size"]
        if not (1 <= poses <= 1024 and 1 <= int(height) <= 1024 and 1 <= int(width) <= 1024):
            raise ValueError(f"{poses} poses of {height} x {width}")
        n = spec.joints
        questions = _golden_questions(spec, kind, int(golden["seed"]), poses, (int(height), int(width)))
        joints = _decode(golden["joints"], np.float64, (poses, n, 2))
        confidence = _decode(golden["confidence"], np.float64, (poses, n))
        mask = _decode(golden["mask"], np.bool_, (poses, n))
        clear = _decode(golden["clear"], np.bool_, (poses,))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"the sidecar's golden answers are unusable ({error}): export the ONNX again") from error
    return (Problem(questions, joints, confidence, mask, clear),)


def _golden_questions(spec: ModelSpec, kind: str, seed: int, poses: int, size: tuple[int, int]) -> Questions:
    return joint_questions(spec, poses, seed) if kind == "joints" else heatmap_questions(spec, size, poses, seed)


def _encode(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def _decode(text: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    data = base64.b64decode(text, validate=True)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
