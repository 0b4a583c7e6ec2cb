# SPDX-License-Identifier: Apache-2.0
"""The before/after picture: a detector's skeleton on a photograph beside PORT's, confidence as colour.

May use: demo, errors, files, NumPy, matplotlib (imported when a picture is drawn). Test: tests/test_demo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.demo import PATCH_PX, Case, photograph
from port_deploy.errors import InputError, missing_extra
from port_deploy.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, EDGE = "#111827", "#6b7280", "#0b1220"
REBUILT, NEARER, WRONG = "#34d399", "#fbbf24", "#b91c1c"
REPAIRED = 0.6
"""An error below this share of the detector's counts as repaired, above it as nearer only."""
WIDTH_IN, MARGIN_IN, GAP_IN, TITLE_IN, LEGEND_IN = 10.4, 0.1, 0.12, 0.62, 0.62
PANEL_IN = (WIDTH_IN - 2 * MARGIN_IN - GAP_IN) / 2
TITLES = (("Detector", "one joint hidden by a patch"), ("Detector + PORT", "rebuilt from the other joints"))


def draw_before_after(cases: Sequence[Case], path: str | Path) -> None:
    """Draw one row per case, the detector on the left and PORT on the right; written whole or not at all.

    Args:
        cases: What to draw.
        path: The picture; its suffix chooses the format (.png, .jpg, .svg, .pdf).

    Raises:
        BackendUnavailableError: matplotlib or scikit-image is not installed.
        InputError: The path cannot be written, or the suffix is no format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("drawing a picture", "viz") from error
    height_in = TITLE_IN + len(cases) * PANEL_IN + (len(cases) - 1) * GAP_IN + LEGEND_IN
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in canvas.get_supported_filetypes():
        raise InputError(f"expected a picture to be named .png, .jpg, .svg or .pdf, got {str(path)!r}")

    def place(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Inches from the top left to the figure's fractions from the bottom left."""
        return x / WIDTH_IN, 1 - (y + height) / height_in, width / WIDTH_IN, height / height_in

    for column, (title, note) in enumerate(TITLES):
        x = MARGIN_IN + column * (PANEL_IN + GAP_IN)
        y = 1 - TITLE_IN * 0.55 / height_in
        label = figure.text(x / WIDTH_IN, y, title, size=17, weight="bold", color=INK, va="center_baseline")
        end = label.get_window_extent(canvas.get_renderer()).x1 / figure.bbox.width
        figure.text(end + 0.012, y, note, size=12, color=MUTED, va="center_baseline")
        for row, case in enumerate(cases):
            axes = figure.add_axes(place(x, TITLE_IN + row * (PANEL_IN + GAP_IN), PANEL_IN, PANEL_IN))
            _panel(axes, case, photograph(case.photo), refined=column == 1)
    _legend(figure, place(MARGIN_IN, height_in - LEGEND_IN, WIDTH_IN - 2 * MARGIN_IN, LEGEND_IN))
    with atomic_path(path) as temporary:
        if suffix in ("jpg", "jpeg"):  # small enough for a README
            figure.savefig(temporary, format=suffix, dpi=92, pil_kwargs={"quality": 82, "optimize": True})
        else:
            figure.savefig(temporary, format=suffix)


def _panel(axes: Axes, case: Case, photo: NDArray[np.uint8], refined: bool) -> None:
    from matplotlib.patches import Rectangle

    height, width = photo.shape[:2]
    calm = (photo.astype(np.float32) * 0.82 + 22).astype(np.uint8)  # the skeleton must stand out on any photograph
    axes.imshow(calm, interpolation="lanczos")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.axis("off")
    right = case.truth[case.hidden].astype(np.float64)
    corner = (right[0] - PATCH_PX / 2, right[1] - PATCH_PX / 2)
    style: dict[str, Any] = {"zorder": 2, "linewidth": 1.6}
    axes.add_patch(Rectangle(corner, PATCH_PX, PATCH_PX, facecolor=(1, 1, 1, 0.16), edgecolor="none", **style))
    axes.add_patch(Rectangle(corner, PATCH_PX, PATCH_PX, fill=False, hatch="////", edgecolor=(1, 1, 1, 0.75), **style))
    joints = (case.refined if refined else case.detected).astype(np.float64)
    shown = case.seen
    _skeleton(axes, case, joints, shown, refined)
    where = joints[case.hidden]
    axes.plot(*np.stack([where, right], 1), color="white", linewidth=2.2, linestyle=(0, (1.2, 1.6)), zorder=7)
    axes.plot(*right, marker="+", markersize=15, markeredgewidth=4.8, color="black", zorder=8)
    axes.plot(*right, marker="+", markersize=13.5, markeredgewidth=2.2, color="white", zorder=9)
    error = case.after_px if refined else case.before_px
    taken = [joints[j] for j in np.flatnonzero(shown)] + [right]
    for a, b in case.bones:
        if shown[a] and shown[b]:
            taken += list(joints[a] + np.linspace(0, 1, 20)[:, None] * (joints[b] - joints[a]))
    text = f"{case.joint}  {error:.0f} px off"
    share = error / case.before_px
    colour = REBUILT if share < REPAIRED else NEARER if share < 1 else WRONG
    _callout(axes, text, right, np.array(taken), (width, height), colour)


