# SPDX-License-Identifier: Apache-2.0
"""The whole line in PyTorch: decode, confidence, mask, frame, PORT, unframe, blend. Pixels in, pixels out.

This is the oracle (in float64), the `torch` backend, and the graph of every export. The C++ and CUDA paths follow it
statement by statement. May use: config, nn.port, torch. Test: tests/test_nn_line.py.

Rules that every backend keeps:
    * A joint is *missing* if a coordinate is not finite or beyond MAX_COORDINATE. Missing joints are masked, enter the
      network at the frame's origin with confidence 0, and are rebuilt without fusion.
    * A joint is *masked* if it is missing or not (confidence >= threshold), so NaN confidence masks. Eq. (13).
    * A pose is *refined* if at least min_visible joints are unmasked, at most max_masked are masked, and the unmasked
      ones are not all in one place (MIN_SCALE). Any other pose comes back bit for bit, with nothing in its mask.
    * Of a refined pose, the masked joints change (``refine="all"``: every joint), the others are copied bit for bit.
    * With `PortConfig.variance` a joint has a standard deviation exactly where the mask says that it changed, NaN
      everywhere else: σ of one coordinate of the joint as it is answered (training and calibration see it so, with the
      model's own ``refine`` and ``fusion``), exp(clamped log σ) * image pixels in a unit of the frame * ``std_scale``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from port_deploy.config import MAX_COORDINATE, MIN_SCALE, ModelSpec
from port_deploy.nn.port import Port


class Decode(nn.Module):
    """Heatmaps to joints, confidence and mask: eqs. (1), (2), (13).

    ``softargmax`` is the expectation under softmax(temperature * map); ``softargmax-sum`` under the map clipped at 0
    and divided by its sum (an empty map answers its centre); ``argmax`` the first largest pixel in row-major order.
    Confidence is the raw map at the rounded joint (half to even), clipped to 0..1. A map that holds NaN or +inf gives a
    missing joint (NaN) of confidence 0.
    """

    def __init__(self, codec: str, temperature: float) -> None:
        super().__init__()
        self.codec = codec
        self.temperature = temperature

    def forward(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            heatmaps: [B, N, H, W], any floating dtype; computed in float32 at least.

        Returns:
            Joints [B, N, 2] in heatmap pixels (x, y), and confidence [B, N].
        """
        height, width = heatmaps.shape[2], heatmaps.shape[3]
        maps = heatmaps.flatten(2)  # [B, N, H*W]
        if maps.dtype == torch.float16 or maps.dtype == torch.bfloat16:
            maps = maps.to(torch.float32)
        column = torch.arange(width, device=maps.device).to(maps.dtype)
        row = torch.arange(height, device=maps.device).to(maps.dtype)
        usable = (maps <= 3e38).all(-1)  # False for NaN and +inf; a maximum loses NaN in ONNX Runtime
        if self.codec == "argmax":
            rows = row.unsqueeze(-1).expand(height, width).flatten()
            grid = torch.stack([column.repeat(height), rows], -1)  # [H*W, 2]
            joints = grid[maps.argmax(-1)]
        else:
            soft = self.codec == "softargmax"
            weights = torch.softmax(maps * self.temperature, -1) if soft else maps.clamp(min=0.0)
            joints = self.expectation(weights.reshape(heatmaps.shape), column, row)
        readable = torch.where(usable.unsqueeze(-1), joints, torch.zeros_like(joints))
        x = readable[..., 0].round().clamp(0, width - 1).to(torch.int64)
        y = readable[..., 1].round().clamp(0, height - 1).to(torch.int64)
        peak = maps.gather(2, (y * width + x).unsqueeze(-1)).squeeze(-1).clamp(0.0, 1.0)
        missing = torch.full_like(joints, float("nan"))
        joints = torch.where(usable.unsqueeze(-1), joints, missing)
        return joints, torch.where(usable, peak, torch.zeros_like(peak))

    def expectation(self, weights: Tensor, column: Tensor, row: Tensor) -> Tensor:
        """Mean place under weights [B, N, H, W], which need not sum to one: [B, N, 2]; the centre where all are 0.

        Sums over rows and columns first: in float32 a hundred times nearer than one sum over H * W pixels.
        """
        columns, rows = weights.sum(2), weights.sum(3)  # [B, N, W], [B, N, H]
        total = rows.sum(-1, keepdim=True)
        moment = torch.stack([(columns * column).sum(-1), (rows * row).sum(-1)], -1)  # [B, N, 2]
        centre = torch.cat([column[-1:], row[-1:]]) * 0.5
        return torch.where(total > 0, moment / torch.where(total > 0, total, torch.ones_like(total)), centre)


