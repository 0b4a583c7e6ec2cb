# SPDX-License-Identifier: Apache-2.0
"""The core's decodes of heatmaps and SimCC vectors on the GPU: one kernel launch each.

Arrays are read and written where they lie, on the caller's stream; nothing is copied, allocated or waited for.
May use: native (which imports `_core`), native_cuda, device_arrays. Test: tests/test_decode_device.py,
tests/test_cuda_decode.py (on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from port_deploy.backends import native
from port_deploy.backends.native_cuda import as_arguments, check_device
from port_deploy.device_arrays import DeviceView


def decode_on_device(
    maps: DeviceView,
    codec: str,
    temperature: float,
    threshold: float,
    out: Sequence[DeviceView],
    device: int,
    stream: int,
) -> None:
    """The fused decode alone, queued on ``stream``: joints in heatmap pixels, confidence, mask.

    Args:
        maps: Heatmaps [B, N, H, W] of any of HEATMAP_TYPES, last axis dense.
        codec: ``softargmax``, ``softargmax-sum`` or ``argmax``.
        temperature: As for `port_deploy.decode`.
        threshold: δ.
        out: Joints [B, N, 2], confidence [B, N], mask [B, N].
        device: Number of the GPU that all of them lie on.
        stream: Handle of the CUDA stream.

    Raises:
        InputError: An argument is out of range.
        BackendUnavailableError: No CUDA in this build, or CUDA refuses the launch.
    """
    check_device((maps, *out), device)
    _call("decode_on_device", *as_arguments(maps), codec, temperature, threshold, _addresses(out), device, stream)


def decode_peaks_on_device(
    maps: DeviceView, codec: str, blur: int, threshold: float, out: Sequence[DeviceView], device: int, stream: int
) -> None:
    """`decode_on_device` with the codecs that start from the largest pixel.

    Args:
        maps: As there.
        codec: ``msra``, ``dark`` or ``udp``.
        blur: As for `port_deploy.decode`.
        threshold: δ.
        out: Joints [B, N, 2], confidence [B, N], mask [B, N].
        device: Number of the GPU that all of them lie on.
        stream: Handle of the CUDA stream.

    Raises:
        InputError: An argument is out of range.
        BackendUnavailableError: No CUDA in this build, or CUDA refuses the launch.
    """
    check_device((maps, *out), device)
    _call("decode_peaks_on_device", *as_arguments(maps), codec, blur, threshold, _addresses(out), device, stream)


def decode_simcc_on_device(
    x: DeviceView,
    y: DeviceView,
    split_ratio: float,
    score: str,
    threshold: float,
    out: Sequence[DeviceView],
    device: int,
    stream: int,
) -> None:
    """SimCC vectors, queued on ``stream``: joints in crop pixels, confidence, mask.

    Args:
        x: [B, N, 1, bins] of any of HEATMAP_TYPES, scores along x; last axis dense.
        y: [B, N, 1, bins] likewise along y.
        split_ratio: As for `port_deploy.decode_simcc`.
        score: Likewise.
        threshold: δ.
        out: Joints [B, N, 2], confidence [B, N], mask [B, N].
        device: Number of the GPU that all of them lie on.
        stream: Handle of the CUDA stream.

    Raises:
        InputError: An argument is out of range.
        BackendUnavailableError: No CUDA in this build, or CUDA refuses the launch.
    """
    check_device((x, y, *out), device)
    axes = as_arguments(x), as_arguments(y)
    _call("decode_simcc_on_device", *axes, split_ratio, score, threshold, _addresses(out), device, stream)


def _addresses(out: Sequence[DeviceView]) -> list[int]:
    return [v.address for v in out]


def _call(name: str, *arguments: Any) -> None:
    module = native.core()
    try:
        getattr(module, name)(*arguments)
    except module.Error as error:
        raise native.translate(error) from None
