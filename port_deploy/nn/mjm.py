# SPDX-License-Identifier: Apache-2.0
"""What training hides and what it asks back: masked joint modelling for ``paper``, a simulated detector for ``soft``.

Both turn true poses into what a detector would answer, so that training runs through `nn.line.Refine`, the code of
inference: its frame, its mask, its network input. Units are the pose's own size (root-mean-square coordinate 1); a
confidence is what the network sees, 0..1 (a detector's score divided by its ``confidence_divisor``).
May use: skeleton, torch. Test: tests/test_mjm.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from port_deploy.skeleton import Skeleton


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


@dataclass(frozen=True)
class DetectorModel:
    """How a detector fails under occlusion: every number of the simulation. Defaults are for hands.

    Attributes:
        disc: Share of poses with a round occluder, around a joint.
        disc_radius: Its radius, drawn from 0.1 to this.
        drop: Each pose's share of joints hidden one by one is drawn from 0 to this.
        truncation: Share of poses cut by the edge of the picture.
        truncation_down: Share of these cut from below; the others from anywhere.
        hidden_confidence: A hidden joint's confidence is drawn from 0 to this.
        seen_confidence: A seen joint's confidence is drawn from this to 1.
        seen_power: How it crowds towards 1; with 1 it is uniform.
        deceptive: Share of hidden joints whose confidence is drawn as high as ``deceptive_confidence``.
        deceptive_confidence: Range of theirs.
        jump: Share of occluded joints that the detector finds elsewhere: on another joint or on the background.
        collapse: Share of these that it finds short of their place, on the bone from a neighbour.
        missing: Share of hidden joints for which it answers nothing.
        noise: Location error at confidence 1, standard deviation a coordinate; each pose draws its own from the range.
        noise_hidden: What (1 - confidence) to ``noise_power`` adds to it, times 0.3 to 1.3.
        noise_power: Range; each pose draws its own.
        together: Each pose's share of error that neighbouring joints have in common is drawn from 0 to this.
        threshold: Range of δ.
    """

    disc: float = 0.75
    disc_radius: float = 1.1
    drop: float = 0.25
    truncation: float = 0.05
    truncation_down: float = 0.0
    hidden_confidence: float = 0.45
    seen_confidence: float = 0.4
    seen_power: float = 1.0
    deceptive: float = 0.0
    deceptive_confidence: tuple[float, float] = (0.3, 0.7)
    jump: float = 0.25
    collapse: float = 0.0
    missing: float = 0.02
    noise: tuple[float, float] = (0.01, 0.05)
    noise_hidden: float = 0.6
    noise_power: tuple[float, float] = (2.0, 3.0)
    together: float = 0.9
    threshold: tuple[float, float] = (0.25, 0.55)


BODY = DetectorModel(
    disc=0.6,
    disc_radius=1.0,
    drop=0.3,
    truncation=0.3,
    truncation_down=0.7,
    seen_power=2.5,
    deceptive=0.6,
    jump=0.7,
    collapse=0.7,
    threshold=(0.3, 0.75),
)
"""A whole body's detector: legs leave the picture, a hidden elbow is found with fair confidence on something else."""


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers from ``low`` to ``high``."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def hidden_joints(joints: Tensor, model: DetectorModel, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which joints [B, N] are occluded, and which lie beyond the picture's edge."""
    batch, count = joints.shape[:2]
    middle = joints[torch.arange(batch), torch.randint(count, (batch,), generator=generator)]  # [B, 2]
    radius = uniform((batch, 1), 0.1, model.disc_radius, generator)
    with_disc = torch.rand(batch, 1, generator=generator) < model.disc
    occluded = ((joints - middle[:, None]).norm(dim=-1) < radius) & with_disc
    rate = uniform((batch, 1), 0.0, model.drop, generator)
    occluded |= torch.rand(batch, count, generator=generator) < rate
    direction = torch.randn(batch, 2, generator=generator)
    down = torch.rand(batch, 1, generator=generator) < model.truncation_down
    direction = torch.where(down, torch.tensor([0.0, 1.0]), direction / direction.norm(dim=-1, keepdim=True))
    along = (joints * direction[:, None]).sum(-1)  # [B, N]
    ordered = along.sort(-1).values
    cut = (uniform((batch, 1), 0.45, 0.97, generator) * (count - 1)).round().long()
    beyond = (along > ordered.gather(-1, cut)) & (torch.rand(batch, 1, generator=generator) < model.truncation)
    return occluded & ~beyond, beyond


