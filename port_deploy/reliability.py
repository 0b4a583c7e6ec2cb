# SPDX-License-Identifier: Apache-2.0
"""Whether standard deviations tell the truth: how many joints lie within σ and 2 σ, and the scale that mends it.

Errors of detectors have longer tails than a Gaussian, so no scale makes both shares right at once; the most likely one
is a few lost poses' (on 423 photographs of hands 2.9, with 70 % within σ where 39 % belong). The scale is therefore the
one that brings both shares nearest to a Gaussian's. May use: errors, NumPy.
Test: tests/test_reliability.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

EXPECTED = (1 - math.exp(-0.5), 1 - math.exp(-2.0))
"""Shares of an isotropic Gaussian in the plane within σ and 2 σ: 39.3 and 86.5 %."""

SCALES = np.geomspace(0.05, 20.0, 1201)
"""What `fit_scale` tries, in steps of half a per cent."""

FEWEST = 100
"""Fewer joints than this tell no scale."""


@dataclass(frozen=True)
class Reliability:
    """What is known of the standard deviations of one evaluation.

    Attributes:
        joints: Labelled joints that have one.
        scale: ``std_scale``, which is in them.
        within: Shares within σ and 2 σ, 0..1.
        within_raw: The same of the network's own, before ``std_scale``.
        predicted: [10] pixels: root mean square of σ, of tenths of the joints by σ (fewer where joints are few).
        actual: [10] pixels: root mean square of a coordinate's error in them; equal where σ is right.
    """

    joints: int
    scale: float
    within: tuple[float, float]
    within_raw: tuple[float, float]
    predicted: tuple[float, ...]
    actual: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with what a Gaussian has beside them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()} | {"expected": list(EXPECTED)}

    def __str__(self) -> str:
        one, two = self.within
        text = f"{one:.1%} within σ (of a Gaussian {EXPECTED[0]:.1%}), {two:.1%} within 2 σ ({EXPECTED[1]:.1%})"
        if self.scale != 1:
            raw = " and ".join(f"{v:.1%}" for v in self.within_raw)
            text += f"; before the scale of {self.scale:.3g}: {raw}"
        return text


def reliability(distance: NDArray[Any], std: NDArray[Any], scale: float = 1.0, bins: int = 10) -> Reliability | None:
    """Compare errors with what was said of them.

    Args:
        distance: Pixels from the label; NaN where there is none. Any shape.
        std: Standard deviations of that shape, NaN where there is none.
        scale: ``std_scale``, which is in them.
        bins: Parts of equal number that they are compared in; at least 20 joints fall into each.

    Returns:
        None where no joint has both.
    """
    use = np.isfinite(distance) & np.isfinite(std)
    off, sigma = distance[use].astype(np.float64), std[use].astype(np.float64)
    if not off.size:
        return None
    order = np.argsort(sigma, kind="stable")
    parts = np.array_split(order, max(1, min(bins, off.size // 20)))
    return Reliability(
        joints=int(off.size),
        scale=scale,
        within=coverage(off, sigma),
        within_raw=coverage(off, sigma / scale),
        predicted=tuple(float(np.sqrt(np.mean(sigma[p] ** 2))) for p in parts),
        actual=tuple(float(np.sqrt(np.mean(off[p] ** 2) / 2)) for p in parts),
    )


def coverage(distance: Float64Array, std: Float64Array) -> tuple[float, float]:
    """Shares of joints no farther off than σ and than 2 σ, 0..1."""
    return float((distance <= std).mean()), float((distance <= 2 * std).mean())


def fit_scale(distance: Float64Array, std: Float64Array) -> float:
    """The factor on ``std`` whose `coverage` lies nearest to EXPECTED, by least squares; 1 with fewer than FEWEST."""
    if distance.size < FEWEST:
        return 1.0
    ratio = np.sort(distance / std)
    shares = [np.searchsorted(ratio, k * SCALES, side="right") / ratio.size for k in (1, 2)]
    gap = sum((share - wanted) ** 2 for share, wanted in zip(shares, EXPECTED, strict=True))
    best = np.flatnonzero(gap <= np.min(gap) + 1e-12)
    return float(SCALES[best[len(best) // 2]])


def held_out_scale(
    distance: NDArray[Any], std: NDArray[Any], folds: Sequence[NDArray[np.int64]]
) -> tuple[float, tuple[float, float], tuple[float, float], int]:
    """A scale from all poses, and what such a scale is worth on poses that did not choose it.

    Args:
        distance: [B, N] pixels, NaN where not known.
        std: [B, N] of scale 1, NaN likewise.
        folds: Rows, each part's turn to be left out.

    Returns:
        The scale; shares within σ and 2 σ of scale 1, and with each fold's scale from the others; joints.
    """
    use = np.isfinite(distance) & np.isfinite(std)

    def of(rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        keep = use[rows]
        return distance[rows][keep].astype(np.float64), std[rows][keep].astype(np.float64)

    every = of(np.concatenate(list(folds)))
    if every[0].size < FEWEST:
        return 1.0, (math.nan, math.nan), (math.nan, math.nan), int(every[0].size)
    held: list[tuple[Float64Array, Float64Array]] = []
    for i, part in enumerate(folds):
        scale = fit_scale(*of(np.concatenate([p for j, p in enumerate(folds) if j != i])))
        off, sigma = of(part)
        held.append((off, sigma * scale))
    after = coverage(np.concatenate([h[0] for h in held]), np.concatenate([h[1] for h in held]))
    return fit_scale(*every), coverage(*every), after, int(every[0].size)
