# SPDX-License-Identifier: Apache-2.0
"""The heads: features to heatmaps, or to RTMPose's SimCC vectors.

Attribute names and order are those of MMPose's checkpoints. May use: torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

DECONVOLUTIONS = (256, 256, 256)
"""Channels of the three deconvolutions of Xiao et al., ECCV 2018 (simple baselines)."""

_HIDDEN, _EXPANDED, _KEY = 256, 512, 128  # widths of RTMPose's gated attention unit


class HeatmapHead(nn.Module):
    """Features to heatmaps.

    Args:
        inputs: Channels of the features.
        joints: N.
        deconvolutions: Channels of the deconvolutions, each of which doubles the map.
        mix: A 1x1 convolution with normalisation before the last one (HRNetv2).
    """

    def __init__(self, inputs: int, joints: int, deconvolutions: tuple[int, ...] = (), mix: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in deconvolutions:
            layers.append(nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            inputs = channels
        self.deconv_layers = nn.Sequential(*layers)
        mixing = [nn.Conv2d(inputs, inputs, 1), nn.BatchNorm2d(inputs), nn.ReLU()] if mix else []
        self.conv_layers = nn.Sequential(*mixing)
        self.final_layer = nn.Conv2d(inputs, joints, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, inputs, h, w] to (heatmaps [B, N, H, W],), raw."""
        return (self.final_layer(self.conv_layers(self.deconv_layers(x))),)


class ScaleNorm(nn.Module):
    """x over its root mean square, times a learnt scalar. Nguyen and Salazar, 2019."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale
        return cast(Tensor, x / norm.clamp(min=1e-5) * self.g)


class Scale(nn.Module):
    """A learnt factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return x * self.scale


class GatedAttention(nn.Module):
    """Gated attention unit over the joints with squared-ReLU scores. Hua et al., ICML 2022."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(2, _KEY))
        self.beta = nn.Parameter(torch.zeros(2, _KEY))
        self.o = nn.Linear(_EXPANDED, _HIDDEN, bias=False)
        self.uv = nn.Linear(_HIDDEN, 2 * _EXPANDED + _KEY, bias=False)
        self.ln = ScaleNorm(_HIDDEN)
        self.res_scale = Scale(_HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 256] to the same."""
        gate, value, base = torch.split(silu(self.uv(self.ln(x))), [_EXPANDED, _EXPANDED, _KEY], -1)
        query = base * self.gamma[0] + self.beta[0]
        key = base * self.gamma[1] + self.beta[1]
        scores = torch.relu(torch.matmul(query, key.transpose(1, 2)) / _KEY**0.5)
        mixed = gate * torch.matmul(scores * scores, value)
        return cast(Tensor, self.o(mixed) + self.res_scale(x))


class SimCCHead(nn.Module):
    """Features to one vector of scores along x and one along y for each joint (Li et al., ECCV 2022; RTMPose).

    Args:
        inputs: Channels of the features.
        joints: N.
        cells: h * w of the features.
        bins_x: Length of the vectors along x.
        bins_y: Length of the vectors along y.
    """

    def __init__(self, inputs: int, joints: int, cells: int, bins_x: int, bins_y: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(inputs, joints, 7, padding=3)
        self.mlp = nn.Sequential(ScaleNorm(cells), nn.Linear(cells, _HIDDEN, bias=False))
        self.gau = GatedAttention()
        self.cls_x = nn.Linear(_HIDDEN, bins_x, bias=False)
        self.cls_y = nn.Linear(_HIDDEN, bins_y, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, inputs, h, w] to (simcc_x [B, N, bins_x], simcc_y [B, N, bins_y]), raw.

        From the vectors on all is float32: the squared scores leave float16's range.
        """
        maps = self.final_layer(x).flatten(2).to(self.cls_x.weight.dtype)  # [B, N, h*w], row-major
        hidden = self.gau(self.mlp(maps))
        return self.cls_x(hidden), self.cls_y(hidden)
