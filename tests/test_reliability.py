# SPDX-License-Identifier: Apache-2.0
"""Whether standard deviations tell the truth (reliability.py), and how port-calibrate and port-eval say so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import Refiner
from port_deploy.calibrate import calibrate
from port_deploy.calibration import Setting, calibrated, with_calibration
from port_deploy.cli.calibrate import main as calibrate_command
from port_deploy.cli.evaluate import main as evaluate_command
from port_deploy.predictions import load_predictions
from port_deploy.reliability import EXPECTED, SCALES, coverage, fit_scale, held_out_scale, reliability
from port_deploy.weights import Model, model_from_bytes, model_to_bytes, save_model


def gaussian(sigma: np.ndarray, factor: float = 1.0, seed: int = 0) -> np.ndarray:
    """Distances of joints whose coordinates err by ``factor`` times sigma."""
    noise = np.random.default_rng(seed).normal(0, 1, (*sigma.shape, 2)) * (factor * sigma)[..., None]
    return np.asarray(np.linalg.norm(noise, axis=-1))


SIGMA = np.exp(np.random.default_rng(1).normal(1, 0.5, (400, 50)))


def test_a_gaussian_has_what_is_expected() -> None:
    assert coverage(gaussian(SIGMA).ravel(), SIGMA.ravel()) == pytest.approx(EXPECTED, abs=0.01)
    assert pytest.approx((0.3935, 0.8647), abs=1e-4) == EXPECTED


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_the_scale_is_found(factor: float) -> None:
    assert fit_scale(gaussian(SIGMA, factor).ravel(), SIGMA.ravel()) == pytest.approx(factor, rel=0.02)


def test_a_few_lost_joints_do_not_decide() -> None:
    distance = gaussian(SIGMA).ravel()
    distance[::50] *= 100
    likely = math.sqrt(np.mean((distance / SIGMA.ravel()) ** 2) / 2)
    assert likely > 10
    assert fit_scale(distance, SIGMA.ravel()) == pytest.approx(1.0, rel=0.06)


def test_too_few_joints_choose_nothing() -> None:
    assert fit_scale(np.full(99, 30.0), np.ones(99)) == 1.0
    assert 15 <= fit_scale(np.full(100, 30.0), np.ones(100)) <= SCALES[-1]
    scale, before, after, joints = held_out_scale(np.ones((9, 5)), np.ones((9, 5)), [np.arange(4), np.arange(4, 9)])
    assert (scale, joints) == (1.0, 45)
    assert np.isnan([*before, *after]).all()


def test_held_out_shares_are_of_poses_that_did_not_choose() -> None:
    """Two halves that want other scales: each is judged with the other's."""
    sigma = np.ones((200, 10))
    distance = np.concatenate([gaussian(sigma[:100], 1.0), gaussian(sigma[:100], 10.0, seed=1)])
    distance[0, 0] = np.nan
    halves = [np.arange(100), np.arange(100, 200)]
    _, before, after, joints = held_out_scale(distance, sigma, halves)
    assert joints == 1999
    assert before == pytest.approx(coverage(distance[np.isfinite(distance)], np.ones(1999)))
    # The first half with a scale near 10: all within; the second with a scale near 1: hardly any.
    assert after == pytest.approx((0.5, 0.51), abs=0.02)


def test_bins_compare_prediction_and_error() -> None:
    found = reliability(gaussian(SIGMA, 2.0), SIGMA * 2.0, 2.0)
    assert found is not None
    assert len(found.predicted) == 10
    assert list(found.predicted) == sorted(found.predicted)
    np.testing.assert_allclose(found.actual, found.predicted, rtol=0.06)
    assert found.within == pytest.approx(EXPECTED, abs=0.01)
    assert found.within_raw[1] < 0.5
    assert "before the scale of 2" in str(found)
    assert found.to_json()["expected"] == list(EXPECTED)


def test_without_a_label_or_a_sigma_nothing_is_known() -> None:
    assert reliability(np.full((3, 2), np.nan), np.ones((3, 2))) is None
    assert reliability(np.ones((3, 2)), np.full((3, 2), np.nan)) is None
    one = reliability(np.array([1.0, np.nan]), np.array([2.0, 2.0]))
    assert one is not None
    assert (one.joints, len(one.predicted)) == (1, 1)


