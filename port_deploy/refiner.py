# SPDX-License-Identifier: Apache-2.0
"""`Refiner`, the production class, and `decode`: the caller's arrays are checked here, a backend computes.

May use: arrays, refined, decode_device, refiner_device, backends, calibration, export.mismatch, weights, config,
errors, NumPy.
Test: tests/test_refiner.py, tests/test_engine_load.py, tests/test_bad_input.py, tests/test_calibrate.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from port_deploy import decode_device, refiner_device
from port_deploy.arrays import FLOAT32, check_threshold, host_view, to_image
from port_deploy.backends import native
from port_deploy.backends.base import Backend
from port_deploy.backends.native import try_decode
from port_deploy.backends.select import Choice, check_threads, open_backend
from port_deploy.calibration import calibrated
from port_deploy.config import CodecName, ModelSpec, PeakCodecName, RefineMode
from port_deploy.device_arrays import is_on_device
from port_deploy.errors import InputError
from port_deploy.refined import Refined, check_heatmaps, outputs
from port_deploy.weights import Model

OnMismatch = Literal["raise", "rebuild", "native"]

DECODE_TEMPERATURE = 40.0
"""Default factor on the map inside the softmax of `decode`; the bundled models' own."""


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
        if getattr(backend, "takes_images", False):
            raise InputError(f"{choice.name} runs an artefact that takes images: load it with PoseEngine.load")
        self.model: ModelSpec = backend.spec
        self.backend = choice
        self.threshold = check_threshold(backend.spec.threshold if threshold is None else threshold)
        self._backend = backend
        self._joints = backend.spec.joints
        self._takes_device = bool(getattr(backend, "takes_device", False))
        self._std = bool(getattr(backend, "gives_std", False))
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
        precision: str = "auto",
        refine: RefineMode | None = None,
        min_visible: int | None = None,
        max_masked: int | None = None,
        detector: str | None = None,
        on_mismatch: OnMismatch = "raise",
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
            precision: ``fp32``, ``bf16`` or ``fp16`` (of the network's matrix products; each where the backend has it).
                ``auto``: fp32 on processors, fp16 in native-cuda; ``refiner.backend`` says which.
            refine: ``masked`` or ``all``: which joints of a refined pose change. None: the model's own.
            min_visible: With fewer visible joints a pose is returned unchanged; at least 2. None: the model's own.
            max_masked: With more masked joints a pose is returned unchanged. None: the model's own.
            detector: A detector that port-calibrate has calibrated the model for: its δ, reach, fusion and scale of
                confidence are used, where no other argument says otherwise. None: the model's own.
            on_mismatch: What to do with an ``.engine`` that does not fit this machine, its library or its sidecar:
                ``raise``; ``rebuild`` it from the ``.onnx`` beside it (kept in the user's cache folder); or run the
                model file beside it, or the bundled model that it was made from, in the ``native`` backend, with a
                warning.
            options: For one backend alone: ``providers`` (onnxruntime: execution providers, as its session takes
                them), ``hint`` (openvino), ``isa`` (native-cpu: ``generic``, ``avx2``, ``avx512``), ``variant``
                (native-cuda: ``block``, ``cluster``, ``throughput``),
                ``graphs``, ``warm_up``, ``runtime_cache``, ``refit`` (tensorrt, see backends/tensorrt_.py).

        Raises:
            InputError: No such model, or an option is unusable.
            ModelFileError: The file is truncated, foreign or hostile.
            BackendUnavailableError: The backend or device is not there; the message holds the remedy. Nothing else is
                used in its place.
        """
        changes = {"refine": refine, "min_visible": min_visible, "max_masked": max_masked}
        given = {k: v for k, v in changes.items() if v is not None}
        if detector is not None:
            name_or_path = calibrated(name_or_path, detector)
        arguments = (backend, device, threads, precision, given, options)
        if on_mismatch == "raise":
            return cls(*open_backend(name_or_path, *arguments), threshold)
        from port_deploy.export.mismatch import open_or_replace  # building is export's, and rarely needed

        return cls(*open_or_replace(name_or_path, on_mismatch, *arguments), threshold)

    @property
    def refine_mode(self) -> RefineMode:
        """Which joints of a refined pose change, ``masked`` or ``all``: ``refine`` of `load`, else the model's own."""
        return self.model.refine

    def __call__(
        self,
        heatmaps: Any,
        boxes: Any = None,
        affine: Any = None,
        udp: bool = False,
        threshold: float | None = None,
        out: Any = None,
        stream: Any = None,
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
                nothing is allocated then. With a model that has a variance a fourth, std float32 [B, N], may be there.
                None: new arrays of the heatmaps' kind.
            stream: For arrays on the GPU: the CUDA stream, or its handle, that the work is queued on. None: the
                current one of the arrays' library. Nothing is waited for.

        Returns:
            Joints [B, N, 2] in image pixels, confidence [B, N] in 0..1, mask [B, N], and ``std`` [B, N] in image pixels
            (`Refined`).

        Raises:
            InputError: An argument does not fit; nothing has been written.
        """
        delta = self.threshold if threshold is None else check_threshold(threshold)
        if self._is_on_device(heatmaps, stream):
            return Refined(*refiner_device.run(self._backend, heatmaps, boxes, affine, udp, delta, out, stream))
        maps, wrap = check_heatmaps(heatmaps, self._joints, self._takes_strides, self.model.skeleton.name)
        batch, _, height, width = maps.shape
        matrix = to_image(boxes, affine, udp, batch, height, width)
        buffers, result = outputs(out, batch, self._joints, wrap, self._std)
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

    def refine(
        self, joints: Any, confidence: Any, threshold: float | None = None, out: Any = None, stream: Any = None
    ) -> Refined:
        """Refine the joints of any detector.

        Args:
            joints: [B, N, 2] float32 pixels (x, y), in the order of ``model.skeleton.names``; a joint that is NaN or
                beyond a million pixels is missing: it is rebuilt.
            confidence: [B, N] float32; NaN counts as below every threshold.
            threshold: δ of this call. None: the refiner's.
            out: As for heatmaps; in host memory its joints and confidence may be the inputs themselves.
            stream: As for heatmaps.

        Returns:
            Joints [B, N, 2], the caller's confidence [B, N], mask [B, N], and ``std`` [B, N] in pixels (`Refined`).
            Joints that were not rebuilt are copied bit for bit (``refine="masked"``).

        Raises:
            InputError: An argument does not fit; nothing has been written.
        """
        if not self._backend.takes_joints:
            raise InputError("this artefact takes heatmaps: call refiner(heatmaps), or port-export it --input joints")
        delta = self.threshold if threshold is None else check_threshold(threshold)
        if self._is_on_device(joints, stream):
            return Refined(*refiner_device.refine(self._backend, joints, confidence, delta, out, stream))
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
        buffers, result = outputs(out, shape[0], count, wrap, self._std)
        self._backend.refine(points, scores, delta, buffers)
        return result

    def _is_on_device(self, array: Any, stream: Any) -> bool:
        if self._takes_device and type(array) is not np.ndarray and is_on_device(array):
            return True
        if stream is not None:
            raise InputError(
                f"stream= is for arrays on the GPU with a backend that takes them, not {self.backend.name}"
            )
        return False

    def _fits(self) -> str:
        return f"this model is for skeleton {self.model.skeleton.name!r}"

    def __repr__(self) -> str:
        return (
            f"Refiner({self.model.name!r}, backend={self.backend.name!r}, threshold={self.threshold:g}, "
            f"refine={self.refine_mode!r})"
        )


def decode(
    heatmaps: Any,
    codec: CodecName | PeakCodecName = "softargmax",
    temperature: float = DECODE_TEMPERATURE,
    threshold: float = 0.3,
    out: Any = None,
    threads: int = 1,
    blur: int = 11,
    stream: Any = None,
) -> Refined:
    """The fused decode alone, eqs. (1), (2), (13). Needs the native core.

    Args:
        heatmaps: [B, N, H, W] float32 or float16, B >= 0, N from 1 up. On the GPU bfloat16, too; there they are read
            in place, and their last axis must be dense.
        codec: ``softargmax`` (softmax of temperature * map), ``softargmax-sum`` (clipped at 0, divided by the sum),
            ``argmax``; or what MMPose's detectors are evaluated with: ``msra`` (the largest pixel, a quarter pixel
            towards its larger neighbours), ``dark`` or ``udp`` (one Newton step on the logarithm of the blurred map).
            A `Refiner`'s own decode has the first three only: with the others, decode here and call `Refiner.refine`.
        temperature: Factor inside ``softargmax``; above 0.
        threshold: δ: finite, at least 0.
        out: (joints, confidence, mask) to fill, as for `Refiner`.
        threads: That compute, the caller included; without meaning on the GPU.
        blur: Side of the blur of ``dark`` and ``udp``: odd, 9 to 63; 11 for labels of sigma 2, 17 for sigma 3.
        stream: For heatmaps on the GPU, as for `Refiner`: the CUDA stream that the work is queued on, not waited for.

    Returns:
        Joints [B, N, 2] in heatmap pixels, confidence [B, N] in 0..1, mask [B, N]: missing or below the threshold. A
        map that holds NaN or +inf gives a joint of NaN with confidence 0; so does, with ``msra``, ``dark`` and
        ``udp``, one with nothing above 0.

    Raises:
        InputError: An argument does not fit.
        BackendUnavailableError: The native core is not built, or it has no CUDA and the heatmaps are on a GPU.
    """
    if stream is None and type(out) is Refined and try_decode(heatmaps, codec, temperature, threshold, *out, threads):
        return out
    delta = check_threshold(threshold)
    known = (*get_args(CodecName), *get_args(PeakCodecName))
    if codec not in known:
        raise InputError(f"unknown codec {codec!r}: use one of {', '.join(known)}; decode_simcc takes SimCC's vectors")
    if isinstance(temperature, (bool, str)) or not 0 < temperature < float("inf"):
        raise InputError(f"expected a finite temperature above 0, got {temperature!r}")
    check_threads(threads)
    side = check_blur(blur) if codec in get_args(PeakCodecName) else None
    if decode_device.takes(heatmaps, stream):
        return decode_device.decode(heatmaps, codec, float(temperature), side, delta, out, stream)
    maps, wrap = check_heatmaps(heatmaps, None, True, "")
    buffers, result = outputs(out, maps.shape[0], maps.shape[1], wrap)
    if side is not None:
        native.decode_peaks(maps, codec, side, delta, buffers, threads)
    else:
        native.decode(maps, codec, float(temperature), delta, buffers, threads)
    return result


def check_blur(blur: Any) -> int:
    """The side of a blur, or an InputError that says what it must be."""
    if not isinstance(blur, (int, np.integer)) or isinstance(blur, bool) or not (9 <= blur <= 63 and blur % 2):
        raise InputError(f"expected an odd blur from 9 to 63, got {blur!r}")
    return int(blur)