@dataclass(frozen=True)
class Graph:
    """What the simulation needs of a skeleton.

    Attributes:
        neighbours: [N, choices], in each row the joint's neighbours along bones, each equally often.
        smooth: [N, N], spreads noise over two bones; its rows have norm 1.
    """

    neighbours: Tensor
    smooth: Tensor

    @classmethod
    def of(cls, skeleton: Skeleton) -> Graph:
        """The graph of a skeleton."""
        lists: list[list[int]] = [[] for _ in skeleton.names]
        for a, b in skeleton.bones:
            lists[a].append(b)
            lists[b].append(a)
        choices = math.lcm(*(max(1, len(n)) for n in lists))
        neighbours = torch.tensor([(n or [i]) * (choices // max(1, len(n))) for i, n in enumerate(lists)])
        smooth = torch.from_numpy(skeleton.hop_matrices((2,))[0]).float()
        return cls(neighbours, smooth / smooth.norm(dim=-1, keepdim=True))


def shared_noise(batch: int, share: float, smooth: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise [B, N, 2] of variance 1 of which each pose has a part, up to ``share``, in common along its bones.

    Args:
        batch: B.
        share: Largest part.
        smooth: [N, N], whose rows have norm 1.
        generator: Of the random numbers.
    """
    part = uniform((batch, 1, 1), 0.0, share, generator)
    own, common = (torch.randn(batch, len(smooth), 2, generator=generator) for _ in range(2))
    return (1 - part).sqrt() * own + part.sqrt() * (smooth @ common)


def simulate_detector(
    joints: Tensor, labelled: Tensor, model: DetectorModel, graph: Graph, generator: torch.Generator
) -> Detection:
    """What a detector would say of poses: hidden joints, confidence, and errors that go with it.

    Args:
        joints: [B, N, 2] true joints, size 1, around the origin.
        labelled: [B, N] bool; an unlabelled joint is given as a hidden one, and is no target.
        model: The numbers of the simulation.
        graph: Of the skeleton.
        generator: Of every random number.
    """
    batch, count = joints.shape[:2]
    occluded, beyond = hidden_joints(joints, model, generator)
    hidden = occluded | beyond | ~labelled
    pick = torch.rand(batch, count, generator=generator)
    confidence = torch.where(
        hidden,
        uniform((batch, count), 0.0, model.hidden_confidence, generator),
        1 - (1 - model.seen_confidence) * uniform((batch, count), 0.0, 1.0, generator) ** model.seen_power,
    )
    deceptive = occluded & (pick < model.deceptive)
    confidence = torch.where(deceptive, uniform((batch, count), *model.deceptive_confidence, generator), confidence)
    faint = uniform((batch, count), 0.0, 0.15, generator)
    confidence = torch.where(beyond, faint, confidence)

    doubt = (1 - confidence) ** uniform((batch, 1), *model.noise_power, generator)
    spread = model.noise_hidden * doubt * uniform((batch, count), 0.3, 1.3, generator)
    scale = spread + uniform((batch, 1), *model.noise, generator)
    found = joints + scale.unsqueeze(-1) * shared_noise(batch, model.together, graph.smooth, generator)

    other = torch.randint(count, (batch, count), generator=generator)
    on_joint = joints.gather(1, other.unsqueeze(-1).expand(-1, -1, 2)) + (found - joints) * 0.3
    seen = torch.where((labelled & ~beyond).unsqueeze(-1), joints, torch.zeros_like(joints))
    low, high = seen.amin(1, keepdim=True) - 0.7, seen.amax(1, keepdim=True) + 0.7
    background = low + (high - low) * torch.rand(batch, count, 2, generator=generator)
    middle = 0.5 * (low + high) + 0.1 * torch.randn(batch, count, 2, generator=generator)
    edge = torch.minimum(torch.maximum(found, low + 0.6), high - 0.6)
    kind = torch.rand(batch, count, 1, generator=generator)
    other_labelled = labelled.gather(1, other).unsqueeze(-1)
    elsewhere = torch.where((kind < 0.6) & other_labelled, on_joint, background)
    choice = torch.randint(graph.neighbours.shape[1], (batch, count), generator=generator)
    neighbour = graph.neighbours[torch.arange(count), choice]  # [B, N]
    start = joints.gather(1, neighbour.unsqueeze(-1).expand(-1, -1, 2))
    short = start + uniform((batch, count, 1), 0.0, 0.7, generator) * (joints - start) + (found - joints) * 0.5
    collapses = torch.rand(batch, count, generator=generator) < model.collapse
    collapses &= labelled.gather(1, neighbour)
    elsewhere = torch.where(collapses.unsqueeze(-1), short, elsewhere)
    outside = torch.where(kind < 0.4, edge, torch.where(kind < 0.7, middle, background))
    jumps = (torch.rand(batch, count, generator=generator) < model.jump) & occluded
    found = torch.where(jumps.unsqueeze(-1), elsewhere, found)
    found = torch.where((beyond | ~labelled).unsqueeze(-1), outside, found)

    missing = (torch.rand(batch, count, generator=generator) < torch.where(labelled, model.missing, 0.5)) & hidden
    found = torch.where(missing.unsqueeze(-1), torch.full_like(found, float("nan")), found)
    confidence = torch.where(missing, torch.zeros_like(confidence), confidence)
    return Detection(found, confidence, uniform((batch, 1), *model.threshold, generator), labelled)


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


def distance_loss(recon: Tensor, truth: Tensor, target: Tensor) -> Tensor:
    """The distance itself, averaged over the target joints: far joints pull no harder than near ones."""
    distance = ((recon - truth).square().sum(-1) + 1e-6).sqrt()
    return (distance * target).sum() / target.sum().clamp(min=1)


def detector_model(skeleton: Skeleton) -> DetectorModel:
    """The simulation for a skeleton: a body's where it has mirror pairs, else a hand's."""
    return BODY if skeleton.mirror else DetectorModel()
