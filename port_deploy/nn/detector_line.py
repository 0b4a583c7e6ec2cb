# SPDX-License-Identifier: Apache-2.0
"""What follows a detector inside one graph: its outputs to refined joints, for any channel order, layout and scale.

The graph of `port-export --detector` is the detector's own ONNX followed by one of these modules. Joints that the
detector does not have are missing joints: NaN with confidence 0, which PORT rebuilds.
May use: config, detector_info, nn.detectors, nn.line, nn.port, torch. Test: tests/test_detector_line.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from port_deploy.config import ModelSpec
from port_deploy.detector_info import DetectorInfo
from port_deploy.nn.detectors.decode import SimccDecode
from port_deploy.nn.line import Decode, Refine
from port_deploy.nn.line_std import RefineStd
from port_deploy.nn.port import Port


class Place(nn.Module):
    """The detector's joints to the skeleton's: scaled to crop pixels, in order, missing ones NaN, through an affine.

    Args:
        info: The detector.
    """

    factor: Tensor
    shift: Tensor
    rows: Tensor

    def __init__(self, info: DetectorInfo) -> None:
        super().__init__()
        matrix = torch.from_numpy(info.to_crop())
        self.register_buffer("factor", matrix[:, :2].diagonal().to(torch.float32), persistent=False)
        self.register_buffer("shift", matrix[:, 2].to(torch.float32), persistent=False)
        present = len(info.channels)
        self.complete = present == len(info.order)
        places = {joint: row for row, joint in enumerate(j for j, channel in enumerate(info.order) if channel >= 0)}
        rows = [places.get(joint, present) for joint in range(len(info.order))]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, joints: Tensor, confidence: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
        """Place.

        Args:
            joints: [B, K, 2] heatmap pixels, the channels that are used, in the skeleton's order.
            confidence: [B, K].
            affine: [B, 2, 3] or [1, 2, 3], crop to image pixels.

        Returns:
            Joints [B, N, 2] in image pixels and confidence [B, N].
        """
        joints = joints * self.factor + self.shift
        if not self.complete:
            nothing = torch.full_like(joints[:, :1], float("nan"))
            joints = torch.cat([joints, nothing], 1).index_select(1, self.rows)
            confidence = torch.cat([confidence, torch.zeros_like(confidence[:, :1])], 1).index_select(1, self.rows)
        x, y = joints[..., 0], joints[..., 1]
        # Written out: a matrix product would tie the affine's batch to the crops', and [1, 2, 3] is its default.
        right = x * affine[:, 0, 0:1] + y * affine[:, 0, 1:2] + affine[:, 0, 2:3]
        down = x * affine[:, 1, 0:1] + y * affine[:, 1, 1:2] + affine[:, 1, 2:3]
        return torch.stack([right, down], -1), confidence


class DetectedHeatmaps(nn.Module):
    """Heatmaps of a detector, refined.

    Args:
        spec: The model's specification.
        port: The network.
        info: The detector.
    """

    channels: Tensor

    def __init__(self, spec: ModelSpec, port: Port, info: DetectorInfo) -> None:
        super().__init__()
        self.decode = Decode(spec.codec, spec.temperature)
        self.place = Place(info)
        self.refine = Refine(spec, port)
        self.channels_last = info.map_layout == "nhwc"
        self.as_they_are = info.channels == tuple(range(len(info.joints)))
        self.register_buffer("channels", torch.tensor(info.channels), persistent=False)

    def forward(self, heatmaps: Tensor, affine: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, M, H, W] (or [B, H, W, M]), [B or 1, 2, 3], [1] to joints [B, N, 2], confidence and mask [B, N]."""
        joints, confidence = self.find(heatmaps, affine)
        refined, mask = self.refine(joints, confidence, threshold)
        return refined, confidence, mask

    def find(self, heatmaps: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
        """The detector's own joints [B, N, 2] in image pixels and their confidence [B, N]."""
        maps = heatmaps.permute(0, 3, 1, 2) if self.channels_last else heatmaps
        if not self.as_they_are:
            maps = maps.index_select(1, self.channels)
        joints, confidence = self.place(*self.decode(maps), affine)
        return joints, confidence


class DetectedHeatmapsStd(DetectedHeatmaps):
    """`DetectedHeatmaps` of a model with a variance."""

    def __init__(self, spec: ModelSpec, port: Port, info: DetectorInfo) -> None:
        super().__init__(spec, port, info)
        self.refine = RefineStd(spec, port)

    def forward(  # type: ignore[override]
        self, heatmaps: Tensor, affine: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `DetectedHeatmaps.forward`, and std [B, N]."""
        joints, confidence = self.find(heatmaps, affine)
        refined, mask, std = self.refine(joints, confidence, threshold)
        return refined, confidence, mask, std


class DetectedSimcc(nn.Module):
    """SimCC's two vectors of a detector, refined: the first largest place of each, as MMPose decodes them.

    Args:
        spec: The model's specification; its heatmap codec is not used.
        port: The network.
        info: The detector.
    """

    channels: Tensor

    def __init__(self, spec: ModelSpec, port: Port, info: DetectorInfo) -> None:
        super().__init__()
        self.place = Place(info)
        self.refine = Refine(spec, port)
        self.decode = SimccDecode(1.0, info.score)  # bins: `Place` knows what they are of a crop
        self.as_they_are = info.channels == tuple(range(len(info.joints)))
        self.register_buffer("channels", torch.tensor(info.channels), persistent=False)

    def forward(
        self, simcc_x: Tensor, simcc_y: Tensor, affine: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, M, Wx], [B, M, Wy], [B or 1, 2, 3], [1] to joints [B, N, 2], confidence and mask [B, N]."""
        joints, confidence = self.find(simcc_x, simcc_y, affine)
        refined, mask = self.refine(joints, confidence, threshold)
        return refined, confidence, mask

    def find(self, simcc_x: Tensor, simcc_y: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
        """The detector's own joints [B, N, 2] in image pixels and their confidence [B, N]."""
        if not self.as_they_are:
            simcc_x, simcc_y = simcc_x.index_select(1, self.channels), simcc_y.index_select(1, self.channels)
        joints, confidence = self.place(*self.decode(simcc_x, simcc_y), affine)
        return joints, confidence


class DetectedSimccStd(DetectedSimcc):
    """`DetectedSimcc` of a model with a variance."""

    def __init__(self, spec: ModelSpec, port: Port, info: DetectorInfo) -> None:
        super().__init__(spec, port, info)
        self.refine = RefineStd(spec, port)

    def forward(  # type: ignore[override]
        self, simcc_x: Tensor, simcc_y: Tensor, affine: Tensor, threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `DetectedSimcc.forward`, and std [B, N]."""
        joints, confidence = self.find(simcc_x, simcc_y, affine)
        refined, mask, std = self.refine(joints, confidence, threshold)
        return refined, confidence, mask, std


def detected_line(spec: ModelSpec, port: Port, info: DetectorInfo) -> nn.Module:
    """What follows the detector, with the model's outputs."""
    if info.head == "simcc":
        return (DetectedSimccStd if spec.config.variance else DetectedSimcc)(spec, port, info)
    return (DetectedHeatmapsStd if spec.config.variance else DetectedHeatmaps)(spec, port, info)
