# SPDX-License-Identifier: Apache-2.0
"""calibrate.py, calibration.py and port-calibrate: finds a gain, does no harm; the model file keeps the choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from port_deploy import calibrate as module
from port_deploy import calibrate_trials
from port_deploy.calibrate import calibrate, candidates, from_scores
from port_deploy.calibrate_trials import Trials, run_trials
from port_deploy.calibration import KEY, Setting, calibrated, detectors, with_calibration
from port_deploy.cli.calibrate import main
from port_deploy.cli.info import headline
from port_deploy.errors import InputError, ModelFileError
from port_deploy.evaluate import evaluate
from port_deploy.predictions import load_predictions
from port_deploy.refiner import Refiner
from port_deploy.skeleton import Skeleton
from port_deploy.weights import load_model, with_changes

HAND = Skeleton.load("hand21")


def arrays(batch: int = 120, seed: int = 0) -> dict[str, Any]:
    """Hands whose joints of low confidence are far off."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(100, 30, (batch, 21, 2)).astype(np.float32)
    conf = rng.uniform(0, 1, (batch, 21)).astype(np.float32)
    error = np.where(conf < 0.3, 20.0, 2.0)[..., None] * rng.normal(size=joints.shape)
    return {"joints": joints, "pred": (joints + error).astype(np.float32), "conf": conf, "names": np.array(HAND.names)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "p.npz", **arrays())
    return tmp_path / "p.npz"


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    return make_model("soft", "hand21")


def knowing(monkeypatch: pytest.MonkeyPatch, truth: np.ndarray, noise: float) -> None:
    """Put a refiner in place that answers the truth with some noise, for every joint."""

    class Knowing:
        @classmethod
        def load(cls, *_: Any, **__: Any) -> Knowing:
            return cls()

        def refine(self, joints: np.ndarray, confidence: np.ndarray, threshold: float) -> Any:
            answer = truth + noise * np.random.default_rng(1).normal(size=truth.shape)
            return SimpleNamespace(joints=answer.astype(np.float32), mask=np.ones(confidence.shape, bool))

    monkeypatch.setattr(calibrate_trials, "Refiner", Knowing)


