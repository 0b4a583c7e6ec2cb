# SPDX-License-Identifier: Apache-2.0
"""Models with a variance: their file format, and σ as nn/line_std.py defines it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import random_model

from port_deploy.config import LOG_STD_RANGE, ModelSpec, PortConfig
from port_deploy.errors import InputError
from port_deploy.weights import Model, model_from_bytes, model_to_bytes

torch = pytest.importorskip("torch")

from port_deploy.backends.torch_ import oracle  # noqa: E402


def with_variance(kind: str = "soft", **changes: object) -> tuple[Model, Model]:
    """A model without a variance, and the same one with it."""
    model = random_model(kind, "mpii16", variance=True, layers=2, head_dim=16, **changes)
    spec = replace(model.spec, config=replace(model.spec.config, variance=False), std_scale=1.0)
    tensors = {k: v[:2] if k.startswith("head.out") else v for k, v in model.tensors.items()}
    return model_from_bytes(model_to_bytes(spec, tensors), "plain"), model


def poses(batch: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    joints, confidence = rng.uniform(0, 256, (batch, 16, 2)), rng.uniform(0.31, 1, (batch, 16))
    confidence[rng.random((batch, 16)) < 0.3] = 0.1
    return joints, confidence


def test_files_without_a_variance_say_nothing_of_it() -> None:
    spec = random_model().spec
    written = json.dumps(spec.to_json())
    assert "variance" not in written
    assert "std_scale" not in written
    assert not ModelSpec.from_json(json.loads(written)).config.variance


def test_files_with_one_read_back() -> None:
    model = with_variance(std_scale=1.5)[1]
    again = model_from_bytes(model_to_bytes(model.spec, model.tensors), "again")
    assert again.spec == model.spec
    assert again.spec.std_scale == 1.5
    assert again.tensors["head.out.weight"].shape == (3, 64)
    assert (
        again.spec.config.parameter_count() == PortConfig.preset("soft", layers=2, head_dim=16).parameter_count() + 65
    )


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_a_scale_is_a_positive_number(scale: object) -> None:
    with pytest.raises(InputError, match="std_scale"):
        replace(random_model().spec, std_scale=scale)  # type: ignore[arg-type]


def test_a_switch_is_a_switch() -> None:
    with pytest.raises(InputError, match="variance"):
        PortConfig(variance=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("frame", ["visible", "paper"])
@pytest.mark.parametrize("kind", ["soft", "paper"])
def test_the_joints_are_those_of_the_model_without(kind: str, frame: str) -> None:
    plain, model = with_variance(kind, frame=frame)
    joints, confidence = poses()
    expected, answer = oracle(plain).compute(joints, confidence, 0.3), oracle(model).compute(joints, confidence, 0.3)
    assert len(expected) == 3
    assert len(answer) == 4
    for one, other in zip(expected, answer, strict=False):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("refine", ["masked", "all"])
@pytest.mark.parametrize("frame", ["visible", "paper"])
def test_std_is_the_equation(frame: str, refine: str) -> None:
    model = with_variance(frame=frame, refine=refine, std_scale=1.25, frame_size=(200.0, 50.0), max_masked=6)[1]
    line = oracle(model).line
    joints, confidence = poses(20)
    outputs: list[torch.Tensor] = []
    line.refine.port.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    _, _, mask, std = oracle_answer(line, joints, confidence)
    changed = confidence < 0.3
    whole = changed.sum(1) <= 6
    assert not whole.all()
    expected = whole[:, None] & (changed if refine == "masked" else np.ones_like(changed))
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(np.isnan(std), ~mask)
    unit = np.full(20, 100.0)
    if frame == "visible":
        for b in range(20):
            seen = joints[b][~changed[b]]
            unit[b] = np.sqrt(np.mean((seen - seen.mean(0)) ** 2))
    by_hand = np.exp(outputs[0][..., 2].numpy()) * unit[:, None] * 1.25
    np.testing.assert_allclose(std[mask], by_hand[mask], rtol=1e-12)


def oracle_answer(line: torch.nn.Module, joints: np.ndarray, confidence: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        given = torch.from_numpy(joints), torch.from_numpy(confidence)
        refined, mask, std = line.refine(*given, torch.tensor([0.3], dtype=torch.float64))
    return [a.numpy() for a in (refined, given[1], mask, std)]


@pytest.mark.parametrize(("bias", "bound"), [(-50.0, LOG_STD_RANGE[0]), (50.0, LOG_STD_RANGE[1])])
def test_log_sigma_is_clamped(bias: float, bound: float) -> None:
    model = with_variance(frame="paper")[1]
    tensors = dict(model.tensors)
    tensors["head.out.bias"] = tensors["head.out.bias"] + np.array([0, 0, bias], np.float32)
    extreme = model_from_bytes(model_to_bytes(model.spec, tensors), "extreme")
    _, _, mask, std = oracle(extreme).compute(*poses(), 0.3)
    np.testing.assert_allclose(std[mask], np.exp(bound) * 256, rtol=1e-12)


def test_std_moves_with_the_pose() -> None:
    """Twice the pose, twice σ, wherever it lies."""
    model = with_variance()[1]
    joints, confidence = poses()
    one, other = (oracle(model).compute(j, confidence, 0.3)[3] for j in (joints, 2 * joints + 30))
    np.testing.assert_allclose(2 * one, other, rtol=1e-9)


def test_poses_left_alone_have_none() -> None:
    model = with_variance()[1]
    joints, confidence = poses(3)
    confidence[0] = 0.0
    joints[1] = np.nan
    _, _, mask, std = oracle(model).compute(joints, confidence, 0.3)
    assert np.isnan(std[:2]).all()
    assert mask[2].any()
    assert np.isfinite(std[2][mask[2]]).all()
