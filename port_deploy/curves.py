# SPDX-License-Identifier: Apache-2.0
"""The plots of an evaluation, error by confidence (Fig. 4) and change by masked joints (Fig. 5), and of a calibration.

May use: evaluate, errors, files, NumPy, matplotlib (imported when a plot is drawn). Test: tests/test_evaluate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError, missing_extra
from port_deploy.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from port_deploy.calibrate import Calibration
    from port_deploy.evaluate import Evaluation

INK, MUTED, BEFORE, AFTER, WORSE = "#111827", "#6b7280", "#94a3b8", "#059669", "#dc2626"
BINS = np.linspace(0, 1, 11)
FEWEST = 5
"""A bin of fewer joints or poses says nothing and is not drawn."""


def error_by_confidence(result: Evaluation) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Joints, mean error before and mean error after, each [10], for ten equal bins of confidence from 0 to 1.

    Confidence above 1 falls into the last bin. A bin without joints has NaN.
    """
    scored = np.isfinite(result.errors_before)
    place = np.clip(np.digitize(result.confidence, BINS) - 1, 0, len(BINS) - 2)[scored]
    count = np.bincount(place, minlength=len(BINS) - 1)
    sums = [np.bincount(place, errors[scored], len(BINS) - 1) for errors in (result.errors_before, result.errors_after)]
    with np.errstate(invalid="ignore"):
        return count, sums[0] / count, sums[1] / count


def change_by_masked(result: Evaluation) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Poses and mean change of a pose's error in pixels, each [N + 1], by how many of its joints lie below δ.

    A negative change is an improvement. A number that no pose has is NaN.
    """
    total = result.low.shape[1] + 1
    with np.errstate(invalid="ignore"):
        counted = np.isfinite(result.errors_before)
        change = np.where(counted, result.errors_after - result.errors_before, 0).sum(1) / counted.sum(1)
        number = result.low.sum(1)
        poses = np.bincount(number, minlength=total)
        return poses, np.bincount(number, change, total) / poses


def draw_curves(result: Evaluation, path: str | Path, title: str) -> None:
    """Draw both plots side by side; written whole or not at all.

    Args:
        result: What `evaluate` found.
        path: The picture; its suffix chooses the format (.png, .jpg, .svg, .pdf).
        title: Data and model.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        InputError: The path cannot be written, or the suffix is no format.
    """
    with _two_panels(path, title) as (left, right):
        _confidence_panel(left, result)
        _masked_panel(right, result)


def draw_calibration(found: Calibration, scores: NDArray[Any], path: str | Path, title: str) -> None:
    """Draw how the error changes with δ, and where the scores lie; written whole or not at all.

    Args:
        found: What `calibrate` or `from_scores` chose; without labels there is no curve.
        scores: The detector's confidence; NaN is passed over.
        path: The picture; its suffix chooses the format.
        title: Model and detector.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        InputError: The path cannot be written, or the suffix is no format.
    """
    with _two_panels(path, title) as (left, right):
        delta = found.setting.threshold
        if found.curve:
            x, change, half = (np.array(v) for v in zip(*found.curve, strict=True))
            left.fill_between(x, change - half, change + half, color=AFTER, alpha=0.18, linewidth=0)
            left.plot(x, change, color=AFTER, linewidth=2, marker="o", markersize=4)
            left.axhline(0, color=INK, linewidth=0.9)
        else:
            left.text(0.5, 0.5, "no labels: nothing measured", ha="center", color=MUTED, transform=left.transAxes)
        left.set_xlabel("δ", color=INK)
        left.set_ylabel("change of EPE, px (95 % interval)", color=INK)
        left.set_title("Below zero: PORT helps", loc="left", size=11, color=INK)
        known = np.asarray(scores, np.float64)
        known = known[np.isfinite(known)]
        right.hist(known, bins=40, color=BEFORE)
        share = (known < delta).mean() if known.size else 0.0
        right.set_xlabel("detector's confidence", color=INK)
        right.set_ylabel("joints", color=INK)
        right.set_title(f"{share:.1%} of the joints lie below δ = {delta:.3g}", loc="left", size=11, color=INK)
        for axes in (left, right):
            axes.axvline(delta, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))


@contextmanager
def _two_panels(path: str | Path, title: str) -> Iterator[tuple[Axes, Axes]]:
    """Two empty plots to draw in; saved when the block ends well."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("drawing a plot", "viz") from error
    figure = Figure(figsize=(11, 4.3), dpi=130, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in canvas.get_supported_filetypes():
        raise InputError(f"expected a picture to be named .png, .jpg, .svg or .pdf, got {str(path)!r}")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, x=0.01, ha="left", size=13, weight="bold", color=INK)
    yield left, right
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED, labelsize=9)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    figure.tight_layout(w_pad=3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix)


def _confidence_panel(axes: Axes, result: Evaluation) -> None:
    count, before, after = error_by_confidence(result)
    shown = count >= FEWEST
    x = (BINS[:-1] + BINS[1:]) / 2
    axes.bar(x[shown] - 0.02, before[shown], width=0.038, color=BEFORE, label="detector")
    axes.bar(x[shown] + 0.02, after[shown], width=0.038, color=AFTER, label="detector + PORT")
    axes.axvline(result.threshold, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    top = float(np.nanmax(np.concatenate([before[shown], after[shown], [1.0]])))
    axes.text(result.threshold + 0.008, top * 1.09, f"δ = {result.threshold:g}", size=9.5, color=INK, va="top")
    axes.set(xlim=(0, 1), ylim=(0, top * 1.12), xticks=np.linspace(0, 1, 6))
    axes.set_xlabel("detector's confidence", color=INK)
    axes.set_ylabel("mean error, px", color=INK)
    axes.set_title("Error by confidence", loc="left", size=11, color=INK)
    axes.legend(frameon=False, fontsize=9.5, labelcolor=INK)


def _masked_panel(axes: Axes, result: Evaluation) -> None:
    poses, change = change_by_masked(result)
    shown = np.flatnonzero(poses >= FEWEST)
    axes.bar(shown, change[shown], width=0.7, color=[WORSE if c > 0 else AFTER for c in change[shown]])
    axes.axhline(0, color=INK, linewidth=0.9)
    low, high = (
        min(0.0, float(np.nanmin(change[shown], initial=0))),
        max(0.0, float(np.nanmax(change[shown], initial=0))),
    )
    room = 0.12 * max(high - low, 1e-6)
    for k in shown:
        below = change[k] <= 0
        axes.annotate(
            f"{poses[k]}",
            (k, change[k]),
            (0, -3 if below else 3),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            size=8,
            color=MUTED,
        )
    axes.set(ylim=(low - room, high + room), xticks=shown)
    axes.set_xlabel("joints of a pose below δ (number of poses at the bars)", color=INK)
    axes.set_ylabel("change of the pose's error, px", color=INK)
    axes.set_title("Below zero: PORT helps", loc="left", size=11, color=INK)
