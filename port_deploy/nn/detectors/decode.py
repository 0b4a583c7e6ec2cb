# SPDX-License-Identifier: Apache-2.0
"""A detector's outputs to joints and confidence, in PyTorch and in the graph of an export.

Heatmaps through the codecs of `nn.line.Decode` or those that MMPose's own detectors are decoded with (``msra``,
``dark``, ``udp``); SimCC vectors through `SimccDecode`. May use: config, detector_info, spec, nn.line, errors, torch.
Test: tests/test_detectors_decode.py holds all against MMPose's recorded answers.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from port_deploy.config import CodecName, PeakCodecName
from port_deploy.detector_info import ScoreRule
from port_deploy.errors import InputError
from port_deploy.nn.detectors.spec import SPLIT_RATIO, DetectorSpec
from port_deploy.nn.line import Decode, to_image

_LARGEST = 3e38  # above it only infinity; a comparison is false for NaN


def _present(values: Tensor, score: Tensor) -> Tensor:
    """Whether all values [..., n] are usable and the score [...] is above 0."""
    return (values <= _LARGEST).all(-1) & (score > 0)


def _finish(joints: Tensor, score: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    missing = torch.full_like(joints, float("nan"))
    confidence = torch.where(present, score.clamp(0.0, 1.0), torch.zeros_like(score))
    return torch.where(present.unsqueeze(-1), joints, missing), confidence


class PeakDecode(nn.Module):
    """The largest pixel of a map, moved within the pixel by what lies around it.

    ``msra`` moves a quarter pixel towards the larger neighbour, each axis by itself, where the peak is two pixels from
    the border (Newell et al., ECCV 2016). ``dark`` takes one Newton step on the logarithm of the blurred map (Zhang et
    al., CVPR 2020), with differences over two pixels, where the peak is two pixels from the border; ``udp`` likewise,
    with differences over one pixel, everywhere (Huang et al., CVPR 2020). Ties go to the first pixel, row by row.

    Confidence is the peak, clipped to 0..1. A map whose peak is not above 0, or that holds NaN or +inf, gives a missing
    joint: NaN, with confidence 0 (MMPose answers (-1, -1)).

    Args:
        codec: As above.
        kernel: Side of the blur of ``dark`` and ``udp``, odd: 11 for labels of sigma 2, 17 for sigma 3.

    Raises:
        InputError: No such codec, or the kernel is not odd or not from 9 to 63.
    """

    blur: Tensor

    def __init__(self, codec: PeakCodecName, kernel: int = 11) -> None:
        super().__init__()
        if codec not in get_args(PeakCodecName):
            raise InputError(f"unknown codec {codec!r}: use {', '.join(get_args(PeakCodecName))}")
        if kernel % 2 == 0 or not 9 <= kernel <= 63:
            raise InputError(f"expected an odd blur kernel from 9 to 63, got {kernel}")
        self.codec = codec
        sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8  # OpenCV's, where none is named
        taps = torch.exp(-(((torch.arange(kernel, dtype=torch.float64) - kernel // 2) / sigma) ** 2) / 2)
        self.register_buffer("blur", (taps / taps.sum()).to(torch.float32), persistent=False)

    def forward(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            heatmaps: [B, N, H, W], any floating dtype; computed in float32 at least.

        Returns:
            Joints [B, N, 2] in heatmap pixels (x, y), and confidence [B, N].
        """
        if heatmaps.dtype in (torch.float16, torch.bfloat16):
            heatmaps = heatmaps.to(torch.float32)
        width = heatmaps.shape[3]
        maps = heatmaps.flatten(2)  # [B, N, H*W]
        at = maps.argmax(-1, keepdim=True)  # [B, N, 1]
        peak = maps.gather(2, at).squeeze(-1)
        at = at.squeeze(-1)
        y = torch.div(at, width, rounding_mode="floor")
        x = at - y * width
        shift = self._quarter(heatmaps, x, y) if self.codec == "msra" else self._newton(heatmaps, peak, x, y)
        shift = torch.where((shift.abs() <= _LARGEST).all(-1, keepdim=True), shift, torch.zeros_like(shift))
        joints = torch.stack([x, y], -1).to(maps.dtype) + shift
        return _finish(joints, peak, _present(maps, peak))

    @staticmethod
    def _read(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Maps [B, N, H, W] at pixels [B, N], those beyond the border read on it."""
        height, width = maps.shape[2], maps.shape[3]
        index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
        return maps.flatten(2).gather(2, index.unsqueeze(-1)).squeeze(-1)

    def _quarter(self, maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
        height, width = maps.shape[2], maps.shape[3]
        dx = self._read(maps, x + 1, y) - self._read(maps, x - 1, y)
        dy = self._read(maps, x, y + 1) - self._read(maps, x, y - 1)
        inner_x = (x > 1) & (x < width - 1) & (y > 0)
        inner_y = (y > 1) & (y < height - 1) & (x > 0)
        zero = torch.zeros_like(dx)
        steps = [torch.where(inner_x, dx.sign(), zero), torch.where(inner_y, dy.sign(), zero)]
        return torch.stack(steps, -1) * 0.25

    def _blurred(self, maps: Tensor, peak: Tensor) -> Tensor:
        """Gaussian blur with zeros around the map, brought back to the old maximum."""
        height, width = maps.shape[2], maps.shape[3]
        half = self.blur.shape[0] // 2
        taps = self.blur.to(maps.dtype)
        flat = maps.reshape(-1, 1, height, width)
        flat = conv2d(flat, taps.view(1, 1, 1, -1), padding=(0, half))
        flat = conv2d(flat, taps.view(1, 1, -1, 1), padding=(half, 0))
        blurred = flat.reshape(maps.shape)
        return blurred * (peak / blurred.flatten(2).amax(-1)).unsqueeze(-1).unsqueeze(-1)

    def _newton(self, maps: Tensor, peak: Tensor, x: Tensor, y: Tensor) -> Tensor:
        height, width = maps.shape[2], maps.shape[3]
        blurred = self._blurred(maps, peak)
        udp = self.codec == "udp"
        low, high = (1e-3, 50.0) if udp else (1e-10, _LARGEST)

        def at(dx: int, dy: int) -> Tensor:
            return self._read(blurred, x + dx, y + dy).clamp(low, high).log()

        centre, right, left, below, above = at(0, 0), at(1, 0), at(-1, 0), at(0, 1), at(0, -1)
        gx, gy = (right - left) * 0.5, (below - above) * 0.5
        if udp:
            xx, yy = right - 2 * centre + left, below - 2 * centre + above
            xy = (at(1, 1) - right - below + 2 * centre - left - above + at(-1, -1)) * 0.5
            eps = torch.finfo(torch.float32).eps
            xx, yy = xx + eps, yy + eps
            inner = torch.ones_like(x, dtype=torch.bool)
        else:
            xx = (at(2, 0) - 2 * centre + at(-2, 0)) * 0.25
            yy = (at(0, 2) - 2 * centre + at(0, -2)) * 0.25
            xy = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) * 0.25
            inner = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
        determinant = xx * yy - xy * xy
        solvable = inner & (determinant != 0)
        safe = torch.where(solvable, determinant, torch.ones_like(determinant))
        step = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], -1) / safe.unsqueeze(-1)
        return torch.where(solvable.unsqueeze(-1), step, torch.zeros_like(step))


class SimccDecode(nn.Module):
    """SimCC vectors to joints: the largest bin of each axis.

    Confidence is the lesser or the mean of the two maxima, clipped to 0..1; where it is not above 0, or a vector holds
    NaN or +inf, the joint is missing: NaN, with confidence 0.

    Args:
        split_ratio: Bins to a crop pixel.
        score: ``min`` or ``mean``: the mask of what is refined changes with it.

    Raises:
        InputError: An option is unusable.
    """

    def __init__(self, split_ratio: float = SPLIT_RATIO, score: ScoreRule = "min") -> None:
        super().__init__()
        if score not in get_args(ScoreRule):
            raise InputError(f"unknown score rule {score!r}: use {' or '.join(get_args(ScoreRule))}")
        if not 0 < split_ratio < float("inf"):
            raise InputError(f"expected a split ratio above 0, got {split_ratio!r}")
        self.split_ratio, self.score = float(split_ratio), score

    def forward(self, simcc_x: Tensor, simcc_y: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, bins_x], [B, N, bins_y] to joints [B, N, 2] in crop pixels (x, y), and confidence [B, N]."""
        x, y = (v.to(torch.float32) if v.dtype == torch.float16 else v for v in (simcc_x, simcc_y))
        joints = torch.stack([x.argmax(-1), y.argmax(-1)], -1).to(x.dtype) / self.split_ratio
        high_x, high_y = x.amax(-1), y.amax(-1)
        score = torch.minimum(high_x, high_y) if self.score == "min" else (high_x + high_y) * 0.5
        return _finish(joints, score, _present(x, score) & _present(y, score))


class DetectorDecode(nn.Module):
    """A detector's outputs to joints in the pixels of its crop.

    Args:
        spec: The detector's.
        codec: For heatmaps: ``softargmax``, ``softargmax-sum``, ``argmax``, ``msra``, ``dark`` or ``udp``.
        temperature: Of ``softargmax``.
        kernel: Side of the blur of ``dark`` and ``udp``.
        score: For SimCC vectors: ``min`` or ``mean``.

    Raises:
        InputError: An option is unusable.
    """

    scale: Tensor

    def __init__(
        self,
        spec: DetectorSpec,
        codec: CodecName | PeakCodecName = "softargmax",
        temperature: float = 40.0,
        kernel: int = 11,
        score: ScoreRule = "min",
    ) -> None:
        super().__init__()
        known = (*get_args(CodecName), *get_args(PeakCodecName))
        if codec not in known:
            raise InputError(f"unknown codec {codec!r}: use {', '.join(known)}")
        if spec.target == "simcc":
            self.decode: nn.Module = SimccDecode(spec.split_ratio, score)
        elif codec in ("msra", "dark", "udp"):
            self.decode = PeakDecode(codec, kernel)
        else:
            self.decode = Decode(codec, temperature)
        self.register_buffer("scale", torch.from_numpy(spec.to_crop()), persistent=False)

    def forward(self, *outputs: Tensor) -> tuple[Tensor, Tensor]:
        """What `Detector` answers to joints [B, N, 2] in crop pixels (x, y), and confidence [B, N]."""
        joints, confidence = self.decode(*outputs)
        return to_image(joints, self.scale.to(joints.dtype)), confidence