def _skeleton(axes: Axes, case: Case, joints: NDArray[np.float64], shown: NDArray[np.bool_], refined: bool) -> None:
    colours = confidence_colours(case.confidence)
    rebuilt = case.mask & refined
    for a, b in case.bones:
        if shown[a] and shown[b]:
            ends = joints[[a, b]]
            axes.plot(*ends.T, color=EDGE, linewidth=6.4, solid_capstyle="round", alpha=0.75, zorder=3)
            if rebuilt[a] or rebuilt[b]:
                axes.plot(*ends.T, color=REBUILT, linewidth=3.4, solid_capstyle="round", zorder=4)
            else:
                _gradient_line(axes, ends, colours[[a, b]])
    for j in np.flatnonzero(shown):
        marker, size, colour = ("D", 9.5, REBUILT) if rebuilt[j] else ("o", 9.5, colours[j])
        axes.plot(*joints[j], marker, markersize=size, color=colour, markeredgecolor=EDGE, mew=1.8, zorder=5)


def _gradient_line(axes: Axes, ends: NDArray[np.float64], colours: NDArray[np.float64], steps: int = 12) -> None:
    from matplotlib.collections import LineCollection

    t = np.linspace(0, 1, steps + 1)[:, None]
    points = ends[0] * (1 - t) + ends[1] * t
    middle = (t[1:] + t[:-1]) / 2
    shades = colours[0] * (1 - middle) + colours[1] * middle
    segments = np.stack([points[:-1], points[1:]], 1)
    axes.add_collection(LineCollection(list(segments), colors=shades, linewidths=3.4, capstyle="round", zorder=4))


def _callout(
    axes: Axes,
    text: str,
    patch: NDArray[np.float64],
    taken: NDArray[np.float64],
    size: tuple[int, int],
    colour: str,
) -> None:
    """The error in a box at the patch, on the side where it stays inside the photograph and off the skeleton."""
    style = {"boxstyle": "round,pad=0.42", "facecolor": colour, "edgecolor": "none"}
    ink = "white" if colour == WRONG else INK
    label = axes.text(0, 0, text, size=12.5, weight="bold", color=ink, ha="center", va="center", zorder=10, bbox=style)
    label.draw(axes.figure.canvas.get_renderer())  # type: ignore[attr-defined]
    frame = label.get_bbox_patch().get_window_extent()  # type: ignore[union-attr]
    scale = size[0] / axes.get_window_extent().width
    half = np.array([frame.width, frame.height]) * scale / 2
    reach = PATCH_PX / 2 + 14 + half
    best, least = patch, np.inf
    for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        centre = patch + reach * [dx, dy]
        centre = np.clip(centre, half + 6, np.array(size) - half - 6)
        covered = (np.abs(taken - centre) < half + 8).all(-1).sum()
        on_patch = np.prod(np.maximum(0, half + PATCH_PX / 2 - np.abs(centre - patch)))
        cost = float(covered + on_patch / 100)
        if cost < least:
            best, least = centre, cost
    label.set_position((float(best[0]), float(best[1])))


def confidence_colours(confidence: NDArray[np.float32]) -> NDArray[np.float64]:
    """Red over amber to blue for 0, 0.4 and 0.8 and above, RGBA [N, 4] in 0..1; told apart by the colour-blind too."""
    stops = np.array([[0.86, 0.15, 0.15, 1.0], [0.98, 0.75, 0.14, 1.0], [0.22, 0.62, 0.98, 1.0]])
    c = np.clip(np.nan_to_num(confidence.astype(np.float64)), 0, 0.8)
    return np.stack([np.interp(c, [0, 0.4, 0.8], stops[:, k]) for k in range(4)], -1)


def _legend(figure: Figure, place: tuple[float, float, float, float]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes = figure.add_axes(place)
    axes.axis("off")
    axes.text(0, 0.5, "detector's confidence", size=10.5, color=INK, va="center", transform=axes.transAxes)
    bar = axes.inset_axes((0.165, 0.38, 0.15, 0.24))
    ramp = np.linspace(0, 0.8, 200, dtype=np.float32)
    bar.imshow(confidence_colours(ramp)[None], aspect="auto", extent=(0, 0.8, 0, 1))
    bar.set(yticks=[], xticks=[0, 0.4, 0.8])
    bar.tick_params(labelsize=9, length=2, pad=1.5, colors=MUTED)
    for spine in bar.spines.values():
        spine.set_visible(False)
    edge: dict[str, Any] = {"markeredgecolor": EDGE, "mew": 1.6}
    entries = {
        "rebuilt by PORT": Line2D([], [], marker="D", markersize=9, color=REBUILT, linewidth=3.2, **edge),
        "its place without the patch": Line2D([], [], marker="+", markersize=12, mew=2.4, color=INK, linestyle="none"),
        f"the patch, {PATCH_PX} px": Patch(facecolor="#e5e7eb", edgecolor=MUTED, hatch="////"),
    }
    axes.legend(
        list(entries.values()),
        list(entries),
        loc="center right",
        bbox_to_anchor=(1.0, 0.5),
        ncols=3,
        frameon=False,
        fontsize=10.5,
        labelcolor=INK,
        borderaxespad=0,
    )