@pytest.fixture
def model() -> Model:
    return random_model(layers=1, head_dim=8, variance=True, refine="all")


@pytest.fixture
def file(model: Model, tmp_path: Path) -> Path:
    """Labels around what the model answers, 3 times as far off as it says."""
    rng = np.random.default_rng(0)
    found = rng.uniform(20, 236, (200, 21, 2)).astype(np.float32)
    confidence = rng.uniform(0.1, 1, (200, 21)).astype(np.float32)
    answer = Refiner.load(model, backend="native-cpu").refine(found, confidence)
    noise = rng.normal(0, 1, found.shape) * 3 * np.where(answer.mask, answer.std, 0)[..., None]
    path = tmp_path / "found.npz"
    np.savez(path, joints=(answer.joints + noise).astype(np.float32), pred=found, conf=confidence)
    return path


def test_calibration_finds_the_scale(model: Model, file: Path) -> None:
    predictions = load_predictions(str(file), model.spec.skeleton)
    own = [replace(Setting.of(model.spec), std_scale=1.0)]
    found = calibrate(model, predictions, settings=own, threads=1)
    assert found.kept
    assert found.setting.std_scale == pytest.approx(3.0, rel=0.05)
    assert found.std["joints"] > 2000
    assert found.std["within"]["held_out"] == pytest.approx(EXPECTED, abs=0.03)
    assert found.std["within"]["raw"][1] < 0.3
    again = calibrated(with_calibration(model, "mine", found.setting, found.facts()), "mine")
    assert again.spec.std_scale == found.setting.std_scale
    given = predictions.detected, predictions.confidence
    answers = [Refiner.load(m, backend="native-cpu").refine(*given) for m in (model, again)]
    np.testing.assert_allclose(answers[1].std, answers[0].std * found.setting.std_scale, rtol=1e-5)


def test_settings_of_models_without_a_variance_say_nothing_of_it() -> None:
    plain = random_model(layers=1, head_dim=8)
    setting = Setting(0.2, 9, "all", 0.75, 0.8)
    stored = with_calibration(plain, "mine", setting, {"source": "test"})
    assert "std_scale" not in stored.spec.metrics["calibrations"]["mine"]
    assert calibrated(stored, "mine").spec.std_scale == 1.0
    assert "σ" not in str(setting)
    assert "σ times 2" in str(replace(setting, std_scale=2.0))
    assert replace(setting, std_scale=2.0).off().std_scale == 2.0


def test_commands(model: Model, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    save_model(place, model.spec, model.tensors)
    base = [str(file), "--model", str(place), "--detector", "mine", "--threads", "1"]
    assert calibrate_command([*base, "-o", str(out)]) == 0
    assert "within 2 σ" in capsys.readouterr().out
    assert calibrate_command([*base, "--json"]) == 0
    scale = json.loads(capsys.readouterr().out)["std_scale"]
    assert 1.5 < scale < 6
    score = [str(file), "--model", str(out), "--detector", "mine", "--device", "cpu", "--threads", "1"]
    assert evaluate_command([*score, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["reliability"]
    assert said["scale"] == scale
    assert abs(said["within"][1] - EXPECTED[1]) < 0.05 < abs(said["within_raw"][1] - EXPECTED[1])
    assert evaluate_command(score) == 0
    assert f"before the scale of {scale:.3g}" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert evaluate_command([*score, "--report", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "01-reliability.png").stat().st_size > 5000
    assert "Standard deviations:" in (tmp_path / "report" / "index.html").read_text("utf-8")


def test_models_without_a_variance_are_not_judged(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain: Any = random_model(layers=1, head_dim=8)
    place = tmp_path / "plain.safetensors"
    place.write_bytes(model_from_bytes(model_to_bytes(plain.spec, plain.tensors), "plain").data)
    assert evaluate_command([str(file), "--model", str(place), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reliability"] is None
    assert evaluate_command([str(file), "--model", str(place), "--device", "cpu"]) == 0
    assert "standard deviations" not in capsys.readouterr().out
