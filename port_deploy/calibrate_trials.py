# SPDX-License-Identifier: Apache-2.0
"""Every candidate setting's errors, pose by pose, and the rule that picks one of them: what `calibrate` chooses by.

May use: calibration, metrics, predictions, refiner, weights, config, NumPy. Test: tests/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy import metrics
from port_deploy.calibration import Setting
from port_deploy.config import MAX_COORDINATE
from port_deploy.predictions import Predictions
from port_deploy.refiner import Refiner
from port_deploy.weights import Model, with_changes

Float64Array = NDArray[np.float64]
MEASURES = ("epe", "epe_root", "p_epe", "p_epe_paper")
GUARDED = MEASURES[:3]
"""What must not rise."""


@dataclass(frozen=True)
class Trials:
    """Every candidate's errors, pose by pose.

    Attributes:
        settings: The candidates; the last one is off.
        sums: For each of MEASURES, [C, B]: the sum of a pose's errors; nothing scored counts 0.
        counts: For each of MEASURES, [B]: the joints in that sum.
    """

    settings: tuple[Setting, ...]
    sums: dict[str, Float64Array]
    counts: dict[str, Float64Array]

    def mean(self, measure: str, rows: NDArray[np.int64]) -> Float64Array:
        """Mean error of each candidate over some poses, [C]; NaN where nothing is scored."""
        total = self.counts[measure][rows].sum()
        answer: Float64Array = self.sums[measure][:, rows].sum(1) / (total if total else np.nan)
        return answer

    def change(self, rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """EPE's change of each candidate over some poses and half its 95 % interval over poses, both [C]."""
        counts = self.counts["epe"][rows]
        total, poses = counts.sum(), max(2, int((counts > 0).sum()))
        change = self.sums["epe"][:, rows] - self.sums["epe"][-1:, rows]
        centre = change.sum(1) / max(total, 1)
        spread = ((change - centre[:, None] * counts) ** 2).sum(1) * poses / (poses - 1)
        return centre, 1.96 * np.sqrt(spread) / max(total, 1)

    def choose(self, rows: NDArray[np.int64]) -> int:
        """The candidate with the smallest errors among those that do no harm to these poses; else the last, off.

        Each of GUARDED counts alike, in parts of what it is without refinement: EPE alone is noisier, and picks
        settings that leave the root behind.
        """
        centre, half = self.change(rows)
        harmless = centre + half < 0
        errors = np.zeros(len(self.settings))
        for measure in GUARDED:
            value = self.mean(measure, rows)
            harmless &= ~(value > value[-1])  # NaN: not measured
            errors += value / value[-1] if value[-1] > 0 else 0.0
        score = np.where(harmless, errors, np.inf)
        return int(score.argmin()) if harmless.any() else len(self.settings) - 1


def run_trials(model: Model, predictions: Predictions, settings: Sequence[Setting], threads: int = 0) -> Trials:
    """Refine with every candidate and score; one pass of the network for each δ and divisor.

    Args:
        model: The model.
        predictions: Labels and what the detector said, in the model's order.
        settings: The candidates; off is added at their end.
        threads: That compute, 0 for one per processor.
    """
    spec = model.spec
    truth, found = predictions.joints, predictions.detected
    given = np.asarray((np.abs(found) <= MAX_COORDINATE).all(-1), np.bool_)
    scored = predictions.labelled & given
    every = [*settings, Setting.of(spec).off()]
    sums = {m: np.zeros((len(every), len(truth))) for m in MEASURES}
    counts: dict[str, Float64Array] = {}
    passes: dict[tuple[float, float], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = {}
    loaded: dict[float, Refiner] = {}
    for i, setting in enumerate(every):
        if setting.threshold == 0:
            joints = found
        else:
            key = (setting.confidence_divisor, setting.threshold)
            if key not in passes:
                divisor = setting.confidence_divisor
                if divisor not in loaded:
                    free = {"refine": "all", "fusion": 1.0, "max_masked": spec.joints, "confidence_divisor": divisor}
                    loaded[divisor] = Refiner.load(with_changes(model, **free), threads=threads)
                answer = loaded[divisor].refine(found, predictions.confidence, threshold=setting.threshold)
                low = ~(predictions.confidence >= setting.threshold) | ~given
                passes = {key: (answer.joints, answer.mask.any(1), low)}  # the grid runs δ by δ: one is enough
            rebuilt, refined, low = passes[key]
            reached = (refined & (low.sum(1) <= setting.max_masked))[:, None]
            changed = reached & (low if setting.refine == "masked" else True)
            moved = found + np.float32(setting.fusion) * (rebuilt - found)
            joints = np.where(changed[..., None], moved, found)
        for measure, errors in _errors(joints, truth, scored, spec.skeleton.root).items():
            sums[measure][i] = np.nansum(errors, 1)
            counts[measure] = np.isfinite(errors).sum(1).astype(np.float64)
    return Trials(tuple(every), sums, counts)


def replace_sums(trials: Trials, picked: NDArray[np.int64]) -> Trials:
    """Two candidates: each pose with the setting ``picked`` [B] for it, and off."""
    poses = np.arange(len(picked))
    sums = {m: np.stack([s[picked, poses], s[-1]]) for m, s in trials.sums.items()}
    return Trials((trials.settings[0], trials.settings[-1]), sums, trials.counts)


def _errors(joints: NDArray[Any], truth: NDArray[Any], scored: NDArray[Any], root: int) -> dict[str, Float64Array]:
    return {
        "epe": metrics.joint_errors(joints, truth, scored),
        "epe_root": metrics.joint_errors(joints, truth, scored, root),
        "p_epe": metrics.p_errors(joints, truth, scored),
        "p_epe_paper": metrics.p_errors(joints, truth, scored, swapped=True),
    }
