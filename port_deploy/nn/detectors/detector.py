# SPDX-License-Identifier: Apache-2.0
"""`Detector`: RGB crops to heatmaps or SimCC vectors, normalisation and flip test in the graph.

May use: family, layers, spec, torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from port_deploy.errors import InputError
from port_deploy.nn.detectors.family import Build, member
from port_deploy.nn.detectors.layers import fold_batch_norm
from port_deploy.nn.detectors.spec import DetectorSpec


class Detector(nn.Module):
    """A network of the family; its ``state_dict`` has the keys and shapes of MMPose 1.x.

    Args:
        spec: What it takes and gives.
        build: Backbone and head; None: those that the family has under ``spec.name``.
        flip_test: Answer the mean over a crop and its mirror image, as MMPose's test configurations do: twice the work.

    Attributes:
        spec: The specification.
        flip_test: As above; may be set at any time.
    """

    mean: Tensor
    std: Tensor
    mirror: Tensor

    def __init__(self, spec: DetectorSpec, build: Build | None = None, flip_test: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.flip_test = flip_test
        self.backbone, self.head = (build or member(spec.name)[1].build)(spec)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        mirror = torch.from_numpy(spec.skeleton.mirror_permutation())
        self.register_buffer("mirror", mirror, persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            image: RGB crops of `DetectorSpec.input_size`: uint8 [B, H, W, 3] as pictures lie in memory, or float32
                [B, 3, H, W]. Both in 0..255: the layout differs, the numbers do not.

        Returns:
            ``(heatmaps [B, N, H/4, W/4],)`` or ``(simcc_x [B, N, bins_x], simcc_y [B, N, bins_y])``, float32, raw.

        Raises:
            InputError: Another dtype, layout or size, or floats in 0..1.
        """
        return self.network(self.normalise(image))

    def normalise(self, image: Tensor) -> Tensor:
        """Crops as `forward` takes them to (value - mean) / std, float32 [B, 3, H, W].

        Raises:
            InputError: As `forward` says.
        """
        height, width = self.spec.input_size
        channels_last = image.dtype == torch.uint8
        expected = (height, width, 3) if channels_last else (3, height, width)
        if image.dtype not in (torch.uint8, torch.float32) or image.ndim != 4 or tuple(image.shape[1:]) != expected:
            raise InputError(
                f"expected RGB crops uint8 [B, {height}, {width}, 3] or float32 [B, 3, {height}, {width}], "
                f"both in 0..255, got {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            )
        if not (channels_last or torch.compiler.is_exporting() or image.is_cuda):
            _check_range(image)
        pixels = image.to(torch.float32).permute(0, 3, 1, 2) if channels_last else image
        return (pixels - self.mean) / self.std

    def network(self, x: Tensor) -> tuple[Tensor, ...]:
        """Backbone and head on normalised crops, float32 [B, 3, H, W]; the flip test where it is on."""
        outputs = self._answers(x)
        if not self.flip_test:
            return outputs
        return tuple((a + b) * 0.5 for a, b in zip(outputs, self._unflip(self._answers(x.flip(3))), strict=True))

    def _answers(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(x.to(next(self.backbone.parameters()).dtype))
        answers = self.head(features.to(next(self.head.parameters()).dtype))
        return tuple(y.to(torch.float32) for y in answers)

    def _unflip(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs of a mirrored crop as if it had not been: joints swapped, x reversed.

        MSRA heatmaps also move one pixel to the right: their pixel i lies at 4 i, so that the mirrored map's W - 1 - i
        answers for a place 3 crop pixels further right.
        """
        first = outputs[0][:, self.mirror].flip(-1)
        if self.spec.target == "simcc":
            return first, outputs[1][:, self.mirror]
        if self.spec.target == "msra":
            first = torch.cat([first[..., :1], first[..., :-1]], -1)
        return (first,)

    def lowered(self, dtype: torch.dtype) -> Detector:
        """A copy for inference: batch normalisation folded, backbone and heatmap head in ``dtype``, float32 in and out.

        Normalisation and, after its first convolution, the SimCC head stay in float32; so does, in bfloat16, a head
        with deconvolutions, which TensorRT-RTX does not have in that type.
        """
        result = copy.deepcopy(self)
        fold_batch_norm(result)
        result.requires_grad_(False)
        if dtype != torch.float32:
            result.backbone.to(dtype)
            head = result.head.final_layer if self.spec.target == "simcc" else result.head
            has_deconvolutions = any(isinstance(m, nn.ConvTranspose2d) for m in result.head.modules())
            if not (has_deconvolutions and dtype == torch.bfloat16):
                cast(nn.Module, head).to(dtype)
        return result


def _check_range(image: Tensor) -> None:
    """Refuse crops in 0..1: no crop of 8-bit values has fractions and nothing above 1."""
    if image.numel() and bool(image.amax() <= 1.0) and bool((image != image.round()).any()):
        raise InputError("expected float crops in 0..255, got values up to 1: multiply by 255")
