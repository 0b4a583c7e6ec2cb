# SPDX-License-Identifier: Apache-2.0
"""The line of a model with a variance: nn/line.py with one output more, ``std``.

Classes of their own, because a scripted or traced graph has a fixed number of outputs, and models without a variance
keep theirs. May use: config, nn.line, nn.port, torch. Test: tests/test_variance.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from port_deploy.config import LOG_STD_RANGE, ModelSpec
from port_deploy.nn.line import HeatmapLine, Refine, RefineLine, to_image
from port_deploy.nn.port import Port


class RefineStd(Refine):
    """`Refine` of a model with a variance, which also says how far each rebuilt joint may be off."""

    def __init__(self, spec: ModelSpec, port: Port) -> None:
        super().__init__(spec, port)
        self.log_low, self.log_high = LOG_STD_RANGE
        self.std_scale = float(spec.std_scale)

    def forward(  # type: ignore[override]
        self, joints: Tensor, confidence: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Refine.forward`, and std [B, N]: σ of a coordinate in image pixels, NaN where the mask is False."""
        refined, changed, output, pixels = self.rebuild(joints, confidence, threshold)
        std = output[..., 2:].clamp(self.log_low, self.log_high).exp() * (pixels * self.std_scale)  # [B, N, 1]
        std = std.squeeze(-1)
        return refined, changed, torch.where(changed, std, torch.full_like(std, float("nan")))


class RefineLineStd(RefineLine):
    """`RefineLine` of a model with a variance."""

    def __init__(self, spec: ModelSpec, port: Port) -> None:
        super().__init__(spec, port)
        self.refine = RefineStd(spec, port)

    def forward(  # type: ignore[override]
        self, joints: Tensor, confidence: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `RefineLine.forward`, and std [B, N]."""
        refined, mask, std = self.refine(joints, confidence, threshold)
        return refined, confidence, mask, std


class HeatmapLineStd(HeatmapLine):
    """`HeatmapLine` of a model with a variance."""

    def __init__(self, spec: ModelSpec, port: Port) -> None:
        super().__init__(spec, port)
        self.refine = RefineStd(spec, port)

    def forward(  # type: ignore[override]
        self, heatmaps: Tensor, affine: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `HeatmapLine.forward`, and std [B, N]."""
        joints, confidence = self.decode(heatmaps)
        refined, mask, std = self.refine(to_image(joints, affine), confidence, threshold)
        return refined, confidence, mask, std


def refine_line(spec: ModelSpec, port: Port) -> RefineLine:
    """The line from joints that has the model's outputs."""
    return RefineLineStd(spec, port) if spec.config.variance else RefineLine(spec, port)


def heatmap_line(spec: ModelSpec, port: Port) -> HeatmapLine:
    """The line from heatmaps that has the model's outputs."""
    return HeatmapLineStd(spec, port) if spec.config.variance else HeatmapLine(spec, port)
