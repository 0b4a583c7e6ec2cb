# SPDX-License-Identifier: Apache-2.0
"""`Refiner`, the production class, and `decode`: the caller's arrays are checked here, a backend computes.

May use: arrays, backends, weights, config, errors, NumPy. Test: tests/test_refiner.py, tests/test_bad_input.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from port_deploy.arrays import (
    BOOL,
    FLOAT16,
    FLOAT32,
    Wrap,
    affine_of_boxes,
    check_affine,
    check_output,
    check_threshold,
    host_view,
    wrap_all,
)
from port_deploy.backends import native
from port_deploy.backends.base import Backend, HostBuffers
from port_deploy.backends.native import try_decode
from port_deploy.backends.select import Choice, check_threads, open_backend
from port_deploy.config import CodecName, ModelSpec, RefineMode
from port_deploy.errors import InputError
from port_deploy.weights import Model

DECODE_TEMPERATURE = 40.0
"""Default factor on the map inside the softmax of `decode`; the bundled models' own."""


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


class Refiner:
    """PORT behind a detector: repairs the joints whose confidence is low from the others. Safe from many threads.

    A pose with too few visible joints (``min_visible``, ``max_masked``) comes back as it was, its mask all False; NaN
    in one pose never reaches another. See `Refiner.load`.

    Attributes:
        model: The model's specification: skeleton, codec, frame, threshold, training data, licence, metrics.
        backend: Name, device, detail and reason of the backend; ``print(refiner.backend)``.
        threshold: δ, eq. (13), where a call gives none.
    """

    def __init__(self, backend: Backend, choice: Choice, threshold: float | None = None) -> None:
        self.model: ModelSpec = backend.spec
        self.backend = choice
        self.threshold = check_threshold(backend.spec.threshold if threshold is None else threshold)
        self._backend = backend
        self._joints = backend.spec.joints
        self._takes_strides = bool(getattr(backend, "takes_strides", False))

    @classmethod
    def load(
        cls,
        name_or_path: str | Path | Model,
        device: str = "auto",
        backend: str = "auto",
        threshold: float | None = None,
        *,
        threads: int = 0,
        precision: str = "fp32",
        refine: RefineMode | None = None,
        min_visible: int | None = None,
        max_masked: int | None = None,
        **options: Any,
    ) -> Refiner:
        """Load a model or an artefact.

        Args:
            name_or_path: Bundled name (``hand21``), ``.safetensors``, ``.onnx``, ``.ts``, ``.pt2`` or ``.engine``;
                or a `Model` in memory.
            device: ``cpu``, ``cuda`` or ``auto``.
            backend: A name (``native-cpu``, ``onnxruntime``, …) or ``auto``: for models native-cuda, then native-cpu.
            threshold: δ: a joint of lower confidence is rebuilt; finite, at least 0. None: the model's calibrated one.
            threads: That compute, the caller included; 0 for one per processor.
            precision: ``fp32`` or ``bf16`` (of the network's matrix products).
            refine: ``masked`` or ``all``: which joints of a refined pose change. None: the model's own.
            min_visible: With fewer visible joints a pose is returned unchanged; at least 2. None: the model's own.
            max_masked: With more masked joints a pose is returned unchanged. None: the model's own.
            options: For one backend alone: ``providers`` (onnxruntime: execution providers, as its session takes
                them), ``hint`` (openvino), ``isa`` (native-cpu: ``generic``, ``avx2``, ``avx512``).

        Raises:
            InputError: No such model, or an option is unusable.
            ModelFileError: The file is truncated, foreign or hostile.
            BackendUnavailableError: The backend or device is not there; the message holds the remedy. Nothing else is
                used in its place.
        """
        changes = {"refine": refine, "min_visible": min_visible, "max_masked": max_masked}
        given = {k: v for k, v in changes.items() if v is not None}
        loaded, choice = open_backend(name_or_path, backend, device, threads, precision, given, options)
        return cls(loaded, choice, threshold)

    def __call__(
        self,
        heatmaps: Any,
        boxes: Any = None,
        affine: Any = None,
        udp: bool = False,
        threshold: float | None = None,
        out: Any = None,
    ) -> Refined:
        """Decode heatmaps, mask, refine: the whole line.

        Args:
            heatmaps: [B, N, H, W] float32 or float16, B >= 0. Other strides than dense are read in place by the
                native backend where the last axis is dense, and copied otherwise.
            boxes: [B, 4] x1, y1, x2, y2 in image pixels: the region that each pose's heatmaps cover.
            affine: [B, 2, 3] or [2, 3], heatmap to image pixels. Without it and boxes, joints are in heatmap pixels.
            udp: The boxes' detector was trained with unbiased data processing.
            threshold: δ of this call. None: the refiner's.
            out: (joints, confidence, mask), float32 [B, N, 2], float32 [B, N] and bool [B, N], filled and returned:
                nothing is allocated then. None: new arrays of the heatmaps' kind.

        Returns:
            Joints [B, N, 2] in image pixels, confidence [B, N] in 0..1, mask [B, N].

        Raises:
            InputError: An argument does not fit; nothing has been written.
        """
        delta = self.threshold if threshold is None else check_threshold(threshold)
        maps, wrap = _check_heatmaps(heatmaps, self._joints, self._takes_strides, self.model.skeleton.name)
        batch, _, height, width = maps.shape
        matrix: NDArray[np.float32] | None = None
        if boxes is not None:
            if affine is not None:
                raise InputError("expected boxes or affine, got both: they say the same")
            matrix = affine_of_boxes(boxes, batch, height, width, udp)
        elif udp:
            raise InputError("udp=True says how boxes are read, and none came: pass boxes=")
        elif affine is not None:
            matrix = check_affine(affine, batch)
        buffers, result = _outputs(out, batch, self._joints, wrap)
        if self._backend.takes_heatmaps:
            self._backend.run(maps, matrix, delta, buffers)
        else:
            spec = self.model
            native.decode(maps, spec.codec, spec.temperature, delta, buffers)
            if matrix is not None:
                with np.errstate(invalid="ignore", over="ignore"):
                    turned = buffers.joints @ matrix[:, :, :2].transpose(0, 2, 1)
                np.add(turned, matrix[:, None, :, 2], out=buffers.joints)
            self._backend.refine(buffers.joints, buffers.confidence, delta, buffers)
        return result

    def refine(self, joints: Any, confidence: Any, threshold: float | None = None, out: Any = None) -> Refined:
        """Refine the joints of any detector.

        Args:
            joints: [B, N, 2] float32 pixels (x, y), in the order of ``model.skeleton.names``; a joint that is NaN or
                beyond a million pixels is missing: it is rebuilt.
            confidence: [B, N] float32; NaN counts as below every threshold.
            threshold: δ of this call. None: the refiner's.
            out: As for heatmaps; its joints and confidence may be the inputs themselves.

        Returns:
            Joints [B, N, 2], the caller's confidence [B, N], mask [B, N]. Joints that were not rebuilt are copied bit
            for bit (``refine="masked"``).

        Raises:
            InputError: An argument does not fit; nothing has been written.
        """
        if not self._backend.takes_joints:
            raise InputError("this artefact takes heatmaps: call refiner(heatmaps), or port-export it --input joints")
        delta = self.threshold if threshold is None else check_threshold(threshold)
        points, wrap = host_view(joints, "joints")
        scores, _ = host_view(confidence, "confidence")
        count = self._joints
        shape = points.shape
        if len(shape) != 3 or shape[1] != count or shape[2] != 2:
            raise InputError(
                f"expected joints [B, {count}, 2], got {list(shape)}: "
                + ("add the batch axis with joints[None]" if shape == (count, 2) else self._fits())
            )
        if scores.shape != shape[:2]:
            raise InputError(f"expected confidence [{shape[0]}, {count}] beside the joints, got {list(scores.shape)}")
        if points.dtype != FLOAT32 or scores.dtype != FLOAT32:
            name, dtype = ("joints", points.dtype) if points.dtype != FLOAT32 else ("confidence", scores.dtype)
            raise InputError(f"expected {name} float32, got {dtype}: pass {name}.astype(numpy.float32)")
        if not (points.flags.c_contiguous and points.flags.aligned):
            points = points.copy()
        if not (scores.flags.c_contiguous and scores.flags.aligned):
            scores = scores.copy()
        buffers, result = _outputs(out, shape[0], count, wrap)
        self._backend.refine(points, scores, delta, buffers)
        return result

    def _fits(self) -> str:
        return f"this model is for skeleton {self.model.skeleton.name!r}"

    def __repr__(self) -> str:
        return f"Refiner({self.model.name!r}, backend={self.backend.name!r}, threshold={self.threshold:g})"