def to_image(joints: Tensor, affine: Tensor) -> Tensor:
    """Heatmap pixels to image pixels: [B, N, 2] through [B, 2, 3]."""
    return torch.matmul(joints, affine[..., :2].transpose(-1, -2)) + affine[..., 2].unsqueeze(-2)


def missing_joints(joints: Tensor, limit: float = MAX_COORDINATE) -> Tensor:
    """[B, N] bool: a coordinate is not finite or beyond MAX_COORDINATE."""
    return ~((joints.abs() <= limit).all(-1))


def masked_joints(joints: Tensor, confidence: Tensor, threshold: Tensor) -> Tensor:
    """[B, N] bool, eq. (13): confidence below the threshold, NaN, or the joint missing."""
    return ~(threshold <= confidence) | missing_joints(joints)  # only <= is false for NaN in OpenVINO


class VisibleFrame(nn.Module):
    """Frame ``visible``: the unit is the root-mean-square distance of the unmasked coordinates from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.min_scale = MIN_SCALE

    def forward(self, offset: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets [B, N, 2] from the visible joints' mean and their spread [B, 1] to framed joints, unit and turn."""
        unit = torch.where(spread > self.min_scale, spread, torch.ones_like(spread)).unsqueeze(-1)  # [B, 1, 1]
        return offset / unit, unit, unit

    def undo(self, framed: Tensor, unit: Tensor, turn: Tensor) -> Tensor:
        """Framed joints [B, N, 2] back to offsets."""
        return framed * unit

    def pixels(self, unit: Tensor) -> Tensor:
        """Image pixels in one unit of the frame: [B, 1, 1] or a number that broadcasts."""
        return unit