def test_it_masks_what_the_model_knows_better(model: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = load_predictions(file, HAND)
    knowing(monkeypatch, predictions.joints, 6.0)  # better than the detector below 0.3, worse above
    found = calibrate(with_changes(model, threshold=0.5), predictions, threads=1)
    assert found.kept
    assert found.setting.refine == "masked"
    assert 0.25 < found.setting.threshold < 0.4
    assert found.setting.fusion > 0.5
    assert found.setting.max_masked >= 10
    assert found.after["epe"] < 0.7 * found.before["epe"]
    assert all(s.refine == "masked" for s in found.folds)
    assert found.curve[0][1] < 0
    assert "5-fold cross-validation on 120 labelled poses" in found.source


def test_of_many_poses_some_decide(model: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = load_predictions(file, HAND)
    monkeypatch.setattr(module, "MAX_POSES", 50)
    found = calibrate(model, predictions, threads=1)
    assert found.poses == 50
    assert "on 50 labelled poses" in found.source


@pytest.mark.parametrize("noise", [25.0, 60.0])
def test_a_model_that_knows_nothing_stays_off(
    model: Any, file: Path, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    predictions = load_predictions(file, HAND)
    knowing(monkeypatch, np.full_like(predictions.joints, 100.0), noise)
    found = calibrate(model, predictions, threads=1)
    assert not found.kept
    assert found.setting.threshold == 0
    assert found.after == found.before
    assert "so it is off" in found.source


def test_random_weights_are_turned_off_and_off_changes_nothing(model: Any, file: Path) -> None:
    predictions = load_predictions(file, HAND)
    found = calibrate(model, predictions, threads=1)
    assert not found.kept
    kept = with_calibration(model, "d", found.setting, found.facts())
    answer = Refiner.load(kept, detector="d", threads=1).refine(predictions.detected, predictions.confidence)
    assert not answer.mask.any()
    assert np.array_equal(answer.joints, predictions.detected)


def test_trials_score_what_the_refiner_answers(model: Any, file: Path) -> None:
    """The grid reaches each setting by arithmetic on one pass of the network; the Refiner computes it outright."""
    predictions = load_predictions(file, HAND)
    settings = [
        Setting(0.4, 8, "masked", 0.5, 1.0),
        Setting(0.4, 21, "all", 1.0, 1.0),
        Setting(0.25, 5, "masked", 1.0, 0.8),
    ]
    trials = run_trials(model, predictions, settings, threads=1)
    rows = np.arange(len(predictions.joints))
    for i, setting in enumerate(settings):
        kept = with_calibration(model, "d", setting, {"source": "by hand"})
        refiner = Refiner.load(kept, detector="d", threads=1)
        assert refiner.threshold == setting.threshold
        scores = evaluate(refiner, predictions).refined
        assert trials.mean("epe", rows)[i] == pytest.approx(scores.epe, rel=1e-5)
        assert trials.mean("epe_root", rows)[i] == pytest.approx(scores.epe_root, rel=1e-5)
        assert trials.mean("p_epe", rows)[i] == pytest.approx(scores.p_epe, rel=1e-5)


def test_the_grid_holds_the_models_own_threshold(model: Any) -> None:
    grid = candidates(with_changes(model, threshold=0.123), np.linspace(0, 1, 100), (1.0,))
    assert 0.123 in {s.threshold for s in grid}
    assert len(set(grid)) == len(grid)


def test_scores_alone_give_a_percentile(model: Any) -> None:
    scores = np.concatenate([np.linspace(0, 0.8, 801), [np.nan]])
    found = from_scores(model, scores, 25)
    assert found.setting.threshold == pytest.approx(0.2, abs=1e-3)
    assert found.setting.confidence_divisor == pytest.approx(0.76, abs=1e-3)
    assert "no label used" in found.source
    for bad, percentile in ((np.ones(100), 10), (scores[:5], 10), (scores, 0), (scores, 95)):
        with pytest.raises(InputError, match="expected"):
            from_scores(model, bad, percentile)


def test_a_file_keeps_settings_of_several_detectors(model: Any, tmp_path: Path) -> None:
    first, second = Setting(0.2, 9, "all", 0.75, 0.8), Setting(0.4, 12, "masked", 1.0, 1.0)
    both = with_calibration(with_calibration(model, "one", first, {"source": "a"}), "two", second, {"source": "b"})
    (tmp_path / "m.safetensors").write_bytes(both.data)
    read = load_model(tmp_path / "m.safetensors")
    assert detectors(read.spec) == ("one", "two")
    assert Setting.of(read.spec) == Setting.of(model.spec), "the model's own setting stays"
    one = Refiner.load(tmp_path / "m.safetensors", detector="one", threads=1)
    assert Setting.of(one.model) == first
    assert (one.threshold, one.model.threshold_source) == (0.2, "a")
    over = Refiner.load(read, detector="one", threshold=0.6, refine="masked", threads=1)
    assert (over.threshold, over.model.refine, over.model.max_masked) == (0.6, "masked", 9)
    assert Setting.of(with_calibration(model, "two", second, {}, default=True).spec) == second
    assert "one" not in headline({"calibrations": {"one": {"threshold": 0.2}}, "pck": 0.5})
    with pytest.raises(InputError, match="not calibrated for detector 'three' \\(for one, two\\)"):
        calibrated(read, "three")
    broken = with_changes(model, metrics={KEY: {"bad": {"threshold": "much"}}})
    with pytest.raises(ModelFileError, match="unusable calibration"):
        calibrated(broken, "bad")
    with pytest.raises(InputError, match="port-export that"):
        Refiner.load("hand21.onnx", detector="one")


def test_command(file: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "m.safetensors").write_bytes(model.data)
    out, plot = tmp_path / "out.safetensors", tmp_path / "c.png"
    base = [str(file), "--model", str(tmp_path / "m.safetensors"), "--detector", "d", "--threads", "1"]
    assert main([*base, "-o", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "refinement is off for this detector" in printed
    assert f'Refiner.load("{out}", detector="d")' in printed
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert load_model(out).spec.metrics[KEY]["d"]["threshold"] == 0
    assert main([*base, "--unlabelled", "--percentile", "20", "--json", "--plot", str(plot)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["threshold"] == pytest.approx(0.2, abs=0.03)
    unlabelled = {k: v for k, v in arrays().items() if k != "joints"}
    np.savez(tmp_path / "u.npz", **unlabelled)
    assert main([str(tmp_path / "u.npz"), *base[1:], "--unlabelled", "-o", str(out), "--default"]) == 0
    assert load_model(out).spec.threshold == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "1"], "expected folds from 2"),
        (["--unlabelled", "--percentile", "0"], "expected a percentile"),
        (["-o", "model.bin"], "expected the output to be a .safetensors"),
        (["--detector", " "], "to have a name"),
        (["--conf", "nothing"], "no array 'nothing'"),
        (["--seed", "-1"], "expected --seed"),
    ],
)
def test_mistakes_are_one_line(
    file: Path, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (tmp_path / "m.safetensors").write_bytes(model.data)
    assert main([str(file), "--model", str(tmp_path / "m.safetensors"), "--detector", "d", *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_too_few_labelled_poses_are_refused(model: Any, file: Path) -> None:
    predictions = load_predictions(file, HAND)
    few = replace(predictions, labelled=predictions.labelled & (np.arange(120) < 9)[:, None])
    with pytest.raises(InputError, match="--unlabelled"):
        calibrate(model, few)


def test_every_guarded_error_counts_in_the_choice() -> None:
    """A hair less EPE does not outweigh a root-relative error that falls by a tenth."""
    settings = tuple(Setting(d, 15, "all", 1.0, 0.9) for d in (0.1, 0.2, 0.0))
    poses = 50
    means = {"epe": (8.99, 9.0, 10.0), "epe_root": (15.9, 14.4, 16.0), "p_epe": (7.0, 7.0, 8.0)}
    sums = {m: np.repeat(np.array(v)[:, None], poses, 1) for m, v in means.items()}
    trials = Trials(settings, sums, dict.fromkeys(means, np.ones(poses)))
    assert trials.choose(np.arange(poses)) == 1
    sums["p_epe"][1] = 8.1  # harm
    assert trials.choose(np.arange(poses)) == 0
    sums["epe_root"][:] = np.nan  # nothing has a labelled root
    assert trials.choose(np.arange(poses)) == 0
    sums["epe"][:2] = 10.1
    assert trials.choose(np.arange(poses)) == 2
