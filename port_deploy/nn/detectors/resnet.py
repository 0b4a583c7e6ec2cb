# SPDX-License-Identifier: Apache-2.0
"""ResNet-50: He et al., CVPR 2016, with the stride on the 3x3 convolution.

Attribute names and order are those of MMPose's checkpoints. May use: layers, torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from port_deploy.nn.detectors.layers import Bottleneck, conv_bn

_DEPTHS = (3, 4, 6, 3)


class ResNet50(nn.Module):
    """The backbone.

    Args:
        width: Channels of the stem; 64 for ResNet-50.

    Attributes:
        channels: Of the output.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = conv_bn(3, width)[1]
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for i, depth in enumerate(_DEPTHS):
            inner = width * 2**i
            blocks = [Bottleneck(inputs, inner, 1 if i == 0 else 2)]
            inputs = inner * 4
            blocks += [Bottleneck(inputs, inner) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.channels = inputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, channels, H / 32, W / 32]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for i in range(len(_DEPTHS)):
            x = getattr(self, f"layer{i + 1}")(x)
        return x
