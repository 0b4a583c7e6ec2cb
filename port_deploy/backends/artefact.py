# SPDX-License-Identifier: Apache-2.0
"""What all backends that run an exported artefact share: its sidecar, its kind of input, empty batches.

May use: base, sidecar, errors, NumPy. Test: tests/test_export.py runs every kind of artefact against the oracle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.errors import InputError, missing_extra
from port_deploy.sidecar import INPUTS, InputKind, Sidecar, outputs_of

_REMEDIES: Mapping[InputKind, str] = {
    "heatmaps": "takes heatmaps: call refiner(heatmaps), or export --input joints",
    "joints": "takes joints: decode first, or export --input heatmaps",
    "image": "takes images: load it with PoseEngine.load",
}


class ArtefactBackend(ABC):
    """A `Backend` around one artefact; a subclass only runs it.

    Args:
        name: The backend's name.
        detail: What it runs on and how.
        sidecar: The artefact's sidecar, already checked against the file.
    """

    def __init__(self, name: str, detail: str, sidecar: Sidecar) -> None:
        self.name = name
        self.detail = detail
        self.sidecar = sidecar
        self.spec = sidecar.spec
        self.takes_joints = sidecar.input == "joints"
        self.takes_heatmaps = sidecar.input == "heatmaps"
        self.takes_images = sidecar.input == "image"
        self.input_names = INPUTS[sidecar.input]
        self.output_names = outputs_of(sidecar.input, sidecar.spec)
        self.gives_std = sidecar.spec.config.variance

    def refine(self, joints: FloatArray, confidence: FloatArray, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says.

        Raises:
            InputError: The artefact takes heatmaps.
        """
        if not self.takes_joints:
            raise InputError(f"{self.sidecar.file} {_REMEDIES[self.sidecar.input]}")
        if len(joints):
            self._infer(joints, confidence, np.array([threshold], np.float32), out)

    def run(self, heatmaps: NDArray[Any], affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says.

        Raises:
            InputError: The artefact takes joints, or heatmaps of another size.
        """
        if not self.takes_heatmaps:
            raise InputError(f"{self.sidecar.file} {_REMEDIES[self.sidecar.input]}")
        size = self.sidecar.heatmap_size
        if size is not None and tuple(heatmaps.shape[2:]) != size:
            raise InputError(
                f"expected heatmaps [B, {self.spec.joints}, {size[0]}, {size[1]}] for {self.sidecar.file}, "
                f"got {list(heatmaps.shape)}: export it with --heatmap-size {heatmaps.shape[2]},{heatmaps.shape[3]}"
            )
        if len(heatmaps) == 0:
            return
        if affine is None:
            affine = np.tile(np.eye(2, 3, dtype=np.float32), (len(heatmaps), 1, 1))
        maps = np.ascontiguousarray(heatmaps, dtype=np.float32)
        self._infer(maps, np.ascontiguousarray(affine), np.array([threshold], np.float32), out)

    def run_images(self, images: NDArray[Any], affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """Crops in the graph's own layout and dtype, and [B, 2, 3] (crop to image pixels) or None, into ``out``.

        Raises:
            InputError: The artefact takes no images.
        """
        if not self.takes_images:
            raise InputError(f"{self.sidecar.file} {_REMEDIES[self.sidecar.input]}")
        if len(images) == 0:
            return
        if affine is None:
            affine = np.tile(np.eye(2, 3, dtype=np.float32), (len(images), 1, 1))
        self._infer(images, np.ascontiguousarray(affine), np.array([threshold], np.float32), out)

    @abstractmethod
    def _infer(self, first: NDArray[Any], second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        """Run at least one pose: the two inputs in the artefact's order and the threshold [1], into ``out``."""

    def targets(self, out: HostBuffers) -> tuple[NDArray[Any], ...]:
        """Where each of ``output_names`` goes; std where nobody wants it to memory that is given up."""
        if not self.gives_std:
            return out.joints, out.confidence, out.mask
        std = np.empty_like(out.confidence) if out.std is None else out.std
        return out.joints, out.confidence, out.mask, std


def library_availability(library: str, name: str, extra: str) -> Availability:
    """Whether a library that a backend needs is installed.

    Args:
        library: Its import name.
        name: Its name for people.
        extra: The extra of port-deploy that brings it.
    """
    if find_spec(library) is None:
        return Availability(False, f"{name} is not installed", f'pip install "port-deploy[{extra}]"')
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Availability(True, f"{name} {version(library)}")
    except PackageNotFoundError:
        return Availability(True, name)


def require_library(library: str, what: str, extra: str) -> None:
    """Raise unless a library is installed.

    Raises:
        BackendUnavailableError: It is not; the message holds the pip command.
    """
    if find_spec(library) is None:
        raise missing_extra(what, extra)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, for messages of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def require_cpu_device(device: str, name: str) -> None:
    """Raise unless the device is the CPU.

    Raises:
        InputError: It is another.
    """
    if device != "cpu":
        raise InputError(f"backend {name} runs on the CPU only, got device {device!r}: use device='cpu'")


def artefact_path(path: str | Path) -> Path:
    """The path, absolute: runtimes that open files by name find it whatever the working directory."""
    return Path(path).resolve()
