# SPDX-License-Identifier: Apache-2.0
"""The comparison with the oracle: it passes what is right, and finds every kind of wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import random_model

pytest.importorskip("torch")

from port_deploy import verify as verification
from port_deploy import verify_golden
from port_deploy.backends import torch_
from port_deploy.backends.base import HostBuffers
from port_deploy.errors import InputError, ModelFileError, VerificationError
from port_deploy.verify_problems import heatmap_questions, joint_questions

MODEL = random_model("soft", layers=1)
JOINTS = verification.make_problems(MODEL, "joints")
HEATMAPS = verification.make_problems(MODEL, "heatmaps", (24, 32))


class Wrong:
    """The right backend with a fault put in."""

    name = "wrong"
    detail = "a fault"
    takes_joints = takes_heatmaps = True
    gives_std = False

    def __init__(self, fault: Any) -> None:
        self.right, self.fault, self.spec = torch_.load(MODEL), fault, MODEL.spec
        self.sizes: list[int] = []

    def refine(self, joints: Any, confidence: Any, threshold: float, out: HostBuffers) -> None:
        self.sizes.append(len(joints))
        self.right.refine(joints, confidence, threshold, out)
        self.fault(out)

    def run(self, heatmaps: Any, affine: Any, threshold: float, out: HostBuffers) -> None:
        self.right.run(heatmaps, affine, threshold, out)
        self.fault(out)


@pytest.mark.parametrize("problems", [JOINTS, HEATMAPS], ids=["joints", "heatmaps"])
def test_float32_passes_and_says_so(problems: tuple[verification.Problem, ...]) -> None:
    found = verification.verify(torch_.load(MODEL), problems, "fp32")
    assert found.passed
    assert 0 < found.max_error_px < 1e-3
    assert found.mean_error_px <= found.max_error_px
    assert found.joints > 100
    found.check("m.onnx")


@pytest.mark.parametrize("kind", ["paper", "soft"])
@pytest.mark.parametrize("frame", ["paper", "visible"])
def test_every_frame_in_float32(kind: str, frame: str) -> None:
    model = random_model(kind, layers=2, frame=frame, refine="all", fusion=0.75)
    for asked in ("joints", "heatmaps"):
        assert verification.verify(torch_.load(model), verification.make_problems(model, asked), "fp32").passed


def test_batches_of_none_one_three_and_the_rest() -> None:
    backend = Wrong(lambda out: None)
    verification.verify(backend, JOINTS, "fp32")
    assert backend.sizes == [0, 1, 3, 60]


def shift(out: HostBuffers) -> None:
    out.joints[out.mask] += 0.01


def flip(out: HostBuffers) -> None:
    out.mask[:, 0] ^= True


def nudge(out: HostBuffers) -> None:
    out.joints[~out.mask] = np.nextafter(out.joints[~out.mask], np.float32(np.inf))


def doubt(out: HostBuffers) -> None:
    out.confidence *= np.float32(1.0001)


def lose(out: HostBuffers) -> None:
    out.joints[out.mask] = np.nan


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (shift, "max_error_px"),
        (flip, "mask_disagreements"),
        (nudge, "altered_joints"),
        (doubt, "max_confidence_error"),
        (lose, "max_error_px"),
    ],
)
def test_every_fault_is_found(fault: Any, field: str) -> None:
    found = verification.verify(Wrong(fault), JOINTS, "fp32")
    assert not found.passed
    assert getattr(found, field) > 0
    with pytest.raises(VerificationError, match=r"m\.ts disagrees"):
        found.check("m.ts")
    assert found.to_json()["passed"] is False


def test_a_backend_that_writes_nothing_is_found() -> None:
    class Idle(Wrong):
        def run(self, heatmaps: Any, affine: Any, threshold: float, out: HostBuffers) -> None:
            return

    assert not verification.verify(Idle(None), HEATMAPS, "fp32").passed


def test_another_bound() -> None:
    assert not verification.verify(torch_.load(MODEL), JOINTS, "fp32", max_px_error=0.0).passed
    assert verification.verify(Wrong(shift), JOINTS, "fp32", max_px_error=0.1).passed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precisions_stay_in_the_table_and_are_not_float32(precision: str) -> None:
    found = verification.verify(torch_.load(MODEL, precision=precision), JOINTS, precision)
    assert found.passed
    assert found.max_error_px > verification.tolerance_px("fp32")


def test_comparing_nothing_is_an_error() -> None:
    problem = replace(JOINTS[0], clear=np.zeros_like(JOINTS[0].clear))
    for problems in ([], [problem]):
        with pytest.raises(InputError, match="nothing was compared"):
            verification.verify(torch_.load(MODEL), problems, "fp32")
    with pytest.raises(InputError, match="unknown precision 'fp8'"):
        verification.tolerance_px("fp8")


def test_the_awkward_poses_are_there() -> None:
    asked, answers = JOINTS[0].questions, JOINTS[0]
    assert np.isnan(asked.first).any()
    assert np.isinf(asked.first).any()
    assert np.isnan(asked.second).any()
    masked = (asked.second < asked.threshold).sum(1)
    assert masked.max() == MODEL.spec.joints
    assert masked.min() == 0
    assert answers.mask.any(1).mean() > 0.5  # most poses are refined, some are left alone
    assert not answers.mask[0].any()
    maps = HEATMAPS[0].questions.first
    assert np.isnan(maps).any()
    assert np.isposinf(maps).any()
    assert np.isneginf(maps).any()
    assert (maps == 0).all((1, 2, 3)).any()


def test_ties_are_left_out_and_little_else() -> None:
    for problem in verification.make_problems(MODEL, "heatmaps"):
        assert 0.8 < problem.clear.mean() <= 1


def test_questions_follow_from_the_seed_alone() -> None:
    for make in (lambda s: joint_questions(MODEL.spec, 8, s), lambda s: heatmap_questions(MODEL.spec, (16, 12), 8, s)):
        one, same, other = make(3), make(3), make(4)
        np.testing.assert_array_equal(one.first, same.first)
        np.testing.assert_array_equal(one.second, same.second)
        assert not np.array_equal(one.first, other.first)


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
def test_golden_answers_say_what_the_oracle_says(kind: str) -> None:
    golden = verify_golden.golden_answers(MODEL, kind, (24, 16))
    problems = verify_golden.golden_problems(MODEL.spec, kind, golden)
    assert verification.verify(torch_.load(MODEL), problems, "fp32").passed
    assert not verification.verify(Wrong(shift), problems, "fp32").passed


@pytest.mark.parametrize(
    ("field", "value"),
    [("joints", "!"), ("joints", "AAAA"), ("poses", 10**9), ("poses", "x"), ("heatmap_size", 3), ("mask", None)],
)
def test_damaged_golden_answers(field: str, value: Any) -> None:
    golden = verify_golden.golden_answers(MODEL, "joints", None) | {field: value}
    with pytest.raises(ModelFileError, match="golden answers are unusable"):
        verify_golden.golden_problems(MODEL.spec, "joints", golden)
