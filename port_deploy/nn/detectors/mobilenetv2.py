# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2: Sandler et al., CVPR 2018: inverted residuals with linear bottlenecks.

Attribute names and order are those of MMPose's checkpoints. May use: layers, torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from port_deploy.nn.detectors.layers import ConvBN

_LAYERS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each layer."""


def rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8, never below nine tenths of ``channels``."""
    result = max(8, int(channels + 4) // 8 * 8)
    return result + 8 if result < 0.9 * channels else result


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter depthwise, project by a linear 1x1; the input is added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [ConvBN(inputs, hidden, activation=nn.ReLU6)]
        layers.append(ConvBN(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6))
        layers.append(ConvBN(hidden, outputs, activation=None))
        self.conv = nn.Sequential(*layers)
        self.add = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        y = cast(Tensor, self.conv(x))
        return x + y if self.add else y


class MobileNetV2(nn.Module):
    """The backbone.

    Args:
        widen: Factor on every width; the last layer never has fewer than 1280 channels.

    Attributes:
        channels: Of the output.
    """

    def __init__(self, widen: float = 1.0) -> None:
        super().__init__()
        inputs = rounded(32 * widen)
        self.conv1 = ConvBN(3, inputs, 3, 2, activation=nn.ReLU6)
        for i, (expansion, channels, count, stride) in enumerate(_LAYERS):
            outputs = rounded(channels * widen)
            blocks = []
            for j in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if j == 0 else 1))
                inputs = outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.channels = int(1280 * max(widen, 1.0))
        self.conv2 = ConvBN(inputs, self.channels, activation=nn.ReLU6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, channels, H / 32, W / 32]."""
        x = self.conv1(x)
        for i in range(len(_LAYERS)):
            x = getattr(self, f"layer{i + 1}")(x)
        return cast(Tensor, self.conv2(x))
