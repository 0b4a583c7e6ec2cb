# SPDX-License-Identifier: Apache-2.0
"""How much a model repairs of a detector's errors: the detector's own figures beside those after refinement.

Both sides are scored on exactly the same joints: labelled, and given by the detector. What the detector left out and
the model filled in is told apart (``missing``), since no error before it can be compared with. Without a label of the
skeleton's root there is no root-relative error. May use: metrics, predictions, refiner, reliability, errors, NumPy.
Test: tests/test_evaluate.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from port_deploy import metrics
from port_deploy.config import MAX_COORDINATE
from port_deploy.errors import InputError
from port_deploy.reliability import Reliability, reliability

if TYPE_CHECKING:
    from port_deploy.predictions import Predictions
    from port_deploy.refiner import Refiner

PCK_FRACTION = {"bbox": 0.2, "head": 0.5, "image": 0.05, "pose": 0.2}
"""The usual fraction for each size: PCK@0.2 of the box, PCKh@0.5 of the head."""
BATCH = 4096
"""Poses refined in one call; bounds memory on large files."""


@dataclass(frozen=True)
class Scores:
    """Figures of one side, pixels unless said otherwise; NaN where nothing can be scored.

    Attributes:
        epe_root: Mean error after subtracting the root joint from both (Table I).
        epe: Mean error.
        p_epe: After aligning the prediction to the truth (move, turn, scale).
        p_epe_paper: After aligning the truth to the prediction, as the paper's script does.
        epe_masked: Mean error of the joints whose confidence is below the threshold.
        epe_untouched: Mean error of the other joints (with ``refine="masked"`` nothing touches them).
        pck: Share of joints within the PCK limit, 0..1.
        auc: Area under the PCK curve from 0 to that limit, 0..1.
    """

    epe_root: float
    epe: float
    p_epe: float
    p_epe_paper: float
    epe_masked: float
    epe_untouched: float
    pck: float
    auc: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        detector: Figures before.
        refined: Figures after.
        threshold: δ that masked.
        masked_fraction: Share of the scored joints below δ.
        samples: Poses with at least one joint scored; the others of the file are left out everywhere.
        scored: Joints scored.
        left_alone: Poses returned unchanged by the rules for too few visible or too many masked joints.
        epe_change: Mean error after minus before, and ``epe_change_95`` half its 95 % interval over poses.
        epe_change_95: Pixels.
        nearer: Share of the scored joints that changed and ended nearer to their label.
        missing: Labelled joints that the detector gave no position for; ``missing_epe`` is their error once rebuilt.
        missing_epe: Pixels.
        pck_limit: Fraction of ``pck_of`` within which a joint counts as correct.
        pck_of: ``bbox``, ``head``, ``image``, ``pose``, or ``px`` (the limit is then pixels).
        errors_before: [B, N] pixels, NaN where not scored.
        errors_after: [B, N] pixels.
        low: [B, N] bool, the joints below δ.
        confidence: [B, N].
        mask: [B, N] bool, the joints that the refiner changed.
        truth: [B, N, 2] labels, NaN without one.
        detected: [B, N, 2] joints before.
        joints: [B, N, 2] joints after.
        std: [B, N] pixels, `Refined.std`; None where the model has no variance.
        reliability: Whether that is true; None likewise, and where no labelled joint was rebuilt.
    """

    detector: Scores
    refined: Scores
    threshold: float
    masked_fraction: float
    samples: int
    scored: int
    left_alone: int
    epe_change: float
    epe_change_95: float
    nearer: float
    missing: int
    missing_epe: float
    pck_limit: float
    pck_of: str
    errors_before: NDArray[np.float64]
    errors_after: NDArray[np.float64]
    low: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truth: NDArray[np.float32]
    detected: NDArray[np.float32]
    joints: NDArray[np.float32]
    std: NDArray[np.float32] | None = None
    reliability: Reliability | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values; NaN where nothing can be scored."""
        arrays = ("errors_before", "errors_after", "low", "confidence", "mask", "truth", "detected", "joints", "std")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in arrays}
        values["reliability"] = self.reliability and self.reliability.to_json()
        return {**values, "detector": asdict(self.detector), "refined": asdict(self.refined)}


def evaluate(
    refiner: Refiner, predictions: Predictions, pck_of: str | None = None, pck_limit: float | None = None
) -> Evaluation:
    """Refine every pose and score both sides.

    Args:
        refiner: The model, with its threshold and refine mode.
        predictions: In the order of the model's skeleton.
        pck_of: What the PCK limit is a fraction of (`predictions.SIZES`), or ``px``; absent: the first that the file
            has.
        pck_limit: The fraction, or pixels; absent: PCK_FRACTION, or 10 pixels.

    Raises:
        InputError: Nothing in the file can be scored, or it has not the size that was asked for.
    """
    if predictions.joints.shape[1] != refiner.model.joints:
        raise InputError(
            f"expected {refiner.model.joints} joints of {refiner.model.name!r}, got {predictions.joints.shape[1]}"
        )
    given: NDArray[np.bool_] = np.asarray((np.abs(predictions.detected) <= MAX_COORDINATE).all(-1), np.bool_)
    use: NDArray[np.bool_] = np.asarray((predictions.labelled & given).any(1), np.bool_)
    if not use.any():
        raise InputError(f"{predictions.source} has no joint with both a label and a prediction: nothing to score")
    truth, detected, confidence = predictions.joints[use], predictions.detected[use], predictions.confidence[use]
    labelled, given = predictions.labelled[use], given[use]
    refined, mask = np.empty_like(detected), np.empty(confidence.shape, np.bool_)
    std = np.full(confidence.shape, np.nan, np.float32)
    has_std = False
    for start in range(0, len(truth), BATCH):
        part = slice(start, start + BATCH)
        result = refiner.refine(detected[part], confidence[part])
        refined[part], mask[part] = result.joints, result.mask
        if result.std is not None:
            std[part], has_std = result.std, True
    low = np.asarray(~(confidence >= refiner.threshold) | ~given, np.bool_)
    scored = labelled & given & np.isfinite(refined).all(-1)
    of, limit, size = _pck_size(predictions, use, pck_of, pck_limit)
    root = refiner.model.skeleton.root

    def side(joints: NDArray[Any]) -> tuple[Scores, NDArray[np.float64]]:
        errors = metrics.joint_errors(joints, truth, scored)
        return (
            Scores(
                epe_root=metrics.epe(joints, truth, scored, root=root),
                epe=metrics.mean(errors),
                p_epe=metrics.p_epe(joints, truth, scored),
                p_epe_paper=metrics.p_epe(joints, truth, scored, swapped=True),
                epe_masked=metrics.mean(errors[low]),
                epe_untouched=metrics.mean(errors[~low]),
                pck=metrics.pck(joints, truth, limit, size, scored),
                auc=metrics.auc(joints, truth, limit, size, scored),
            ),
            errors,
        )

    before, errors_before = side(detected)
    after, errors_after = side(refined)
    changed = scored & mask
    lost = labelled & ~given
    change, half_width = metrics.change_interval(errors_before, errors_after)
    return Evaluation(
        detector=before,
        refined=after,
        threshold=float(refiner.threshold),
        masked_fraction=float(low[scored].mean()),
        samples=len(truth),
        scored=int(scored.sum()),
        left_alone=int((low.any(1) & ~mask.any(1)).sum()),
        epe_change=change,
        epe_change_95=half_width,
        nearer=metrics.mean(errors_after[changed] < errors_before[changed]),
        missing=int(lost.sum()),
        missing_epe=metrics.epe(refined, truth, lost),
        pck_limit=limit,
        pck_of=of,
        errors_before=errors_before,
        errors_after=errors_after,
        low=low,
        confidence=confidence,
        mask=mask,
        truth=truth,
        detected=detected,
        joints=refined,
        std=std if has_std else None,
        reliability=reliability(
            np.where(labelled & mask, np.linalg.norm(refined - truth, axis=-1), np.nan), std, refiner.model.std_scale
        ),
    )


def _pck_size(
    predictions: Predictions, use: NDArray[np.bool_], of: str | None, limit: float | None
) -> tuple[str, float, Any]:
    if of is None:
        of = next(iter(predictions.sizes))
    if of == "px":
        return of, 10.0 if limit is None else limit, 1.0
    if of not in predictions.sizes:
        raise InputError(f"{predictions.source} has no {of} size: use one of {', '.join(predictions.sizes)}, px")
    return of, PCK_FRACTION[of] if limit is None else limit, predictions.sizes[of][use]
