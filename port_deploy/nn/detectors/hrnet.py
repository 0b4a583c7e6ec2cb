# SPDX-License-Identifier: Apache-2.0
"""HRNet: parallel branches from high to low resolution that exchange features after every module.

Sun et al., CVPR 2019 (HRNet_w32, HRNet_w48); Wang et al., TPAMI 2020 (HRNetv2_w18, which keeps all four branches).
Attribute names and order are those of MMPose's checkpoints. May use: layers, torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from port_deploy.nn.detectors.layers import BasicBlock, Bottleneck, conv_bn

_BLOCKS = 4  # of a branch
_STEM = 64


class Upsample(nn.Module):
    """Enlarge by a whole factor; ``nearest``, or ``bilinear`` between pixel centres."""

    def __init__(self, factor: int, mode: str) -> None:
        super().__init__()
        self.factor, self.mode = float(factor), mode

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, factor * H, factor * W]."""
        corners = None if self.mode == "nearest" else False
        return interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=corners)


class Exchange(nn.Module):
    """One module of a stage: residual blocks on every branch, then every output sums what all branches send.

    Args:
        widths: Channels of the branches, finest first.
        outputs: How many branches are put out; the last module of HRNet_w32 and w48 has 1.
        mode: How coarser branches are enlarged.
    """

    def __init__(self, widths: Sequence[int], outputs: int, mode: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w) for _ in range(_BLOCKS))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target, mode) for source in range(len(widths)))
            for target in range(outputs)
        )

    @staticmethod
    def _path(widths: Sequence[int], source: int, target: int, mode: str) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(*conv_bn(widths[source], widths[target]), Upsample(2 ** (source - target), mode))
        steps = []
        for step in range(source, target):
            last = step == target - 1
            layers = conv_bn(widths[source], widths[target] if last else widths[source], 3, 2)
            steps.append(nn.Sequential(*layers, *([] if last else [nn.ReLU()])))
        return nn.Sequential(*steps)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Branches [B, widths[i], H / 2^i, W / 2^i] to the first ``outputs`` of the same."""
        x = [branch(value) for branch, value in zip(self.branches, inputs, strict=True)]
        results = []
        for paths in self.fuse_layers:
            total: Tensor | None = None
            for path, value in zip(paths, x, strict=True):  # type: ignore[call-overload]
                sent = path(value)
                total = sent if total is None else total + sent
            assert total is not None
            results.append(torch.relu(total))
        return results


class HRNet(nn.Module):
    """The backbone.

    Args:
        width: Channels of the finest branch; each coarser one has twice as many.
        all_branches: Put out all four, concatenated at the finest resolution (HRNetv2), or the finest alone.
        mode: How coarser branches are enlarged in an exchange: ``nearest`` or ``bilinear``.

    Attributes:
        channels: Of the output.
    """

    def __init__(self, width: int, all_branches: bool = False, mode: str = "nearest") -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.channels = sum(widths) if all_branches else width
        self.all_branches = all_branches
        self.conv1, self.bn1 = conv_bn(3, _STEM, 3, 2)
        self.conv2, self.bn2 = conv_bn(_STEM, _STEM, 3, 2)
        wide = _STEM * 4
        self.layer1 = nn.Sequential(Bottleneck(_STEM, _STEM), *(Bottleneck(wide, _STEM) for _ in range(3)))
        self.transition1 = self._transition([wide], widths[:2])
        self.stage2 = self._stage(widths[:2], 1, 2, mode)
        self.transition2 = self._transition(widths[:2], widths[:3])
        self.stage3 = self._stage(widths[:3], 4, 3, mode)
        self.transition3 = self._transition(widths[:3], widths)
        self.stage4 = self._stage(widths, 3, 4 if all_branches else 1, mode)

    @staticmethod
    def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
        paths: list[nn.Module] = []
        for i, width in enumerate(after):
            if i >= len(before):
                paths.append(nn.Sequential(nn.Sequential(*conv_bn(before[-1], width, 3, 2), nn.ReLU())))
            elif before[i] == width:
                paths.append(nn.Identity())
            else:
                paths.append(nn.Sequential(*conv_bn(before[i], width, 3), nn.ReLU()))
        return nn.ModuleList(paths)

    @staticmethod
    def _stage(widths: Sequence[int], modules: int, outputs: int, mode: str) -> nn.Sequential:
        counts = [len(widths)] * (modules - 1) + [outputs]
        return nn.Sequential(*(Exchange(widths, count, mode) for count in counts))

    @staticmethod
    def _branch(transition: nn.ModuleList, x: list[Tensor]) -> list[Tensor]:
        """The branches of the next stage; the new one grows from the coarsest."""
        return [path(x[min(i, len(x) - 1)]) for i, path in enumerate(transition)]

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], sides multiples of 32, to [B, channels, H / 4, W / 4]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        branches = self.stage2(self._branch(self.transition1, branches))
        branches = self.stage3(self._branch(self.transition2, branches))
        branches = self.stage4(self._branch(self.transition3, branches))
        finest: Tensor = branches[0]
        if not self.all_branches:
            return finest
        enlarged = [
            interpolate(b, scale_factor=float(2 ** (i + 1)), mode="bilinear", align_corners=False)
            for i, b in enumerate(branches[1:])
        ]
        return torch.cat([finest, *enlarged], 1)
