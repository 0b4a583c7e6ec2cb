# SPDX-License-Identifier: Apache-2.0
"""Masked joint modelling, what the ``paper`` kind is trained on, and the losses of both kinds.

Like `nn.simulated_detector` it turns true poses into what a detector would answer, so that training runs through
`nn.line.Refine`, the code of inference: its frame, its mask, its network input. Units are the pose's own size
(root-mean-square coordinate 1). May use: torch. Test: tests/test_mjm.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Detection:
    """Poses as a detector would answer them.

    Attributes:
        joints: [B, N, 2]; NaN where the detector said nothing.
        confidence: [B, N], 0..1 as the network sees it.
        threshold: [B, 1], δ on the scale of ``confidence``.
        target: [B, N] bool, joints that enter the loss.
    """

    joints: Tensor
    confidence: Tensor
    threshold: Tensor
    target: Tensor


def mask_joints(
    joints: Tensor, labelled: Tensor, ratio: float, noise: float, seen_noise: float, generator: torch.Generator
) -> Detection:
    """Masked joint modelling, Section III-D: a random part of the joints is masked and asked back.

    Args:
        joints: [B, N, 2] true joints, size 1.
        labelled: [B, N] bool; an unlabelled joint is masked too, and is no target.
        ratio: Part of the joints that is masked (the paper's 40 %).
        noise: Location error of masked joints: what still reaches the graph convolution is the detector's poor guess.
        seen_noise: Location error of the others.
        generator: Of every random number.
    """
    batch, count = joints.shape[:2]
    order = torch.rand(batch, count, generator=generator).masked_fill(~labelled, 2.0)
    chosen = order.argsort(-1).argsort(-1) < max(1, round(ratio * count))
    chosen &= labelled
    scale = torch.where(chosen | ~labelled, noise, seen_noise).unsqueeze(-1)
    found = joints + scale * torch.randn(batch, count, 2, generator=generator)
    confidence = (labelled & ~chosen).to(joints.dtype)
    return Detection(found, confidence, torch.full((batch, 1), 0.5), chosen)


def reconstruction_loss(recon: Tensor, truth: Tensor, target: Tensor) -> Tensor:
    """Eq. (12): the squared distance, averaged over the target joints of all poses."""
    squared = (recon - truth).square().sum(-1)
    return (squared * target).sum() / target.sum().clamp(min=1)


def gaussian_loss(recon: Tensor, truth: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood, less its constant, of the target joints' errors as isotropic Gaussians of std [B, N]."""
    squared = (recon - truth).square().sum(-1)
    loss = 0.5 * squared / std.square() + 2 * std.log()
    return torch.where(target, loss, torch.zeros_like(loss)).sum() / target.sum().clamp(min=1)


def distance_loss(recon: Tensor, truth: Tensor, target: Tensor) -> Tensor:
    """The distance itself, averaged over the target joints: far joints pull no harder than near ones."""
    distance = ((recon - truth).square().sum(-1) + 1e-6).sqrt()
    return (distance * target).sum() / target.sum().clamp(min=1)
