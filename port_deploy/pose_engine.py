# SPDX-License-Identifier: Apache-2.0
"""`PoseEngine`: crops in, refined joints out, for artefacts that hold a detector and PORT in one graph.

The caller's arrays are checked here, a backend computes. May use: arrays, device_arrays, backends, detector_info,
refined, refiner_device, errors, NumPy. Test: tests/test_pose_engine.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy import refiner_device
from port_deploy.arrays import Wrap, check_threshold, host_view, to_image
from port_deploy.backends.artefact import ArtefactBackend
from port_deploy.backends.select import Choice, open_backend
from port_deploy.config import ModelSpec
from port_deploy.detector_info import DetectorInfo, prepare
from port_deploy.device_arrays import is_on_device
from port_deploy.errors import InputError
from port_deploy.refined import Refined, outputs


class PoseEngine:
    """A detector and PORT in one graph. Safe from many threads. See `PoseEngine.load`.

    Attributes:
        model: The refiner's specification: skeleton, threshold, licence, metrics.
        detector: What stands in front: its channels, scale, and the crops that it takes.
        backend: Name, device, detail and reason of the backend; ``print(engine.backend)``.
        threshold: δ, eq. (13), where a call gives none.
    """

    def __init__(self, backend: ArtefactBackend, choice: Choice, threshold: float | None = None) -> None:
        if not backend.takes_images or backend.sidecar.detector is None:
            raise InputError(
                f"{backend.sidecar.file} holds no detector: load it with Refiner.load, or put one in front with "
                "port-export MODEL --detector FILE.onnx"
            )
        self.model: ModelSpec = backend.spec
        self.detector: DetectorInfo = backend.sidecar.detector
        self.backend = choice
        self.threshold = check_threshold(backend.spec.threshold if threshold is None else threshold)
        self._backend = backend

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        backend: str = "auto",
        threshold: float | None = None,
        *,
        threads: int = 0,
        on_mismatch: str = "raise",
        **options: Any,
    ) -> PoseEngine:
        """Load an artefact that ``port-export MODEL --detector …`` wrote.

        Args:
            path: ``NAME.onnx`` or ``NAME.engine``; its sidecar lies beside it.
            device: ``cpu``, ``cuda`` or ``auto``.
            backend: ``onnxruntime``, ``openvino``, ``tensorrt``, ``tensorrt-rtx`` or ``auto``.
            threshold: δ: a joint of lower confidence is rebuilt; finite, at least 0. None: the model's calibrated one.
            threads: Of one call on a processor; 0 for the runtime's choice.
            on_mismatch: What to do with an ``.engine`` that does not fit this machine, its library or its sidecar:
                ``raise``, or ``rebuild`` it from the ``.onnx`` beside it.
            options: For one backend alone: ``providers`` (onnxruntime), ``graphs``, ``warm_up``, ``runtime_cache``
                (tensorrt).

        Raises:
            InputError: No such file, it holds no detector, or an option is unusable.
            ModelFileError: The file or its sidecar is truncated, foreign or hostile.
            BackendUnavailableError: The backend or device is not there; the message holds the remedy.
        """
        arguments: tuple[Any, ...] = (backend, device, threads, "fp32", {}, options)
        if on_mismatch == "raise":
            loaded, choice = open_backend(path, *arguments)
        else:
            from port_deploy.export.mismatch import open_or_replace  # building is export's, and rarely needed

            loaded, choice = open_or_replace(path, on_mismatch, *arguments)
        if not isinstance(loaded, ArtefactBackend):
            raise InputError(f"{path} is a model without a detector: port-export {path} --onnx --detector FILE.onnx")
        return cls(loaded, choice, threshold)

    def __call__(
        self,
        images: Any,
        boxes: Any = None,
        affine: Any = None,
        udp: bool = False,
        threshold: float | None = None,
        out: Any = None,
        stream: Any = None,
    ) -> Refined:
        """Detect, decode, mask, refine.

        Args:
            images: Crops in RGB, [B, 3, H, W] or [B, H, W, 3] of the size that the detector takes (``detector``), B
                from 0 up. uint8 is always taken; another dtype has to be the graph's own, with the values that its
                detector reads. What is laid out and typed as the graph takes it is read in place; crops in a GPU's
                memory have to be.
            boxes: [B, 4] x1, y1, x2, y2 in image pixels: the region that each crop shows.
            affine: [B, 2, 3] or [2, 3], crop to image pixels. Without it and boxes, joints are in crop pixels.
            udp: The boxes' crops were cut with unbiased data processing.
            threshold: δ of this call. None: the engine's.
            out: (joints, confidence, mask), float32 [B, N, 2], float32 [B, N] and bool [B, N], filled and returned.
                None: new arrays of the images' kind.
            stream: For crops on the GPU: the CUDA stream, or its handle, that the work is queued on. None: the current
                one of the arrays' library. Nothing is waited for.

        Returns:
            Joints [B, N, 2] in image pixels, confidence [B, N] in 0..1, mask [B, N]: the joint was rebuilt; and
            ``std`` [B, N] in image pixels where the graph has it (`Refined`).

        Raises:
            InputError: An argument does not fit; nothing has been written.
        """
        delta = self.threshold if threshold is None else check_threshold(threshold)
        if self._on_device(images, stream):
            return Refined(*refiner_device.run_images(self._backend, images, boxes, affine, udp, delta, out, stream))
        crops, wrap = self._check_images(images)
        batch = len(crops)
        matrix = to_image(boxes, affine, udp, batch, *self.detector.image_size)
        buffers, result = outputs(out, batch, self.model.joints, wrap, self._backend.gives_std)
        self._backend.run_images(crops, matrix, delta, buffers)
        return result

    def _on_device(self, images: Any, stream: Any) -> bool:
        if getattr(self._backend, "takes_device", False) and is_on_device(images):
            return True
        if stream is not None:
            raise InputError("stream= is for crops on the GPU, and an engine: leave it out")
        return False

    def _check_images(self, images: Any) -> tuple[NDArray[Any], Wrap | None]:
        """The crops as the graph takes them: the caller's memory where it is so already."""
        info = self.detector
        array, wrap = host_view(images, "images")
        height, width = info.image_size
        first, last = (3, height, width), (height, width, 3)
        shape = array.shape[1:]
        if array.ndim != 4 or shape not in (first, last):
            hint = "cut and resize the crops to that size"
            if array.ndim == 3 and array.shape in (first, last):
                hint = "add the batch axis with images[None]"
            elif array.ndim == 4 and 3 not in (array.shape[1], array.shape[3]):
                hint = "it reads colour, 3 channels in the order red, green, blue"
            raise InputError(
                f"expected images [B, 3, {height}, {width}] or [B, {height}, {width}, 3] for detector {info.name!r}, "
                f"got {list(array.shape)}: {hint}"
            )
        layout = info.image_layout if first == last else "nchw" if shape == first else "nhwc"
        if array.dtype == np.uint8 and info.image_type != "uint8":
            return prepare(array if layout == "nhwc" else array.transpose(0, 2, 3, 1), info), wrap
        if array.dtype != np.dtype(info.image_type):
            raise InputError(
                f"expected images uint8 or {info.image_type} for detector {info.name!r}, got {array.dtype}: "
                f"pass uint8 in 0..255, or {info.image_type} with what the detector reads ({info.values})"
                if info.image_type != "uint8"
                else f"expected images uint8 in 0..255 for detector {info.name!r}, got {array.dtype}"
            )
        if layout != info.image_layout:
            array = array.transpose((0, 2, 3, 1) if layout == "nchw" else (0, 3, 1, 2))
        return np.ascontiguousarray(array), wrap

    def __repr__(self) -> str:
        names = f"{self.detector.name!r} + {self.model.name!r}"
        return f"PoseEngine({names}, backend={self.backend.name!r}, threshold={self.threshold:g})"
