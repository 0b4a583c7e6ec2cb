# SPDX-License-Identifier: Apache-2.0
"""CSPNeXt, the backbone of RTMPose and RTMDet: cross-stage partial blocks with 5x5 depthwise convolutions.

Lyu et al., arXiv 2212.07784; Jiang et al., arXiv 2303.07399. Attribute names and order are those of MMPose's
checkpoints. May use: layers, torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import hardsigmoid

from port_deploy.nn.detectors.layers import ConvBN

_STAGES = ((64, 128, 3, True), (128, 256, 6, True), (256, 512, 6, True), (512, 1024, 3, False))
"""Channels in and out, blocks, and whether a block adds its input; the last stage has the pooling pyramid."""


class ChannelAttention(nn.Module):
    """A gate for each channel from its mean over the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        return x * hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class DepthwiseSeparable(nn.Module):
    """A depthwise 5x5 convolution and a 1x1, each with normalisation and activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBN(channels, channels, 5, groups=channels, activation=nn.SiLU)
        self.pointwise_conv = ConvBN(channels, channels, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        return cast(Tensor, self.pointwise_conv(self.depthwise_conv(x)))


class Block(nn.Module):
    """3x3, then depthwise separable 5x5; the input is added where ``add`` says so."""

    def __init__(self, channels: int, add: bool) -> None:
        super().__init__()
        self.conv1 = ConvBN(channels, channels, 3, activation=nn.SiLU)
        self.conv2 = DepthwiseSeparable(channels)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        y = cast(Tensor, self.conv2(self.conv1(x)))
        return y + x if self.add else y


class CrossStagePartial(nn.Module):
    """Half the channels through the blocks, half past them, joined, gated and mixed."""

    def __init__(self, channels: int, blocks: int, add: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main_conv = ConvBN(channels, half, activation=nn.SiLU)
        self.short_conv = ConvBN(channels, half, activation=nn.SiLU)
        self.final_conv = ConvBN(2 * half, channels, activation=nn.SiLU)
        self.blocks = nn.Sequential(*(Block(half, add) for _ in range(blocks)))
        self.attention = ChannelAttention(2 * half)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        joined = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1)
        return cast(Tensor, self.final_conv(self.attention(joined)))


class PoolingPyramid(nn.Module):
    """The map and its maxima over 5, 9 and 13 pixels side by side, mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(channels, channels // 2, activation=nn.SiLU)
        self.poolings = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.conv2 = ConvBN(channels // 2 * 4, channels, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        x = self.conv1(x)
        return cast(Tensor, self.conv2(torch.cat([x, *(pool(x) for pool in self.poolings)], 1)))


class CSPNeXt(nn.Module):
    """The backbone.

    Args:
        deepen: Factor on the number of blocks.
        widen: Factor on every width.

    Attributes:
        channels: Of the output.
    """

    def __init__(self, deepen: float, widen: float) -> None:
        super().__init__()
        first = int(_STAGES[0][0] * widen)
        self.stem = nn.Sequential(
            ConvBN(3, first // 2, 3, 2, activation=nn.SiLU),
            ConvBN(first // 2, first // 2, 3, activation=nn.SiLU),
            ConvBN(first // 2, first, 3, activation=nn.SiLU),
        )
        for i, (inputs, outputs, blocks, add) in enumerate(_STAGES):
            channels = int(outputs * widen)
            layers: list[nn.Module] = [ConvBN(int(inputs * widen), channels, 3, 2, activation=nn.SiLU)]
            if i == len(_STAGES) - 1:
                layers.append(PoolingPyramid(channels))
            layers.append(CrossStagePartial(channels, max(round(blocks * deepen), 1), add))
            self.add_module(f"stage{i + 1}", nn.Sequential(*layers))
        self.channels = int(_STAGES[-1][1] * widen)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, channels, H / 32, W / 32]."""
        x = self.stem(x)
        for i in range(len(_STAGES)):
            x = getattr(self, f"stage{i + 1}")(x)
        return x