def decode(
    heatmaps: Any,
    codec: CodecName = "softargmax",
    temperature: float = DECODE_TEMPERATURE,
    threshold: float = 0.3,
    out: Any = None,
    threads: int = 1,
) -> Refined:
    """The fused decode alone, eqs. (1), (2), (13). Needs the native core.

    Args:
        heatmaps: [B, N, H, W] float32 or float16, B >= 0, N from 1 up.
        codec: ``softargmax`` (softmax of temperature * map), ``softargmax-sum`` (clipped at 0, divided by the sum), or
            ``argmax``.
        temperature: Factor inside ``softargmax``; above 0.
        threshold: δ: finite, at least 0.
        out: (joints, confidence, mask) to fill, as for `Refiner`.
        threads: That compute, the caller included.

    Returns:
        Joints [B, N, 2] in heatmap pixels, confidence [B, N] in 0..1, mask [B, N]: missing or below the threshold. A
        map that holds NaN or +inf gives a joint of NaN with confidence 0.

    Raises:
        InputError: An argument does not fit.
        BackendUnavailableError: The native core is not built.
    """
    if type(out) is Refined and try_decode(heatmaps, codec, temperature, threshold, *out, threads):
        return out
    delta = check_threshold(threshold)
    if codec not in get_args(CodecName):
        raise InputError(f"unknown codec {codec!r}: use one of {', '.join(get_args(CodecName))}")
    if isinstance(temperature, (bool, str)) or not 0 < temperature < float("inf"):
        raise InputError(f"expected a finite temperature above 0, got {temperature!r}")
    check_threads(threads)
    maps, wrap = _check_heatmaps(heatmaps, None, True, "")
    buffers, result = _outputs(out, maps.shape[0], maps.shape[1], wrap)
    native.decode(maps, codec, float(temperature), delta, buffers, threads)
    return result


def _check_heatmaps(
    heatmaps: Any, joints: int | None, strides: bool, skeleton: str
) -> tuple[NDArray[Any], Wrap | None]:
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


def _outputs(out: Any, batch: int, joints: int, wrap: Wrap | None) -> tuple[HostBuffers, Refined]:
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
