# SPDX-License-Identifier: Apache-2.0
"""What training hides (nn/mjm.py): masked joint modelling, the simulated detector, the losses over both."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from port_deploy.nn.mjm import (  # noqa: E402
    BODY,
    DetectorModel,
    Graph,
    detector_model,
    distance_loss,
    mask_joints,
    reconstruction_loss,
    shared_noise,
    simulate_detector,
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
        assert (detection.confidence[~labelled] <= 0.45).all()
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
    assert bins[0] > 10 * bins[-1]


def test_shared_noise_has_variance_one_and_runs_along_bones() -> None:
    graph = Graph.of(CHAIN)
    noise = shared_noise(20000, 0.9, graph.smooth, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.std((0, 2)), torch.ones(6), atol=0.03, rtol=0)
    near, far = (noise[:, 2] * noise[:, 3]).mean(), (noise[:, 0] * noise[:, 5]).mean()
    assert near > 0.2
    assert abs(far) < 0.05
