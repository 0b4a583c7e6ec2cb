# SPDX-License-Identifier: Apache-2.0
"""A few of the oracle's answers in a sidecar, so that a machine without PyTorch has the same oracle.

The questions are not stored: they follow from the seed. May use: verify, weights, config, errors, NumPy.
Test: tests/test_verify.py.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.config import ModelSpec
from port_deploy.errors import ModelFileError
from port_deploy.verify import Problem, solve
from port_deploy.verify_problems import Questions, heatmap_questions, joint_questions
from port_deploy.weights import Model

GOLDEN_POSES = {"joints": 16, "heatmaps": 12}
GOLDEN_SEED = 16


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
        **({} if problem.std is None else {"std": _encode(problem.std)}),
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
        std = _decode(golden["std"], np.float64, (poses, n)) if "std" in golden else None
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"the sidecar's golden answers are unusable ({error}): export the ONNX again") from error
    return (Problem(questions, joints, confidence, mask, clear, std),)


def _golden_questions(spec: ModelSpec, kind: str, seed: int, poses: int, size: tuple[int, int]) -> Questions:
    return joint_questions(spec, poses, seed) if kind == "joints" else heatmap_questions(spec, size, poses, seed)


def _encode(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def _decode(text: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    data = base64.b64decode(text, validate=True)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
