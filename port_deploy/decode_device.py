# SPDX-License-Identifier: Apache-2.0
"""`decode` and `decode_simcc` of arrays in a GPU's memory: queued on the caller's stream, nothing waited for or copied.

May use: backends, device_arrays, refined, errors, NumPy. Test: tests/test_decode_device.py, tests/test_cuda_decode.py
(on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from port_deploy.backends import cuda_decode
from port_deploy.backends.native_cuda import HEATMAP_TYPES
from port_deploy.device_arrays import DeviceView, device_view, empty_like, is_on_device, stream_of
from port_deploy.errors import InputError
from port_deploy.refined import NO_STD, Refined, as_refined


class Place(NamedTuple):
    """Where a decode writes, and on which GPU and stream it works.

    Attributes:
        result: What the caller gets: joints, confidence, mask.
        views: Of them.
        device: Number of the GPU.
        stream: Handle of the CUDA stream.
    """

    result: Refined
    views: list[DeviceView]
    device: int
    stream: int


def takes(array: Any, stream: Any) -> bool:
    """Whether a call's first array lies in a GPU's memory.

    Raises:
        InputError: It does not, and there is a stream.
    """
    if type(array) is not np.ndarray and is_on_device(array):
        return True
    if stream is not None:
        raise InputError(f"stream= is for arrays on the GPU, got {type(array).__name__} in host memory: leave it out")
    return False


def new_outputs(like: Any, name: str, batch: int, joints: int) -> tuple[Any, Any, Any]:
    """Joints [B, N, 2], confidence [B, N] and mask [B, N], new, of the kind of ``like`` and beside it.

    Raises:
        InputError: That kind of array is not one that is known how to make.
    """
    make = empty_like(like, name)
    return make((batch, joints, 2), "float32"), make((batch, joints), "float32"), make((batch, joints), "bool")


def output_views(out: Sequence[Any], batch: int, joints: int) -> list[DeviceView]:
    """Joints, confidence and mask, where they lie.

    Raises:
        InputError: One does not fit, or lies elsewhere.
    """
    return [
        device_view(out[0], "out.joints", (batch, joints, 2), "<f4", writable=True),
        device_view(out[1], "out.confidence", (batch, joints), "<f4", writable=True),
        device_view(out[2], "out.mask", (batch, joints), "|b1", writable=True),
    ]


def prepare(inputs: Sequence[Any], name: str, views: Sequence[DeviceView], out: Any, stream: Any) -> Place:
    """What a decode needs beside its checked inputs.

    Args:
        inputs: The caller's arrays.
        name: Of the first of them, for messages.
        views: Of them, [B, N, …] each.
        out: The caller's (joints, confidence, mask); None: new ones of the kind of the first input.
        stream: The caller's stream; None: the current one of the inputs' library.

    Raises:
        InputError: An array does not fit, or lies on another GPU; or it is no stream.
    """
    batch, joints = views[0].shape[:2]
    result = as_refined(out) if out is not None else Refined(*new_outputs(inputs[0], name, batch, joints))
    if result.std is not None:
        raise InputError(NO_STD)
    written = output_views(result, batch, joints)
    gpus = sorted({v.device for v in (*views, *written) if v.device is not None})
    if len(gpus) > 1:
        named = " and ".join(f"cuda:{gpu}" for gpu in gpus)
        raise InputError(f"expected all arrays on one GPU, got them on {named}: move them together")
    return Place(result, written, gpus[0] if gpus else 0, stream_of(stream, [*inputs, *result]))


def decode(
    heatmaps: Any, codec: str, temperature: float, blur: int | None, threshold: float, out: Any, stream: Any
) -> Refined:
    """`port_deploy.decode` of heatmaps [B, N, H, W] on the GPU; its arguments checked but for the arrays.

    Where their library does not say which GPU they lie on, the first is meant.

    Args:
        heatmaps: The caller's.
        codec: Any.
        temperature: Of ``softargmax``.
        blur: Of the codecs that start from the largest pixel; None: the codec is another.
        threshold: δ.
        out: The caller's.
        stream: The caller's.

    Raises:
        InputError: An array does not fit; nothing has been queued.
        BackendUnavailableError: No CUDA in this build, or CUDA refuses the launch.
    """
    view = device_view(heatmaps, "heatmaps", (None, None, None, None), HEATMAP_TYPES, dense=False)
    place = prepare((heatmaps,), "heatmaps", (view,), out, stream)
    rest = (threshold, place.views, place.device, place.stream)
    if blur is None:
        cuda_decode.decode_on_device(view, codec, temperature, *rest)
    else:
        cuda_decode.decode_peaks_on_device(view, codec, blur, *rest)
    return place.result
