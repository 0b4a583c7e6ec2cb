# SPDX-License-Identifier: Apache-2.0
"""The paper's figures for one's own data: error by confidence (Fig. 4), change by masked joints (5), attention (6).

May use: evaluate, errors, NumPy, matplotlib (imported when a figure is drawn). Test: tests/test_report.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.curves import AFTER, BEFORE, BINS, FEWEST, INK, MUTED, WORSE
from port_deploy.errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from port_deploy.evaluate import Evaluation
    from port_deploy.reliability import Reliability


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("drawing a figure", "viz") from error
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _tidy(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED, labelsize=9)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)


def error_boxes(result: Evaluation) -> bytes:
    """Fig. 4 as a PNG: box plots of the error by confidence, before and after, their means joined, δ marked."""
    figure = _figure(11, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    scored = np.isfinite(result.errors_before)
    place = np.clip(np.digitize(result.confidence, BINS) - 1, 0, len(BINS) - 2)
    middles = (BINS[:-1] + BINS[1:]) / 2
    means: list[NDArray[np.float64]] = []
    sides = (("without PORT", result.errors_before, BEFORE), ("with PORT", result.errors_after, AFTER))
    for axes, (title, errors, colour) in zip(panels, sides, strict=True):
        groups = [errors[scored & (place == i)] for i in range(len(middles))]
        shown = [i for i, g in enumerate(groups) if len(g) >= FEWEST]
        if shown:
            axes.boxplot(
                [groups[i] for i in shown], positions=middles[shown], widths=0.06, showfliers=False, whis=(5, 95),
                patch_artist=True, boxprops={"facecolor": colour, "alpha": 0.55}, medianprops={"color": INK},
                manage_ticks=False,
            )  # fmt: skip
        means.append(np.array([g.mean() if len(g) >= FEWEST else np.nan for g in groups]))
        axes.plot(middles, means[0], color="#2563eb", marker="o", markersize=4, linewidth=1.4, label="mean without")
        if len(means) == 2:
            axes.plot(middles, means[1], color="#ea580c", marker="o", markersize=4, linewidth=1.4, label="mean with")
        axes.axvline(result.threshold, color=WORSE, linewidth=1.2)
        axes.set(xlim=(0, 1), xticks=BINS[::2])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"confidence (line: δ = {result.threshold:.3g})", color=INK)
        axes.set_title(title, loc="left", size=11, color=INK)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("error, px (box: quartiles, whiskers: 5 to 95 %)", color=INK)
    _tidy(*panels)
    figure.tight_layout()
    return _png(figure)


def change_by_occlusion(result: Evaluation, seed: int = 0) -> bytes:
    """Fig. 5 as a PNG: change of a pose's error over how many of its joints lie below δ, with 95 % intervals."""
    figure = _figure(8, 3.6)
    axes = figure.subplots()
    counted = np.isfinite(result.errors_before)
    use = counted.any(1)
    change = np.where(counted, result.errors_after - result.errors_before, 0).sum(1)[use] / counted.sum(1)[use]
    number = result.low.sum(1)[use]
    random = np.random.default_rng(seed)
    for k in range(int(number.max(initial=0)) + 1):
        poses = change[number == k]
        if len(poses) < FEWEST:
            continue
        drawn = poses[random.integers(len(poses), size=(1000, len(poses)))].mean(1)
        low, high = np.percentile(drawn, (2.5, 97.5))
        centre = poses.mean()
        axes.bar(k, centre, width=0.7, color=WORSE if centre > 0 else AFTER)
        axes.vlines(k, low, high, color=INK, linewidth=1)
        axes.annotate(f"{len(poses)}", (k, max(0.0, high)), (0, 3), textcoords="offset points", ha="center", size=8)
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.set_xlabel("joints of a pose below δ (number of poses above the bars)", color=INK)
    axes.set_ylabel("change of the error, px", color=INK)
    _tidy(axes)
    figure.tight_layout()
    return _png(figure)


def reliability_plot(found: Reliability) -> bytes:
    """Predicted against actual error as a PNG: on the diagonal, standard deviations say the truth."""
    figure = _figure(5.2, 4.6)
    axes = figure.subplots()
    ends = [0.8 * min(*found.predicted, *found.actual), 1.25 * max(*found.predicted, *found.actual)]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="the truth")
    axes.plot(found.predicted, found.actual, "o-", color=AFTER, markersize=5, label="tenths of the joints")
    if found.scale != 1:
        raw = [p / found.scale for p in found.predicted]
        axes.plot(raw, found.actual, "o-", color=BEFORE, markersize=4, label="before the scale")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("predicted: σ, px (root mean square)", color=INK)
    axes.set_ylabel("actual error of a coordinate, px (root mean square)", color=INK)
    shares = " and ".join(f"{v:.0%}" for v in found.within)
    axes.set_title(f"{shares} within σ and 2 σ ({found.joints:,} joints)", loc="left", size=11, color=INK)
    axes.legend(frameon=False, fontsize=9)
    _tidy(axes)
    figure.tight_layout()
    return _png(figure)


def attention_maps(attention: NDArray[Any], adjacency: NDArray[Any], names: Sequence[str]) -> bytes:
    """Fig. 6 as a PNG: the skeleton's squared adjacency beside each layer's mean attention.

    Args:
        attention: [L, N, N], rows sum to 1.
        adjacency: [N, N], Ã.
        names: Of the joints.
    """
    maps = [("Ã²", adjacency @ adjacency), *((f"attention, layer {i + 1}", a) for i, a in enumerate(attention))]
    figure = _figure(3.1 * len(maps), 3.7)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (title, values) in zip(panels, maps, strict=True):
        axes.imshow(values, cmap="viridis", vmin=0)
        axes.set_title(title, size=10, color=INK)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=5)
        axes.set_yticks(ticks, names if axes is panels[0] else [], fontsize=5)
    figure.tight_layout()
    return _png(figure)
