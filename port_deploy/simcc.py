# SPDX-License-Identifier: Apache-2.0
"""`decode_simcc`: the vectors of RTMPose and its kind to joints, confidence and mask, in the native core.

May use: arrays, refined, decode_device, backends, detector_info, device_arrays, errors, NumPy. Test:
tests/test_decode_codecs.py, tests/test_decode_device.py, tests/test_cuda_decode.py (on a GPU).
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from port_deploy import decode_device
from port_deploy.arrays import FLOAT16, FLOAT32, check_threshold, host_view
from port_deploy.backends import cuda_decode, native
from port_deploy.backends.native_cuda import HEATMAP_TYPES
from port_deploy.backends.select import check_threads
from port_deploy.detector_info import ScoreRule
from port_deploy.device_arrays import DeviceView, device_view
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
    stream: Any = None,
) -> Refined:
    """SimCC vectors to joints: the largest bin of each axis. Needs the native core.

    Args:
        simcc_x: [B, N, bins] float32 or float16, scores along x; at most 4096 bins. On the GPU bfloat16, too; there
            they are read in place, and their last axis must be dense.
        simcc_y: [B, N, bins] likewise along y, on the same side.
        split_ratio: Bins to a crop pixel; RTMPose's is 2.
        score: Confidence from the maxima of the two vectors: ``min`` (MMPose, mmdeploy) or ``mean`` (rtmlib). The mask
            changes with it.
        threshold: δ: finite, at least 0.
        out: (joints, confidence, mask) to fill, as for `Refiner`.
        threads: That compute, the caller included; without meaning on the GPU.
        stream: For vectors on the GPU, as for `Refiner`: the CUDA stream that the work is queued on, not waited for.

    Returns:
        Joints [B, N, 2] in crop pixels, confidence [B, N] in 0..1, mask [B, N]: missing or below the threshold. Where
        the score is not above 0, or a vector holds NaN or +inf, the joint is NaN with confidence 0.

    Raises:
        InputError: An argument does not fit.
        BackendUnavailableError: The native core is not built, or it has no CUDA and the vectors are on a GPU.
    """
    delta = check_threshold(threshold)
    if score not in get_args(ScoreRule):
        raise InputError(f"unknown score rule {score!r}: use {' or '.join(get_args(ScoreRule))}")
    if isinstance(split_ratio, (bool, str)) or not 0 < split_ratio < float("inf"):
        raise InputError(f"expected a split ratio above 0, got {split_ratio!r}")
    check_threads(threads)
    if decode_device.takes(simcc_x, stream):
        return _decode_on_device(simcc_x, simcc_y, float(split_ratio), score, delta, out, stream)
    given, wrap = host_view(simcc_x, "simcc_x")
    x, y = _vectors(given, "simcc_x"), _vectors(host_view(simcc_y, "simcc_y")[0], "simcc_y")
    _check_pair(x.shape, y.shape)
    buffers, result = outputs(out, x.shape[0], x.shape[1], wrap)
    native.decode_simcc(x, y, float(split_ratio), score, delta, buffers, threads)
    return result


def _decode_on_device(
    simcc_x: Any, simcc_y: Any, split_ratio: float, score: str, threshold: float, out: Any, stream: Any
) -> Refined:
    x, y = _device_vectors(simcc_x, "simcc_x"), _device_vectors(simcc_y, "simcc_y")
    _check_pair((*x.shape[:2], x.shape[3]), (*y.shape[:2], y.shape[3]))
    place = decode_device.prepare((simcc_x, simcc_y), "simcc_x", (x, y), out, stream)
    cuda_decode.decode_simcc_on_device(x, y, split_ratio, score, threshold, place.views, place.device, place.stream)
    return place.result


def _device_vectors(array: Any, name: str) -> DeviceView:
    view = device_view(array, name, (None, None, None), HEATMAP_TYPES, dense=False)
    _check_shape(view.shape, name)
    batch, joints, bins = view.shape
    return view._replace(shape=(batch, joints, 1, bins), strides=(*view.strides[:2], 0, 1))


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) != 3 or 0 in shape[1:] or shape[2] > MAX_BINS:
        raise InputError(f"expected {name} [B, N, bins] of at most {MAX_BINS} bins, got {list(shape)}")


def _check_pair(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    if x[:2] != y[:2]:
        raise InputError(
            f"expected simcc_y of the same poses and joints as simcc_x [{x[0]}, {x[1]}, bins], "
            f"got [{y[0]}, {y[1]}, bins]: pass both outputs of one run, cut to the same joints"
        )


def _vectors(array: NDArray[Any], name: str) -> NDArray[Any]:
    """[B, N, bins] as maps of one row, [B, N, 1, bins]."""
    _check_shape(array.shape, name)
    if array.dtype not in (FLOAT32, FLOAT16):
        raise InputError(f"expected {name} float32 or float16, got {array.dtype}: pass .astype(numpy.float32)")
    return np.ascontiguousarray(array)[:, :, None]
