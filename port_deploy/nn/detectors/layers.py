# SPDX-License-Identifier: Apache-2.0
"""Building blocks that several networks of the family share, and folding of batch normalisation.

Names of children are those of MMPose's checkpoints, and stand in their order. May use: torch.
Test: tests/test_detectors.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class ConvBN(nn.Module):
    """Convolution without bias, batch normalisation, activation; padded so that a stride of 1 keeps the size.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Side of the kernel, odd.
        stride: Of the convolution.
        groups: Of the convolution; ``inputs`` for a depthwise one.
        activation: Module class after the normalisation; None: nothing.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activate = activation() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        return cast(Tensor, self.activate(self.bn(self.conv(x))))


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> list[nn.Module]:
    """The same as two plain modules, for children that are numbered."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """HRNet's residual block: two 3x3 convolutions at one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(width, width, 3)
        self.conv2, self.bn2 = conv_bn(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] to the same."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class Bottleneck(nn.Module):
    """ResNet's residual block: 1x1, 3x3 (which has the stride), 1x1 to four times ``width``."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, width * 4)
        same = inputs == width * 4 and stride == 1
        self.downsample = None if same else nn.Sequential(*conv_bn(inputs, width * 4, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 * width, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        short = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn3(self.conv3(y)) + short)


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch normalisation into the convolution registered right before it, in place; evaluation mode only.

    The products are formed in float64, so that a network lowered to float16 afterwards is rounded once.
    """
    before: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, (nn.Conv2d, nn.ConvTranspose2d)):
            _fold(before, child)
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norm(child)
        before = child


def _fold(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    bias = 0.0 if conv.bias is None else conv.bias.double()
    folded = (bias - mean.double()) * scale + norm.bias.double()
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(shape)).to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(folded.to(conv.weight.dtype), requires_grad=False)
