# SPDX-License-Identifier: Apache-2.0
"""The line in PyTorch: the `torch` backend in float32, and in float64 the oracle that all else is compared with.

May use: base, weights, config, errors, nn, torch. Test: tests/test_backends.py.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.base import Availability, FloatArray, HostBuffers
from port_deploy.config import ModelSpec
from port_deploy.errors import BackendUnavailableError, InputError, missing_extra
from port_deploy.weights import Model

if TYPE_CHECKING:
    import torch

INSTALL = 'pip install "port-deploy[train]"'
"""Command that brings PyTorch."""

Answer = tuple[NDArray[Any], ...]
"""Joints [B, N, 2], confidence [B, N], mask [B, N]; std [B, N] too of a model with a variance."""


def availability() -> Availability:
    """Whether PyTorch is installed, and what it runs on."""
    if find_spec("torch") is None:
        return Availability(False, "PyTorch is not installed", INSTALL)
    import torch

    return Availability(True, f"PyTorch {torch.__version__}, {'CUDA' if torch.cuda.is_available() else 'CPU only'}")


class TorchBackend:
    """nn/line.py, eager. Attributes as `Backend` says; `line` and `float64` also serve the oracle.

    Args:
        model: Specification and weights.
        dtype: Dtype of everything: ``float32``, or ``float64`` for the oracle.
        device: ``cpu`` or ``cuda`` (``cuda:1`` picks a card).
        lowered: Dtype of the encoder's matrix products where it is not ``dtype``: ``bfloat16`` or ``float16``.
    """

    name = "torch"
    takes_joints = True
    takes_heatmaps = True

    def __init__(self, model: Model, dtype: str = "float32", device: str = "cpu", lowered: str | None = None) -> None:
        import torch

        from port_deploy.nn.line_std import heatmap_line
        from port_deploy.nn.port import Port

        self.spec: ModelSpec = model.spec
        self.gives_std = model.spec.config.variance
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.device = torch.device(device)
        port = Port(model.spec.config, model.spec.skeleton, self.dtype)
        port.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in model.tensors.items()})
        if lowered is not None:
            port.lower(getattr(torch, lowered))
        self.line = heatmap_line(model.spec, port).to(self.device).eval()
        self.line.requires_grad_(False)
        self.detail = f"PyTorch {torch.__version__} eager on {self.device}, {lowered or dtype}"

    def compute(self, joints: NDArray[Any], confidence: NDArray[Any], threshold: float) -> Answer:
        """Refine [B, N, 2] and [B, N]; the answer is in the backend's dtype."""
        import torch

        with torch.inference_mode():
            given = self._tensor(joints), self._tensor(confidence)
            refined, mask, *std = self.line.refine(*given, self._threshold(threshold))
            return tuple(a.cpu().numpy() for a in (refined, given[1], mask, *std))

    def compute_heatmaps(self, heatmaps: NDArray[Any], affine: NDArray[Any] | None, threshold: float) -> Answer:
        """Decode [B, N, H, W] and refine; the answer is in the backend's dtype."""
        import torch

        if affine is None:
            affine = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (len(heatmaps), 2, 3))
        with torch.inference_mode():
            answers = self.line(self._tensor(heatmaps), self._tensor(affine), self._threshold(threshold))
            return tuple(a.cpu().numpy() for a in answers)

    def decode(self, heatmaps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Decode [B, N, H, W] alone: joints [B, N, 2] in heatmap pixels, confidence [B, N]; in the backend's dtype."""
        import torch

        with torch.inference_mode():
            joints, confidence = self.line.decode(self._tensor(heatmaps))
            return joints.cpu().numpy(), confidence.cpu().numpy()

    def refine(self, joints: FloatArray, confidence: FloatArray, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says."""
        _fill(out, self.compute(joints, confidence, threshold))

    def run(self, heatmaps: NDArray[Any], affine: FloatArray | None, threshold: float, out: HostBuffers) -> None:
        """As `Backend` says."""
        _fill(out, self.compute_heatmaps(heatmaps, affine, threshold))

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        wanted = np.float64 if self.dtype == torch.float64 else np.float32
        readable = array if array.flags.writeable else array.copy()  # torch warns about read-only memory
        return torch.from_numpy(readable.astype(wanted, copy=False)).to(self.device)

    def _threshold(self, threshold: float) -> torch.Tensor:
        import torch

        # Every backend compares float32 with float32, so the oracle's threshold is the float32 one, too.
        return torch.tensor([float(np.float32(threshold))], dtype=self.dtype, device=self.device)


def _fill(out: HostBuffers, answer: Answer) -> None:
    out.joints[...], out.confidence[...], out.mask[...] = answer[:3]
    if out.std is not None:
        out.std[...] = answer[3]


def oracle(model: Model) -> TorchBackend:
    """The definition of the right answer: nn/line.py in float64. Read it through `compute` and `compute_heatmaps`."""
    return TorchBackend(model, "float64")


def load(model: Model, *, threads: int = 0, device: str = "cpu", precision: str = "fp32") -> TorchBackend:
    """The model as a `torch` backend.

    Args:
        model: Specification and weights.
        threads: Ignored: PyTorch has one setting for the whole process, ``torch.set_num_threads``.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``; the latter two lower the encoder's matrix products only.

    Raises:
        BackendUnavailableError: PyTorch is not installed, or has no CUDA device.
        InputError: Unknown precision.
    """
    lowered = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
    if precision not in lowered:
        raise InputError(f"unknown precision {precision!r} for backend torch: use {', '.join(lowered)}")
    if find_spec("torch") is None:
        raise missing_extra("backend torch", "train")
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"PyTorch {torch.__version__} finds no CUDA device: use device='cpu', or install a CUDA build of PyTorch"
        )
    return TorchBackend(model, "float32", device, lowered[precision])
