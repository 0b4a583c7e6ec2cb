# SPDX-License-Identifier: Apache-2.0
"""The comparison of a graph with a detector in it: what passes, and every planted mistake that must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from test_detector_info import INFO

from port_deploy.backends.artefact import ArtefactBackend
from port_deploy.backends.base import HostBuffers
from port_deploy.errors import InputError, ModelFileError, VerificationError
from port_deploy.sidecar import Sidecar
from port_deploy.verify_images import (
    ImageProblem,
    affine_scale,
    golden_images,
    image_golden,
    random_affine,
    random_images,
    verify_images,
)

SPEC = random_model("soft", layers=1, head_dim=8).spec
RNG = np.random.default_rng(0)


def problem(count: int = 5, **changes: Any) -> ImageProblem:
    confidence = RNG.random((count, 21)).astype(np.float32).astype(np.float64)
    values: dict[str, Any] = {
        "images": np.zeros((count, 3, 96, 64), np.float32),
        "affine": None,
        "threshold": 0.3,
        "joints": RNG.random((count, 21, 2)) * 64,
        "confidence": confidence,
        "mask": confidence < np.float32(0.3),
        "clear": np.ones(count, np.bool_),
        "scale": np.ones(count),
    }
    return ImageProblem(**{**values, **changes})


class Answers(ArtefactBackend):
    """Answers a problem, with mistakes planted in it."""

    def __init__(self, asked: ImageProblem, precision: Any = "fp32", **mistakes: Any) -> None:
        info = replace(INFO, precision=precision)
        super().__init__("stand-in", "", Sidecar("onnx", "m.onnx", "0", 1, SPEC, "image", "fp32", detector=info))
        self.asked, self.mistakes, self.batches, self.start = asked, mistakes, [], 0  # type: ignore[var-annotated]

    def _infer(self, first: Any, second: Any, threshold: Any, out: HostBuffers) -> None:
        assert second.shape == (len(first), 2, 3)
        rows = slice(self.start, self.start + len(first))
        self.start += len(first)
        self.batches.append(len(first))
        out.joints[...] = (self.asked.joints + self.mistakes.get("joints", 0.0))[rows]
        out.confidence[...] = (self.asked.confidence + self.mistakes.get("confidence", 0.0))[rows]
        out.mask[...] = (self.asked.mask ^ self.mistakes.get("mask", False))[rows]


def at(pose: int, joint: int, value: Any, shape: tuple[int, ...] = (5, 21)) -> np.ndarray:
    result = np.zeros((*shape, *np.shape(value)), np.asarray(value).dtype)
    result[pose, joint] = value
    return result


def test_the_right_answers_pass_in_several_batches() -> None:
    asked = problem()
    backend = Answers(asked)
    found = verify_images(backend, [asked], "fp32")
    found.check("m.onnx")
    assert backend.batches == [1, 4]
    assert (found.poses, found.joints) == (5, 105)
    assert found.max_error_px < 1e-5
    assert found.to_json()["passed"] is True


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"joints": at(3, 7, (0.0, 0.01))}, r"max 0\.01 px"),
        ({"joints": at(3, 7, (np.nan, 0.0))}, "max inf px"),
        ({"mask": at(2, 5, True)}, "1 joints masked differently"),
        ({"confidence": at(1, 1, 0.001)}, r"confidence off by 0\.001"),
        ({"confidence": at(1, 1, np.nan)}, "confidence off by inf"),
    ],
)
def test_planted_mistakes(mistake: dict[str, Any], message: str) -> None:
    asked = problem(confidence=np.tile(np.linspace(0.05, 0.95, 21).astype(np.float32).astype(np.float64), (5, 1)))
    asked = replace(asked, mask=asked.confidence < 0.3)
    with pytest.raises(VerificationError, match=message):
        verify_images(Answers(asked, **mistake), [asked], "fp32").check("m.onnx")


def test_poses_on_an_edge_do_not_count() -> None:
    asked = problem(clear=np.array([True, True, True, False, True]))
    found = verify_images(Answers(asked, joints=at(3, 7, (9.0, 0.0))), [asked], "fp32")
    assert found.passed
    assert found.poses == 4


def test_with_a_half_precision_detector_sure_joints_count() -> None:
    asked = problem()
    unsure, sure = np.argwhere(asked.confidence < 0.25)[0], np.argwhere(asked.confidence > 0.5)[0]
    moved = at(unsure[0], unsure[1], (30.0, 0.0))
    found = verify_images(Answers(asked, "fp16", joints=moved), [asked], "fp16")
    assert found.passed
    assert found.max_error_all_px == pytest.approx(30, abs=1e-4)
    moved = at(sure[0], sure[1], (30.0, 0.0))
    assert not verify_images(Answers(asked, "fp16", joints=moved), [asked], "fp16").passed
    assert verify_images(Answers(asked, "fp16", joints=moved), [asked], "fp16", max_px_error=31).passed
    near = replace(asked, confidence=np.where(asked.confidence < 0.34, 0.28, asked.confidence))
    near = replace(near, mask=near.confidence < 0.3)
    flipped = at(*np.argwhere(near.mask)[0], True)
    assert verify_images(Answers(near, "fp16", mask=flipped), [near], "fp16").mask_disagreements == 0
    assert verify_images(Answers(near, "fp32", mask=flipped), [near], "fp32").mask_disagreements == 1
    assert verify_images(Answers(asked, "fp16", confidence=at(0, 0, 0.5)), [asked], "fp16").passed
    assert not verify_images(Answers(asked, "fp16", confidence=np.full((5, 21), 0.06)), [asked], "fp16").passed


def test_errors_are_crop_pixels() -> None:
    affine = random_affine(5, 3)
    asked = problem(affine=affine, scale=affine_scale(affine, 5))
    found = verify_images(Answers(asked, joints=np.float64([0.3, 0.4])), [asked], "fp32")
    assert found.max_error_px == pytest.approx(0.5 / asked.scale.min(), rel=1e-3)
    assert (asked.scale >= 0.5).all()
    assert (asked.scale <= 2).all()


def test_nothing_compared_is_no_pass() -> None:
    nothing = problem(mask=np.zeros((5, 21), np.bool_), confidence=np.ones((5, 21)))
    with pytest.raises(InputError, match="nothing was compared"):
        verify_images(Answers(nothing), [nothing], "fp32")
    with pytest.raises(InputError, match="nothing was compared"):
        verify_images(Answers(nothing), [], "fp32")


def test_random_images_are_the_same_everywhere() -> None:
    images = random_images((96, 64), 6, 20)
    assert (images.shape, images.dtype) == ((6, 96, 64, 3), np.uint8)
    np.testing.assert_array_equal(images, random_images((96, 64), 6, 20))
    assert int(images.astype(np.int64).sum()) == 13_584_724
    assert all(image.std() > 20 for image in images)


def test_golden_answers_there_and_back() -> None:
    affine = random_affine(4, 20)
    asked = problem(4, affine=affine, scale=affine_scale(affine, 4), threshold=0.25)
    stored = image_golden(asked, 20)
    (again,) = golden_images(SPEC, INFO, stored)
    for name in ("affine", "joints", "confidence", "mask", "clear", "scale"):
        np.testing.assert_array_equal(getattr(again, name), getattr(asked, name))
    assert again.threshold == 0.25
    assert again.images.shape == (4, 3, 96, 64)
    for broken in ({"joints": "?"}, {"poses": 0}, {"poses": 5}, {"mask": stored["mask"][:-8]}):
        with pytest.raises(ModelFileError, match="golden answers are unusable"):
            golden_images(SPEC, INFO, stored | broken)
