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


class _Answer(NamedTuple):
    joints: Any
    confidence: Any
    mask: Any


class Refined(_Answer):
    """What comes back, as the same kind of array as went in: a tuple of three, and what a model may say beside it.

    Attributes:
        joints: [B, N, 2] float32, pixels (x, y).
        confidence: [B, N] float32: 0..1 from heatmaps, the caller's own from joints.
        mask: [B, N] bool: the joint was rebuilt. From `decode`: it is missing or below the threshold.
        std: [B, N] float32, pixels: standard deviation of x, and of y, of each rebuilt joint; NaN where the mask is
            False. A joint lies within std of its true place with 39 %, within 2 std with 86 % (of an isotropic
            Gaussian). None where the model has no variance.
    """

    std: Any = None

    def __new__(cls, joints: Any, confidence: Any, mask: Any, std: Any = None) -> Refined:
        """Of three arrays, or four."""
        self = super().__new__(cls, joints, confidence, mask)
        if std is not None:
            self.std = std
        return self

    def __repr__(self) -> str:
        last = "" if self.std is None else f", std={self.std!r}"
        return f"Refined(joints={self.joints!r}, confidence={self.confidence!r}, mask={self.mask!r}{last})"


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


def outputs(out: Any, batch: int, joints: int, wrap: Wrap | None, std: bool = False) -> tuple[HostBuffers, Refined]:
    """What a call writes to, and what it answers: the caller's arrays, or new ones of the kind that ``wrap`` makes.

    Args:
        out: The caller's (joints, confidence, mask), with std or without; None: new ones.
        batch: B.
        joints: N.
        wrap: Makes the caller's kind of an array; None: it is NumPy already.
        std: Standard deviations are to be had; in the caller's arrays they are filled where there is one for them.

    Raises:
        InputError: An array does not fit, or has nothing that it could be filled with.
    """
    if out is None:
        fresh = (
            np.empty((batch, joints, 2), FLOAT32),
            np.empty((batch, joints), FLOAT32),
            np.empty((batch, joints), BOOL),
        )
        if not std:
            return HostBuffers(*fresh), Refined(*wrap_all(wrap, *fresh))
        four = (*fresh, np.empty((batch, joints), FLOAT32))
        return HostBuffers(*four), Refined(*wrap_all(wrap, *four))
    given = as_refined(out)
    if given.std is not None and not std:
        raise InputError(NO_STD)
    buffers = HostBuffers(
        check_output(given.joints, "out.joints", (batch, joints, 2), FLOAT32),
        check_output(given.confidence, "out.confidence", (batch, joints), FLOAT32),
        check_output(given.mask, "out.mask", (batch, joints), BOOL),
    )
    if given.std is not None:
        buffers.std = check_output(given.std, "out.std", (batch, joints), FLOAT32)
    return buffers, given


NO_STD = "expected out without std: this model has no variance (port-train --variance-only)"


def as_refined(out: Any) -> Refined:
    """The caller's ``out``: a `Refined`, or a tuple of three or four.

    Raises:
        InputError: It is neither.
    """
    if type(out) is Refined:
        return out
    try:
        return Refined(*out)
    except TypeError as error:
        raise InputError(f"expected out as (joints, confidence, mask), got {type(out).__name__}") from error
