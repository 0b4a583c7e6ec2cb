# SPDX-License-Identifier: Apache-2.0
"""What training hides (nn/mjm.py, nn/simulated_detector.py): masked joints, the simulated detector, the losses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from port_deploy.nn.detector_model import BODY, DetectorModel, detector_model  # noqa: E402
from port_deploy.nn.mjm import distance_loss, mask_joints, reconstruction_loss  # noqa: E402
from port_deploy.nn.simulated_detector import (  # noqa: E402
    Graph,
    redefine,
    shared_noise,
    simulate_detector,
    turn_limbs,
)
from port_deploy.skeleton import Skeleton  # noqa: E402

CHAIN = Skeleton("chain6", tuple("abcdef"), tuple((i, i + 1) for i in range(5)))


def test_missing_labels_stay_out_of_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(64, 6, 2, generator=generator)
    labelled = torch.rand(64, 6, generator=generator) < 0.7
    for detection in (
        simulate_detector(joints, labelled, DetectorModel(), Graph.of(CHAIN), generator),
        mask_joints(joints, labelled, 0.4, 0.5, 0.02, generator),
    ):
        assert not (detection.target & ~labelled).any()
        assert (detection.confidence[~labelled] <= 0.45).all()  # bent: up to (0.15 / 0.85) ** 0.5 or so
    recon = torch.where(labelled.unsqueeze(-1), joints + 1.0, torch.full_like(joints, 1e6))
    assert reconstruction_loss(recon, joints, labelled) == pytest.approx(2.0)
    assert distance_loss(recon, joints, labelled) == pytest.approx(2.0**0.5, rel=1e-4)


def test_masked_joint_modelling_masks_its_share() -> None:
    joints = torch.zeros(500, 6, 2)
    labelled = torch.ones(500, 6, dtype=torch.bool)
    detection = mask_joints(joints, labelled, 0.5, 0.5, 0.0, torch.Generator().manual_seed(0))
    assert (detection.target.sum(1) == 3).all()
    assert torch.equal(detection.confidence < detection.threshold, detection.target)
    assert (detection.joints[~detection.target] == 0).all()
    assert detection.joints[detection.target].std() == pytest.approx(0.5, rel=0.05)


def test_numbers_of_the_simulated_detector_can_be_chosen() -> None:
    hand = Skeleton.load("hand21")
    changed = detector_model(hand, {"error": (2.0, 3.0), "missing": (0.0,)})
    assert (changed.error, changed.missing, changed.disc) == ((2.0, 3.0), 0.0, DetectorModel().disc)
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(2000, 21, 2, generator=generator)
    labelled = torch.ones(joints.shape[:2], dtype=torch.bool)
    errors = []
    for model in (detector_model(hand), changed):
        found = simulate_detector(joints, labelled, model, Graph.of(hand), generator).joints
        errors.append((found - joints).norm(dim=-1).nanmedian())
    assert errors[1] > 2 * errors[0]


@pytest.mark.parametrize("name", ["hand21", "mpii16"])
def test_the_simulated_detector_is_less_sure_where_it_is_wrong(name: str) -> None:
    skeleton = Skeleton.load(name)
    assert (detector_model(skeleton) is BODY) == (name == "mpii16")
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(4000, len(skeleton.names), 2, generator=generator)
    labelled = torch.ones(joints.shape[:2], dtype=torch.bool)
    detection = simulate_detector(joints, labelled, detector_model(skeleton), Graph.of(skeleton), generator)
    error = (detection.joints - joints).norm(dim=-1)
    found = error.isfinite()
    assert (detection.confidence[~found] == 0).all()
    assert detection.confidence.min() >= 0
    assert detection.confidence.max() <= 1
    edges = (0.0, 0.2, 0.4, 0.6, 0.8, 1.01)
    bins = [
        error[found & (detection.confidence >= a) & (detection.confidence < b)].mean().item()
        for a, b in pairwise(edges)
    ]
    assert bins == sorted(bins, reverse=True)
    assert bins[0] > 6 * bins[-1]


def test_errors_follow_confidence_as_real_detectors_have_it() -> None:
    """Quantiles of Lite-HRNet's and OpenPose's errors on people (see `DetectorModel`), in sizes of the pose."""
    real = {0.35: (0.21, 0.31), 0.55: (0.11, 0.14), 0.75: (0.069, 0.073), 0.85: (0.051, 0.073)}  # medians of the two
    skeleton = Skeleton.load("coco17")
    generator = torch.Generator().manual_seed(0)
    joints = torch.randn(6000, 17, 2, generator=generator)
    labelled = torch.ones(joints.shape[:2], dtype=torch.bool)
    as_told = replace(BODY, full=(1.0, 1.0), bend=0.0, truncation=0.0)
    detection = simulate_detector(joints, labelled, as_told, Graph.of(skeleton), generator)
    error = (detection.joints - joints).norm(dim=-1)
    for middle, (low, high) in real.items():
        chosen = error[error.isfinite() & ((detection.confidence - middle).abs() < 0.05)]
        assert low * 0.75 < chosen.median() < high * 1.25, middle
        assert chosen.quantile(0.9) > 2 * chosen.median(), "errors have a tail"


def test_another_convention_moves_joints_along_their_bones() -> None:
    joints = torch.stack([torch.arange(6.0), torch.zeros(6)], -1).repeat(4000, 1, 1)
    labelled = torch.ones(4000, 6, dtype=torch.bool)
    labelled[:, 5] = False
    moved = redefine(joints, labelled, 0.1, Graph.of(CHAIN), torch.Generator().manual_seed(0)) - joints
    assert (moved[..., 1] == 0).all(), "off the bones"
    assert (moved[:, 5] == 0).all(), "without a label nothing is known of its bone"
    heavy_tail = np.exp(0.5**2)  # of the factors exp(N(0, 0.5)), root mean square
    assert moved[:, 0, 0].std() == pytest.approx(0.1 * heavy_tail, rel=0.1)
    assert moved[:, 2, 0].std() == pytest.approx(0.1 * heavy_tail, rel=0.1)


def test_what_is_unusual_is_where_the_others_do_not_put_it() -> None:
    generator = torch.Generator().manual_seed(0)
    along = torch.linspace(-1, 1, 6)[None, :, None] * torch.randn(3000, 1, 2, generator=generator)
    joints = along + 0.02 * torch.randn(3000, 6, 2, generator=generator)
    joints[:, 5] += 0.3 * torch.randn(3000, 2, generator=generator)  # the last joint goes its own way
    joints -= joints.mean(1, keepdim=True)
    labelled = torch.ones(3000, 6, dtype=torch.bool)
    graph = Graph.of(CHAIN).with_poses(joints, labelled)
    usual = graph.surprise(joints, labelled).mean(0)
    assert usual[5] > 0.8
    assert usual[:5].max() < 0.6
    moved = joints[:100].clone()
    moved[:, 2] += 1.0
    assert (graph.surprise(moved, labelled[:100])[:, 2] == 1).all()
    assert not Graph.of(CHAIN).surprise(joints, labelled).any()
    assert Graph.of(CHAIN).with_poses(joints[:50], labelled[:50]).mean is None


def test_limbs_turn_with_what_hangs_on_them() -> None:
    chain = Skeleton("chain6", tuple("abcdef"), tuple((i, i + 1) for i in range(5)), root=1, axis=2)
    graph = Graph.of(chain)
    assert graph.parents.tolist() == [1, 1, 1, 2, 3, 4]
    assert graph.outward[2].tolist() == [0, 0, 0, 1, 1, 1]
    assert not graph.outward[1].any()
    joints = torch.stack([torch.arange(6.0), torch.zeros(6)], -1).repeat(500, 1, 1)
    labelled, chosen = torch.ones(500, 6, dtype=torch.bool), torch.zeros(500, 6, dtype=torch.bool)
    chosen[:, 3] = True
    model = replace(DetectorModel(), carried=1.0)
    turned, carried = turn_limbs(joints, chosen, labelled, model, graph, torch.Generator().manual_seed(0))
    shift = turned - joints
    assert (shift[:, :3] == 0).all()
    torch.testing.assert_close(shift[:, 4], shift[:, 3])
    torch.testing.assert_close(shift[:, 5], shift[:, 3])
    assert carried[:, 4:].all()
    assert not carried[:, :4].any()
    bone = (turned[:, 3] - turned[:, 2]).norm(dim=-1)
    assert (bone > 0.49).all()
    assert (bone < 1.31).all()


def test_shared_noise_has_variance_one_and_runs_along_bones() -> None:
    graph = Graph.of(CHAIN)
    noise = shared_noise(20000, 0.9, graph.smooth, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.std((0, 2)), torch.ones(6), atol=0.03, rtol=0)
    near, far = (noise[:, 2] * noise[:, 3]).mean(), (noise[:, 0] * noise[:, 5]).mean()
    assert near > 0.2
    assert abs(far) < 0.05
