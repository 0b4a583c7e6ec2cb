# SPDX-License-Identifier: Apache-2.0
"""Choosing a detector's setting: by cross-validation on labelled predictions, or as the paper does, from scores alone.

The promise of the first is *no harm*. A setting is taken only if, on the poses that it is chosen on, the mean error
falls by more than chance and neither the root-relative nor the aligned error rises; and if the same rule, applied to
all folds but one, raises none of the three on the folds left out. Otherwise refinement stays off for that detector.
May use: calibrate_trials, calibration, predictions, refiner, reliability, weights, errors, NumPy.
Test: tests/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.calibrate_trials import GUARDED, MEASURES, Trials, replace_sums, run_trials
from port_deploy.calibration import Setting
from port_deploy.config import MAX_COORDINATE
from port_deploy.errors import InputError
from port_deploy.predictions import Predictions
from port_deploy.refiner import Refiner
from port_deploy.reliability import FEWEST, held_out_scale
from port_deploy.weights import Model, with_changes

PERCENTILES = (1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50)
"""Percentiles of the detector's scores that are tried as δ (the paper sweeps up to 40)."""
FUSIONS = (0.5, 0.75, 1.0)
FULL_PERCENTILE = 95
"""Scores from this percentile up count as full confidence when only scores are known."""
MIN_POSES = 20
MAX_POSES = 5000
"""Of more, so many drawn at random decide: every candidate's errors of every pose are held in memory."""


@dataclass(frozen=True)
class Calibration:
    """What was chosen and what it is worth.

    Attributes:
        setting: The choice.
        source: One line: how it was made.
        poses: How many decided.
        before: Each of MEASURES without refinement, pixels; NaN without a labelled root. Empty without labels.
        after: The same on poses that did not choose the setting that refined them.
        change_95: Half-width of the 95 % interval of EPE's change on those poses.
        folds: The setting that each fold's others chose.
        kept: False where the rule found harm, and refinement is off.
        std: Of a model with a variance: ``joints`` that it was measured on, shares ``within`` σ and 2 σ with a scale of
            1 (``raw``) and on poses that did not choose their scale (``held_out``).
        curve: δ and, with the choice's other fields, the change of EPE and half its 95 % interval over all poses.
    """

    setting: Setting
    source: str
    poses: int
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    change_95: float = float("nan")
    folds: tuple[Setting, ...] = ()
    kept: bool = True
    std: dict[str, Any] = field(default_factory=dict)
    curve: tuple[tuple[float, float, float], ...] = ()

    def facts(self) -> dict[str, Any]:
        """What is kept beside the setting in the model file."""
        facts: dict[str, Any] = {"source": self.source, "poses": self.poses}
        if self.after:
            pairs = ((k, self.before[k], self.after[k]) for k in MEASURES)
            facts["held_out"] = {k: [round(a, 4), round(b, 4)] for k, a, b in pairs if np.isfinite(a)}
        if self.std:
            facts["std"] = self.std
        return facts


def candidates(model: Model, confidence: NDArray[Any], divisors: Sequence[float]) -> list[Setting]:
    """The grid: δ at PERCENTILES of the scores and the model's own, three reaches, FUSIONS."""
    count = model.spec.joints
    deltas = {round(float(v), 3) for v in np.percentile(confidence, PERCENTILES)} | {model.spec.threshold}
    reaches = sorted({count // 4, count // 2, min(model.spec.max_masked, count)})
    return [
        Setting(delta, reach, mode, fusion, divisor)
        for divisor in divisors
        for delta in sorted(d for d in deltas if d > 0)
        for mode in ("masked", "all")
        for reach in reaches
        for fusion in FUSIONS
    ]


def calibrate(
    model: Model,
    predictions: Predictions,
    folds: int = 5,
    seed: int = 0,
    threads: int = 0,
    settings: Sequence[Setting] | None = None,
) -> Calibration:
    """Choose by cross-validation; see the module for the rule.

    Args:
        model: The model.
        predictions: A detector's answers on labelled poses, in the model's order. Poses of one video should not be
            split over folds: give one frame of each, or few.
        folds: Into how many parts the poses are split, at random.
        seed: Of the split.
        threads: That compute, 0 for one per processor.
        settings: Candidates instead of `candidates`.

    Raises:
        InputError: Too few poses can be scored, or ``folds`` does not fit them.
    """
    given = np.asarray((np.abs(predictions.detected) <= MAX_COORDINATE).all(-1), np.bool_)
    rows = np.flatnonzero((predictions.labelled & given).any(1))
    if len(rows) > MAX_POSES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_POSES, replace=False))
        predictions, given = subset(predictions, rows), given[rows]
        rows = np.arange(MAX_POSES)
    if len(rows) < MIN_POSES:
        raise InputError(
            f"{predictions.source}: {len(rows)} poses have a label and a prediction: calibration takes at least "
            f"{MIN_POSES}; without labels, --unlabelled reads δ off the scores"
        )
    if not 2 <= folds <= len(rows) // 4:
        raise InputError(f"expected folds from 2 to {len(rows) // 4} for {len(rows)} poses, got {folds}")
    if settings is None:
        scores = predictions.confidence[given]
        divisors = sorted({model.spec.confidence_divisor, full_confidence(scores)})
        settings = candidates(model, scores, divisors if model.spec.config.input_channels == 3 else divisors[:1])
    trials = run_trials(model, predictions, settings, threads)
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), folds)
    chosen = [trials.choose(np.concatenate([p for j, p in enumerate(parts) if j != i])) for i in range(folds)]
    before, after = (_pooled(trials, parts, c) for c in ([len(trials.settings) - 1] * folds, chosen))
    picked = np.zeros(len(predictions.joints), np.int64)
    for part, choice in zip(parts, chosen, strict=True):
        picked[part] = choice
    held = replace_sums(trials, picked)
    _, half = held.change(rows)
    best = trials.choose(rows)
    kept = best < len(trials.settings) - 1 and not any(after[m] > before[m] for m in GUARDED)
    setting = trials.settings[best] if kept else Setting.of(model.spec).off()
    setting, std = _scaled(model, predictions, setting, parts, threads)
    outcome = f"EPE {before['epe']:.2f} to {after['epe']:.2f} px on held-out folds" + ("" if kept else ", so it is off")
    return Calibration(
        setting=setting,
        source=f"{folds}-fold cross-validation on {len(rows)} labelled poses: {outcome}",
        poses=len(rows),
        before=before,
        after=after,
        change_95=float(half[0]),
        folds=tuple(trials.settings[c] for c in chosen),
        kept=kept,
        std=std,
        curve=_curve(trials, rows, trials.settings[best]),
    )