class PaperFrame(nn.Module):
    """Frame ``paper``, as the authors' script has it.

    x and y are divided by frame_size, joint ``root`` is subtracted, and all is turned until joint ``axis`` is on +x.
    Both joints are used as they are, masked or not; a missing one counts as lying at the visible joints' mean; where
    the two coincide nothing is turned.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(spec.frame_size), persistent=False)
        self.register_buffer(
            "mean_size", torch.tensor(spec.frame_size[0] * spec.frame_size[1]).sqrt(), persistent=False
        )
        self.root, self.axis = spec.skeleton.root, spec.skeleton.axis

    def forward(self, offset: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets [B, N, 2] from the visible joints' mean to framed joints, root [B, 1, 2] and turn [B, 1, 2]."""
        scaled: Tensor = offset / self.size  # type: ignore[operator]
        root = scaled[:, self.root : self.root + 1]
        scaled = scaled - root
        axis = scaled[:, self.axis : self.axis + 1]
        length = (axis * axis).sum(-1, keepdim=True).sqrt()
        straight = torch.cat([torch.ones_like(length), torch.zeros_like(length)], -1)
        turn = torch.where(
            length > 1e-12, axis / torch.where(length > 1e-12, length, torch.ones_like(length)), straight
        )
        return self.rotate(scaled, turn[..., :1], -turn[..., 1:]), root, turn

    def undo(self, framed: Tensor, unit: Tensor, turn: Tensor) -> Tensor:
        """Framed joints [B, N, 2] back to offsets."""
        scaled = self.rotate(framed, turn[..., :1], turn[..., 1:]) + unit
        return scaled * self.size  # type: ignore[operator]

    def pixels(self, unit: Tensor) -> Tensor:
        """Image pixels in one unit of the frame: x and y have units of their own, so their geometric mean."""
        return self.mean_size  # type: ignore[return-value]

    def rotate(self, joints: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn [B, N, 2] by the angle of cos and sin, [B, 1, 1]."""
        x, y = joints[..., :1], joints[..., 1:]
        return torch.cat([x * cos - y * sin, x * sin + y * cos], -1)


class Refine(nn.Module):
    """Joints and confidence to refined joints and mask, eqs. (13)-(14), with the frame around PORT.

    Args:
        spec: The model's specification.
        port: The network.
    """

    def __init__(self, spec: ModelSpec, port: Port) -> None:
        super().__init__()
        self.port = port
        self.frame = PaperFrame(spec) if spec.frame == "paper" else VisibleFrame()
        self.min_visible, self.max_masked = spec.min_visible, spec.max_masked
        self.min_scale = MIN_SCALE
        self.refine_all = spec.refine == "all"
        self.fusion = float(spec.fusion)
        self.confidence_divisor = float(spec.confidence_divisor)
        self.with_confidence = spec.config.input_channels == 3
        self.zero_masked = spec.config.masked_coordinates == "zero"
        self.variance = spec.config.variance

    def forward(self, joints: Tensor, confidence: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Refine.

        Args:
            joints: [B, N, 2] image pixels.
            confidence: [B, N].
            threshold: [1].

        Returns:
            Refined joints [B, N, 2] in image pixels; mask [B, N] bool, True where the joint was rebuilt.
        """
        refined, changed, _, _ = self.rebuild(joints, confidence, threshold)
        return refined, changed

    def rebuild(self, joints: Tensor, confidence: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `forward` answers, the network's output [B, N, 2 or 3], and the image pixels in a unit of the frame."""
        missing = missing_joints(joints)
        mask = masked_joints(joints, confidence, threshold)
        weight = (~mask).to(joints.dtype).unsqueeze(-1)  # [B, N, 1], 1 where visible
        masked_count = mask.to(joints.dtype).sum(-1, keepdim=True)  # [B, 1]
        visible_count = weight.sum(1)  # [B, 1]
        finite = torch.where(missing.unsqueeze(-1), torch.zeros_like(joints), joints)
        count = visible_count.clamp(min=1.0).unsqueeze(-1)
        centre = (finite * weight).sum(1, keepdim=True) / count  # [B, 1, 2]
        offset = torch.where(missing.unsqueeze(-1), torch.zeros_like(joints), finite - centre)
        spread = ((offset * offset * weight).sum((1, 2)) / (2.0 * count[:, 0, 0])).sqrt().unsqueeze(-1)  # [B, 1]
        refined = (visible_count >= self.min_visible) & (masked_count <= self.max_masked) & (spread > self.min_scale)

        framed, unit, turn = self.frame(offset, spread)
        unread = mask if self.zero_masked else missing
        framed = torch.where(unread.unsqueeze(-1), torch.zeros_like(framed), framed)
        if self.with_confidence:
            nothing = torch.zeros_like(confidence)
            known = torch.where((nothing <= confidence) & ~missing, confidence, nothing)
            known = (known / self.confidence_divisor).clamp(0.0, 1.0)
            inputs = torch.cat([framed, known.unsqueeze(-1)], -1)
        else:
            inputs = framed
        output = self.port(inputs, mask)  # [B, N, 2 or 3]
        placed = output[..., :2] if self.variance else output

        rebuilt = self.frame.undo(placed, unit, turn) + centre

        if self.fusion != 1.0:
            blended = joints + self.fusion * (rebuilt - joints)
            rebuilt = torch.where(missing.unsqueeze(-1), rebuilt, blended)
        changed = (torch.ones_like(mask) if self.refine_all else mask) & refined
        return torch.where(changed.unsqueeze(-1), rebuilt, joints), changed, output, self.frame.pixels(unit)


class RefineLine(nn.Module):
    """The graph of an artefact with inputs ``joints`` and ``confidence`` (and ``threshold``)."""

    def __init__(self, spec: ModelSpec, port: Port) -> None:
        super().__init__()
        self.refine = Refine(spec, port)

    def forward(self, joints: Tensor, confidence: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, 2], [B, N], [1] to joints [B, N, 2], confidence [B, N], mask [B, N]."""
        refined, mask = self.refine(joints, confidence, threshold)
        return refined, confidence, mask


class HeatmapLine(nn.Module):
    """The graph of an artefact with inputs ``heatmaps`` and ``affine`` (and ``threshold``)."""

    def __init__(self, spec: ModelSpec, port: Port) -> None:
        super().__init__()
        self.decode = Decode(spec.codec, spec.temperature)
        self.refine = Refine(spec, port)

    def forward(self, heatmaps: Tensor, affine: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, H, W], [B, 2, 3] (heatmap to image), [1] to joints [B, N, 2], confidence [B, N], mask [B, N]."""
        joints, confidence = self.decode(heatmaps)
        refined, mask = self.refine(to_image(joints, affine), confidence, threshold)
        return refined, confidence, mask
