# SPDX-License-Identifier: Apache-2.0
"""What `Refiner` and `decode` take from host memory and give back. May use: arrays, backends.base, errors, NumPy.

Test: tests/test_refiner.py, tests/test_bad_input.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from port_deploy.arrays import BOOL, FLOAT16, FLOAT32, Wrap, check_output, host_view, wrap_all
from port_deploy.backends.base import HostBuffers
from port_deploy.errors import InputError


class Refined(NamedTuple):
    """What comes back, as the same kind of array as went in.

    Attributes:
        joints: [B, N, 2] float32, pixels (x, y).
        confidence: [B, N] float32: 0..1 from heatmaps, the caller's own from joints.
        mask: [B, N] bool: the joint was rebuilt. From `decode`: it is missing or below the threshold.
    """

    joints: Any
    confidence: Any
    mask: Any


def check_heatmaps(heatmaps: Any, joints: int | None, strides: bool, skeleton: str) -> tuple[NDArray[Any], Wrap | None]:
    """Heatmaps [B, N, H, W] as NumPy, copied only where their strides do not serve.

    Args:
        heatmaps: The caller's.
        joints: N; None for any.
        strides: Any whose last is one element serve.
        skeleton: The model's, for messages.

    Returns:
        The array, and what makes the caller's kind of an array (None: it is NumPy already).

    Raises:
        InputError: They do not fit.
    """
    maps, wrap = host_view(heatmaps, "heatmaps")
    shape = maps.shape
    if len(shape) != 4 or shape[1] != (shape[1] if joints is None else joints) or 0 in shape[1:]:
        count = "N" if joints is None else joints
        hint = "add the batch axis with heatmaps[None]" if len(shape) == 3 else "no axis but B may be empty"
        if len(shape) == 4 and joints is not None and shape[1] != joints:
            hint = f"this model is for skeleton {skeleton!r}, joints come before height and width"
        raise InputError(f"expected heatmaps [B, {count}, H, W], got {list(shape)}: {hint}")
    if maps.dtype not in (FLOAT32, FLOAT16):
        raise InputError(f"expected heatmaps float32 or float16, got {maps.dtype}: pass .astype(numpy.float32)")
    flags = maps.flags
    if not (flags.c_contiguous and flags.aligned):
        size = maps.itemsize
        in_place = strides and flags.aligned and maps.strides[3] == size and not any(s % size for s in maps.strides)
        if not in_place:
            maps = maps.copy()
    return maps, wrap


def outputs(out: Any, batch: int, joints: int, wrap: Wrap | None) -> tuple[HostBuffers, Refined]:
    """What a call writes to, and what it answers: the caller's arrays, or new ones of the kind that ``wrap`` makes."""
    if out is None:
        fresh = (
            np.empty((batch, joints, 2), FLOAT32),
            np.empty((batch, joints), FLOAT32),
            np.empty((batch, joints), BOOL),
        )
        return HostBuffers(*fresh), Refined(*wrap_all(wrap, *fresh))
    try:
        given = Refined(*out)
    except TypeError as error:
        raise InputError(f"expected out as (joints, confidence, mask), got {type(out).__name__}") from error
    buffers = HostBuffers(
        check_output(given.joints, "out.joints", (batch, joints, 2), FLOAT32),
        check_output(given.confidence, "out.confidence", (batch, joints), FLOAT32),
        check_output(given.mask, "out.mask", (batch, joints), BOOL),
    )
    return buffers, out if type(out) is Refined else given