def _scaled(
    model: Model, predictions: Predictions, setting: Setting, parts: Sequence[NDArray[np.int64]], threads: int
) -> tuple[Setting, dict[str, Any]]:
    """The setting with the scale of σ that its own repairs ask for, and what `Calibration.std` says of it."""
    if not model.spec.config.variance:
        return setting, {}
    plain = replace(setting, std_scale=1.0)
    refiner = Refiner.load(with_changes(model, **asdict(plain)), device="cpu", threads=threads)
    answer = refiner.refine(predictions.detected, predictions.confidence)
    distance = np.linalg.norm(answer.joints - predictions.joints, axis=-1)
    distance = np.where(predictions.labelled & answer.mask, distance, np.nan)
    scale, before, after, joints = held_out_scale(distance, answer.std, parts)
    if joints < FEWEST:
        return plain, {"joints": joints}
    within = {"raw": [round(v, 4) for v in before], "held_out": [round(v, 4) for v in after]}
    return replace(setting, std_scale=round(scale, 4)), {"joints": joints, "within": within}


def subset(predictions: Predictions, rows: NDArray[np.int64]) -> Predictions:
    """Some poses of a file."""
    names = ("joints", "detected", "confidence", "labelled")
    parts = {name: getattr(predictions, name)[rows] for name in names}
    return replace(predictions, **parts, sizes={k: v[rows] for k, v in predictions.sizes.items()})


def from_scores(model: Model, confidence: NDArray[Any], percentile: float = 10.0) -> Calibration:
    """Choose δ without labels: a percentile of the detector's scores; full confidence is their FULL_PERCENTILE.

    Args:
        model: The model.
        confidence: The detector's scores, any shape; NaN is passed over.
        percentile: Share of the joints that fall below δ, per cent.

    Raises:
        InputError: There are too few scores, all are alike, or the percentile does not fit.
    """
    if not 0 < percentile <= 90:
        raise InputError(f"expected a percentile above 0 and up to 90, got {percentile:g}")
    scores = np.asarray(confidence, np.float64)
    scores = scores[np.isfinite(scores)]
    if scores.size < MIN_POSES or np.ptp(scores) == 0:
        raise InputError(f"expected at least {MIN_POSES} scores that differ, got {scores.size}: nothing tells δ")
    setting = replace(Setting.of(model.spec), threshold=round(float(np.percentile(scores, percentile)), 4))
    if model.spec.config.input_channels == 3:
        setting = replace(setting, confidence_divisor=full_confidence(scores))
    source = f"percentile {percentile:g} of {scores.size} scores, no label used"
    return Calibration(setting, source, int(scores.size))


def full_confidence(scores: NDArray[Any]) -> float:
    """The detector's full confidence, read off its scores."""
    value = float(np.nanpercentile(scores, FULL_PERCENTILE))
    return round(value, 3) if value > 0 else 1.0


def _pooled(trials: Trials, parts: Sequence[NDArray[np.int64]], chosen: Sequence[int]) -> dict[str, float]:
    pooled = {}
    for measure in MEASURES:
        total = sum(float(trials.counts[measure][p].sum()) for p in parts)
        error = sum(float(trials.sums[measure][c, p].sum()) for p, c in zip(parts, chosen, strict=True))
        pooled[measure] = error / total if total else float("nan")
    return pooled


def _curve(trials: Trials, rows: NDArray[np.int64], setting: Setting) -> tuple[tuple[float, float, float], ...]:
    centre, half = trials.change(rows)
    wanted = asdict(setting) | {"threshold": None}
    return tuple(
        (s.threshold, float(centre[i]), float(half[i]))
        for i, s in enumerate(trials.settings[:-1])
        if asdict(s) | {"threshold": None} == wanted
    )
