# SPDX-License-Identifier: Apache-2.0
"""Calls of `Refiner` and `PoseEngine` on arrays in a GPU's memory: queued on the caller's stream, nothing waited for.

An engine with input ``heatmaps`` is the whole line. In front of one with input ``joints`` stands the core's fused
decode, on the same stream, into memory of the caller's library.
May use: backends, decode_device, device_arrays, refined, arrays, config, errors. Test: tests/test_engine_load.py.
"""

from __future__ import annotations

import sys
from typing import Any

from port_deploy.arrays import to_image
from port_deploy.backends import cuda_decode, native_cuda
from port_deploy.config import ModelSpec
from port_deploy.decode_device import new_outputs, output_views
from port_deploy.device_arrays import device_view, empty_like, is_on_device, stream_of
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.refined import NO_STD, as_refined

Outputs = tuple[Any, ...]
"""Joints, confidence, mask; std too where the backend gives it."""


def refine(backend: Any, joints: Any, confidence: Any, threshold: float, out: Any, stream: Any) -> Outputs:
    """`Refiner.refine` of joints [B, N, 2] and confidence [B, N] on the GPU; its arguments checked but for the arrays.

    Raises:
        InputError: An array does not fit, or lies elsewhere; nothing has been queued.
    """
    shape = device_view(joints, "joints", (None, backend.spec.joints, 2), "<f4").shape
    outputs = _outputs(out, joints, "joints", shape[0], backend)
    backend.run_on_device((joints, confidence), threshold, outputs, stream)
    return outputs


def run(
    backend: Any, heatmaps: Any, boxes: Any, affine: Any, udp: bool, threshold: float, out: Any, stream: Any
) -> Outputs:
    """`Refiner.__call__` of heatmaps [B, N, H, W] on the GPU; boxes and affine may lie on either side.

    Raises:
        InputError: An array does not fit; nothing has been queued.
        BackendUnavailableError: The engine takes joints, and this build has no decode for the GPU.
    """
    spec: ModelSpec = backend.spec
    types = getattr(backend, "heatmap_types", "<f4")
    maps = device_view(heatmaps, "heatmaps", (None, spec.joints, None, None), types, dense=isinstance(types, str))
    batch, _, height, width = maps.shape
    outputs = _outputs(out, heatmaps, "heatmaps", batch, backend)
    matrix = _matrix(heatmaps, boxes, affine, udp, (batch, height, width))
    if backend.takes_heatmaps:
        backend.run_on_device((heatmaps, matrix), threshold, outputs, stream)
        return outputs
    state = native_cuda.availability()
    if not state.available:
        raise BackendUnavailableError(
            f"{backend.name} takes joints, and the core has no decode for the GPU here ({state.detail}): "
            "export the engine with --input heatmaps, or decode before and call refiner.refine"
        )
    if matrix is not None and stream is not None:
        raise InputError("expected boxes= or affine= without stream=: make the stream the current one of your library")
    decoded = new_outputs(heatmaps, "heatmaps", batch, spec.joints)
    queue = stream_of(stream, [heatmaps])
    views = output_views(decoded, batch, spec.joints)
    cuda_decode.decode_on_device(maps, spec.codec, spec.temperature, threshold, views, backend.device, queue)
    points = decoded[0]
    if matrix is not None:
        points = points @ matrix[:, :, :2].swapaxes(1, 2) + matrix[:, None, :, 2]
    backend.run_on_device((points, decoded[1]), threshold, outputs, queue)
    return outputs


def run_images(
    backend: Any, images: Any, boxes: Any, affine: Any, udp: bool, threshold: float, out: Any, stream: Any
) -> Outputs:
    """`PoseEngine.__call__` of crops on the GPU, laid out and typed as the engine takes them.

    Raises:
        InputError: An array does not fit; nothing has been queued.
    """
    info = backend.sidecar.detector
    kind = {"float32": "<f4", "float16": "<f2", "uint8": "|u1"}[info.image_type]
    batch = device_view(images, "images", (None, *info.image_shape), kind).shape[0]
    outputs = _outputs(out, images, "images", batch, backend)
    matrix = _matrix(images, boxes, affine, udp, (batch, *info.image_size))
    backend.run_on_device((images, matrix), threshold, outputs, stream)
    return outputs


def _outputs(out: Any, like: Any, name: str, batch: int, backend: Any) -> Outputs:
    joints, std = backend.spec.joints, bool(getattr(backend, "gives_std", False))
    if out is not None:
        given = as_refined(out)
        if given.std is not None and not std:
            raise InputError(NO_STD)
        if given.std is not None:
            return (*given, given.std)
        if not std or not getattr(backend, "needs_std", True):
            return tuple(given)
        return (*given, empty_like(like, name)((batch, joints), "float32"))
    fresh = new_outputs(like, name, batch, joints)
    return (*fresh, empty_like(like, name)((batch, joints), "float32")) if std else fresh


def _matrix(like: Any, boxes: Any, affine: Any, udp: bool, size: tuple[int, int, int]) -> Any:
    """[B, 2, 3] float32 on the GPU, in the caller's kind of array; None for none."""
    if boxes is None and not udp and is_on_device(affine):
        return affine
    if affine is None and is_on_device(boxes):
        raise InputError("expected boxes in host memory, got them on the GPU: pass boxes.cpu(), or affine=")
    matrix = to_image(boxes, affine, udp, *size)
    return None if matrix is None else _upload(matrix, like)


def _upload(matrix: Any, like: Any) -> Any:
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.from_numpy(matrix).to(like.device, non_blocking=True)
    if cupy is not None and isinstance(like, cupy.ndarray):
        return cupy.asarray(matrix)
    raise InputError(f"the input is a {type(like).__name__}: pass affine= [B, 2, 3] float32 on the GPU, too")
