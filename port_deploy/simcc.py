# SPDX-License-Identifier: Apache-2.0
"""`decode_simcc`: the vectors of RTMPose and its kind to joints, confidence and mask, in the native core.

May use: arrays, refined, backends, detector_info, errors, NumPy. Test: tests/test_decode_codecs.py.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from port_deploy.arrays import FLOAT16, FLOAT32, check_threshold, host_view
from port_deploy.backends import native
from port_deploy.backends.select import check_threads
from port_deploy.detector_info import ScoreRule
from port_deploy.errors import InputError
from port_deploy.refined import Refined, outputs

MAX_BINS = 4096


def decode_simcc(
    simcc_x: Any,
    simcc_y: Any,
    split_ratio: float = 2.0,
    score: ScoreRule = "min",
    threshold: float = 0.3,
    out: Any = None,
    threads: int = 1,
) -> Refined:
    """SimCC vectors to joints: the largest bin of each axis. Needs the native core.

    Args:
        simcc_x: [B, N, bins] float32 or float16, scores along x; at most 4096 bins.
        simcc_y: [B, N, bins] likewise along y.
        split_ratio: Bins to a crop pixel; RTMPose's is 2.
        score: Confidence from the maxima of the two vectors: ``min`` (MMPose, mmdeploy) or ``mean`` (rtmlib). The mask
            changes with it.
        threshold: δ: finite, at least 0.
        out: (joints, confidence, mask) to fill, as for `Refiner`.
        threads: That compute, the caller included.

    Returns:
        Joints [B, N, 2] in crop pixels, confidence [B, N] in 0..1, mask [B, N]: missing or below the threshold. Where
        the score is not above 0, or a vector holds NaN or +inf, the joint is NaN with confidence 0.

    Raises:
        InputError: An argument does not fit.
        BackendUnavailableError: The native core is not built.
    """
    delta = check_threshold(threshold)
    if score not in get_args(ScoreRule):
        raise InputError(f"unknown score rule {score!r}: use {' or '.join(get_args(ScoreRule))}")
    if isinstance(split_ratio, (bool, str)) or not 0 < split_ratio < float("inf"):
        raise InputError(f"expected a split ratio above 0, got {split_ratio!r}")
    check_threads(threads)
    given, wrap = host_view(simcc_x, "simcc_x")
    x, y = _vectors(given, "simcc_x"), _vectors(host_view(simcc_y, "simcc_y")[0], "simcc_y")
    if x.shape[:2] != y.shape[:2]:
        raise InputError(
            f"expected simcc_y of the same poses and joints as simcc_x [{x.shape[0]}, {x.shape[1]}, bins], "
            f"got [{y.shape[0]}, {y.shape[1]}, bins]"
        )
    buffers, result = outputs(out, x.shape[0], x.shape[1], wrap)
    native.decode_simcc(x, y, float(split_ratio), score, delta, buffers, threads)
    return result


def _vectors(array: NDArray[Any], name: str) -> NDArray[Any]:
    """[B, N, bins] as maps of one row, [B, N, 1, bins]."""
    if array.ndim != 3 or 0 in array.shape[1:] or array.shape[2] > MAX_BINS:
        raise InputError(f"expected {name} [B, N, bins] of at most {MAX_BINS} bins, got {list(array.shape)}")
    if array.dtype not in (FLOAT32, FLOAT16):
        raise InputError(f"expected {name} float32 or float16, got {array.dtype}: pass .astype(numpy.float32)")
    return np.ascontiguousarray(array)[:, :, None]
