# SPDX-License-Identifier: Apache-2.0
"""A simulated detector: true poses to what a detector would say of them. The ``soft`` kind is trained on it.

Units are the pose's own size (root-mean-square coordinate 1); a confidence is what the network sees, 0..1 (a detector's
score divided by its ``confidence_divisor``). May use: nn.detector_model, nn.mjm, skeleton,
torch. Test: tests/test_mjm.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from port_deploy.nn.detector_model import DetectorModel
from port_deploy.nn.mjm import Detection
from port_deploy.skeleton import Skeleton


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
    apart = torch.cdist(joints, joints) + 9.0 * torch.eye(count)  # [B, N, N]
    near = uniform((batch, 1), 0.0, model.crowd, generator) * torch.exp(-apart.amin(-1) / 0.25)
    occluded |= torch.rand(batch, count, generator=generator) < near
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
        partners: [N], the joint's mirror partner, itself where it has none.
        smooth: [N, N], spreads noise over two bones; its rows have norm 1.
        parents: [N], the neighbour on the way to the root; the root's, and that of joints without a way, are their own.
        outward: [N, N] 0 or 1, whether the column's joint lies farther out on the row's limb.
        mean: [N, 2] of poses; None where nothing is known of them.
        unusual: [2 N, 2 N], takes a flat pose less the mean to each joint's distance from where the others put it, in
            units of three times its median.
    """

    neighbours: Tensor
    partners: Tensor
    smooth: Tensor
    parents: Tensor
    outward: Tensor
    mean: Tensor | None = None
    unusual: Tensor | None = None

    def with_poses(self, joints: Tensor, labelled: Tensor) -> Graph:
        """The graph that also knows what is usual, from poses [B, N, 2]: each joint's best linear guess from the rest.

        Where fewer than 20 poses a joint have every label, nothing is known.
        """
        whole = joints[labelled.all(-1)].double()
        if len(whole) < 20 * joints.shape[1]:
            return self
        mean = whole.mean(0)
        flat = (whole - mean).flatten(1)
        size = flat.shape[1]
        place = torch.eye(2, dtype=torch.float64).repeat(size // 2, size // 2)  # centred poses would tell each joint's
        spread = flat.T @ flat / len(flat) + 1e-4 * torch.eye(size, dtype=torch.float64) + 10.0 * place
        precision = torch.linalg.inv(spread)
        blocks = precision.view(size // 2, 2, size // 2, 2)
        own = torch.linalg.inv(torch.stack([blocks[i, :, i] for i in range(size // 2)]))  # [N, 2, 2]
        residual = torch.einsum("nij,njk->nik", own, precision.view(size // 2, 2, size)).reshape(size, size)
        distance = (flat @ residual.T).view(len(flat), -1, 2).norm(dim=-1)
        return replace(self, mean=mean.float(), unusual=(residual / (3.0 * distance.median())).float())

    def surprise(self, joints: Tensor, labelled: Tensor) -> Tensor:
        """How far each joint [B, N] lies from where the others put it, 0..1; 0 where nothing is known."""
        if self.mean is None or self.unusual is None:
            return torch.zeros(labelled.shape)
        flat = torch.where(labelled.unsqueeze(-1), joints - self.mean, torch.zeros(())).flatten(1)
        distance: Tensor = (flat @ self.unusual.T).view(*labelled.shape, 2).norm(dim=-1)
        return distance.clamp(max=1.0)

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
        partners = torch.from_numpy(skeleton.mirror_permutation())
        parents = list(range(len(lists)))
        reached, outward = [skeleton.root], torch.zeros(len(lists), len(lists))
        for joint in reached:  # grows while it is walked: breadth first from the root
            for other in lists[joint]:
                if other not in reached:
                    reached.append(other)
                    parents[other] = joint
                    outward[:, other] = outward[:, joint]
                    outward[joint, other] = 1.0
        outward[skeleton.root] = 0.0  # all hangs on the root: a wrong root takes nothing with it
        return cls(neighbours, partners, smooth / smooth.norm(dim=-1, keepdim=True), torch.tensor(parents), outward)


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


def redefine(joints: Tensor, labelled: Tensor, share: float, graph: Graph, generator: torch.Generator) -> Tensor:
    """Poses [B, N, 2] whose joints lie a little along their bones from where they did, as another convention has it."""
    batch, count, choices = len(joints), *graph.neighbours.shape
    own = share * torch.exp(0.5 * torch.randn(batch, 1, 1, 1, generator=generator))
    part = own * torch.randn(batch, count, choices, 1, generator=generator) / choices**0.5
    there = (labelled[:, graph.neighbours] & labelled.unsqueeze(-1)).unsqueeze(-1)  # [B, N, choices, 1]
    bones = torch.where(there, joints[:, graph.neighbours] - joints.unsqueeze(2), torch.zeros(()))
    moved: Tensor = joints + (part * bones).sum(2)
    return moved


def confidences(hidden: Tensor, model: DetectorModel, generator: torch.Generator) -> Tensor:
    """The detector's own confidence [B, N] of joints of which some are ``hidden`` [B, N]."""
    batch, count = hidden.shape
    level = uniform((batch, 1), *model.level, generator)
    seen: Tensor = level + model.level_noise * torch.randn(batch, count, generator=generator)
    kept = torch.where(hidden, uniform((batch, count), *model.hidden, generator), torch.ones(()))
    return (seen * kept).clamp(0.02, 1.0)


def turn_limbs(
    joints: Tensor, chosen: Tensor, labelled: Tensor, model: DetectorModel, graph: Graph, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Joints [B, N, 2] of which the ``chosen`` [B, N] lie at another angle, with some of those that hang on them.

    Returns:
        The joints, and [B, N] bool, those that were carried along.
    """
    batch, count = joints.shape[:2]
    angle = 0.8 * torch.randn(batch, count, generator=generator)
    stretch = uniform((batch, count), 0.6, 1.2, generator)
    bone = joints - joints[:, graph.parents]
    cos, sin = stretch * angle.cos(), stretch * angle.sin()
    turned = torch.stack([cos * bone[..., 0] - sin * bone[..., 1], sin * bone[..., 0] + cos * bone[..., 1]], -1)
    known = (labelled & labelled[:, graph.parents] & chosen).unsqueeze(-1)
    moved = torch.where(known, turned - bone, torch.zeros(()))
    goes = torch.rand(batch, count, generator=generator) < model.carried
    along = (graph.outward.T @ moved) * goes.unsqueeze(-1)
    return joints + moved + along, (along != 0).any(-1)


def misplace(
    joints: Tensor, noise: Tensor, swapped: Tensor, labelled: Tensor, model: DetectorModel, graph: Graph,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Where joints [B, N, 2] that are not at their place are found: at another joint, on a bone, on the background.

    Args:
        joints: [B, N, 2] true joints.
        noise: [B, N, 2] error that is added.
        swapped: [B, N] bool, joints found at their mirror partner.
        labelled: [B, N] bool; an unlabelled joint is no place to be found at.
        model: The numbers of the simulation.
        graph: Of the skeleton.
        generator: Of every random number.
    """
    batch, count = joints.shape[:2]
    rows = torch.arange(batch).unsqueeze(-1)
    others = torch.randint(count, (batch, count, 3), generator=generator)
    distance = (joints[rows.unsqueeze(-1), others] - joints.unsqueeze(2)).norm(dim=-1)  # [B, N, 3]
    near = others.gather(-1, distance.argmin(-1, keepdim=True)).squeeze(-1)
    other = torch.where(torch.rand(batch, count, generator=generator) < 0.5, near, others[..., 0])
    other = torch.where(swapped, graph.partners, other)
    place = joints[rows, other] + 0.3 * noise
    known = labelled[rows, other]

    seen = torch.where(labelled.unsqueeze(-1), joints, torch.zeros(()))
    low, high = seen.amin(1, keepdim=True) - 0.5, seen.amax(1, keepdim=True) + 0.5
    background = low + (high - low) * torch.rand(batch, count, 2, generator=generator)
    anywhere = (torch.rand(batch, count, generator=generator) < 0.25) & ~swapped
    place = torch.where((known & ~anywhere).unsqueeze(-1), place, background)

    choice = torch.randint(graph.neighbours.shape[1], (batch, count), generator=generator)
    neighbour = graph.neighbours[torch.arange(count), choice]  # [B, N]
    start = joints[rows, neighbour]
    short = start + uniform((batch, count, 1), 0.0, 0.7, generator) * (joints - start) + 0.5 * noise
    collapses = torch.rand(batch, count, generator=generator) < model.collapse
    collapses &= labelled[rows, neighbour] & ~swapped
    return torch.where(collapses.unsqueeze(-1), short, place)


def simulate_detector(
    joints: Tensor,
    labelled: Tensor,
    model: DetectorModel,
    graph: Graph,
    generator: torch.Generator,
    hidden: Tensor | None = None,
) -> Detection:
    """What a detector would say of poses: hidden joints, confidence, and errors that go with it.

    Args:
        joints: [B, N, 2] true joints, size 1, around the origin.
        labelled: [B, N] bool; an unlabelled joint is given as a hidden one, and is no target.
        model: The numbers of the simulation.
        graph: Of the skeleton.
        generator: Of every random number.
        hidden: [B, N] bool, joints that are occluded; None: as `hidden_joints` draws them.
    """
    batch, count = joints.shape[:2]
    if hidden is None:
        occluded, beyond = hidden_joints(joints, model, generator)
        odd = graph.surprise(joints, labelled) * uniform((batch, 1), 0.0, model.surprise, generator)
        occluded |= (torch.rand(batch, count, generator=generator) < odd) & ~beyond
    else:
        occluded, beyond = hidden, torch.zeros_like(hidden)
    hidden = occluded | beyond | ~labelled
    confidence = confidences(hidden, model, generator)
    faint = uniform((batch, count), 0.0, 0.15, generator)
    confidence = torch.where(beyond | ~labelled, faint, confidence)

    share, middle, fall = model.wrong
    wrong = (share * torch.exp(-fall * (confidence - middle))).clamp(max=model.wrong_most)
    wrong = torch.rand(batch, count, generator=generator) < wrong
    swapped = wrong & (torch.rand(batch, count, generator=generator) < model.partner)
    limb = (graph.smooth > 0).float() @ swapped.float().unsqueeze(-1) > 0  # within two bones of a swapped joint
    swapped |= limb.squeeze(-1) & (torch.rand(batch, count, generator=generator) < 0.25) & (confidence < 0.8)
    both = swapped[:, graph.partners] & (torch.rand(batch, 1, generator=generator) < 0.7)  # an exchange
    swapped = (swapped | (both & (confidence < 0.8))) & (graph.partners != torch.arange(count))
    turns = wrong & ~swapped & (torch.rand(batch, count, generator=generator) < model.turned)
    placed, carried = turn_limbs(joints, turns, labelled, model, graph, generator)
    lowest = torch.where(turns, confidence, torch.ones(())).amin(-1, keepdim=True)
    doubtful = torch.minimum(confidence, lowest + uniform((batch, count), 0.0, 0.4, generator))
    confidence = torch.where(carried & labelled, doubtful, confidence)

    median = uniform((batch, 1), *model.error, generator) * torch.exp(
        -uniform((batch, 1), *model.error_fall, generator) * confidence
    )
    own = torch.exp(model.error_spread * torch.randn(batch, count, generator=generator))
    scale = median * own / math.sqrt(2 * math.log(2))  # the median of a normal error's length is sqrt(2 ln 2) of it
    found = placed + scale.unsqueeze(-1) * shared_noise(batch, model.together, graph.smooth, generator)
    elsewhere = misplace(joints, found - placed, swapped, labelled, model, graph, generator)
    found = torch.where(((wrong & ~turns) | swapped | ~labelled).unsqueeze(-1), elsewhere, found)
    seen = torch.where((labelled & ~beyond).unsqueeze(-1), joints, torch.zeros(()))
    inside = torch.minimum(torch.maximum(found, seen.amin(1, keepdim=True)), seen.amax(1, keepdim=True))
    found = torch.where(beyond.unsqueeze(-1), inside, found)

    power = torch.exp(model.bend * torch.randn(batch, 1, generator=generator))
    told = (confidence / uniform((batch, 1), *model.full, generator)).clamp(max=1.0) ** power
    missing = (torch.rand(batch, count, generator=generator) < torch.where(labelled, model.missing, 0.5)) & hidden
    found = torch.where(missing.unsqueeze(-1), torch.full_like(found, float("nan")), found)
    told = torch.where(missing, torch.zeros_like(told), told)
    return Detection(found, told, uniform((batch, 1), *model.threshold, generator), labelled)
