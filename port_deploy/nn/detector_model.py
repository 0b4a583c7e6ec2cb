# SPDX-License-Identifier: Apache-2.0
"""Every number of the simulated detector (simulated_detector.py), for hands and for bodies. May use: errors, skeleton.

Units are the pose's own size (root-mean-square coordinate 1); confidences 0..1. Test: tests/test_mjm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from port_deploy.errors import InputError
from port_deploy.skeleton import Skeleton


@dataclass(frozen=True)
class DetectorModel:
    """How a detector fails: every number of the simulation. Defaults are for hands.

    Confidence comes first, error follows from it, as real detectors have it: the errors by confidence of two detectors
    on people (OpenPose on LSP, 13,426 joints; Lite-HRNet-18 on 774 photographs, 13,158) fall on one curve, a median of
    0.55 exp(-2.8 c) sizes: joints near their place, 0.28 exp(-2.1 c) off, and a share found elsewhere that falls from
    0.45 at low scores. Hands have larger errors for their size. A simulation that puts every doubtful joint far away
    teaches a model to move what was nearly right; one that puts wrong joints where none could be teaches it to find
    what a look at the pose would find, and real detectors err plausibly: a limb at another angle, all that hangs on it
    with it.

    Attributes:
        disc: Share of poses with a round occluder, around a joint.
        disc_radius: Its radius, drawn from 0.1 to this.
        drop: Each pose's share of joints hidden one by one is drawn from 0 to this.
        crowd: Chance that a joint is hidden by one right before it; each pose draws its own, up to this.
        surprise: Chance that a joint that lies where its pose would not have it is hidden; each pose draws its own, up
            to this. Detectors doubt what is unusual, and a model must not take the unusual for wrong.
        truncation: Share of poses cut by the edge of the picture.
        truncation_down: Share of these cut from below; the others from anywhere.
        level: A seen joint's confidence; each pose draws its own from the range.
        level_noise: Standard deviation of a joint's confidence around its pose's.
        hidden: What a hidden joint keeps of its confidence.
        missing: Share of hidden joints for which it answers nothing.
        error: Median error in sizes at confidence 0; each pose draws its own from the range.
        error_fall: Rate of the exponential by which confidence makes it smaller; each pose draws its own.
        error_spread: Standard deviation of the logarithm of a joint's own factor on it.
        wrong: Share of joints found elsewhere (``wrong``, at confidence, rate): the share at that confidence, falling
            exponentially above it and never above ``wrong_most``.
        wrong_most: Largest share.
        partner: Of these, share found at the joint's mirror partner, mostly in exchange with it, often with its limb.
        turned: Of the others, share found where the bone that leads to them, turned and stretched, would end.
        carried: Share of the joints farther out that go with these.
        collapse: Of the rest, share found short of their place, on the bone from a neighbour.
        together: Each pose's share of error that neighbouring joints have in common is drawn from 0 to this.
        definition: Where a joint lies is a convention: each pose moves its true joints along their bones by about this
            part of the bone (standard deviation), which no model can know and a correction must not undo.
        full: Confidence that the network is told to be 1, each pose draws its own: detectors differ.
        bend: Standard deviation of the logarithm of the power that bends a pose's confidence before it is told.
        threshold: Range of δ.
    """

    disc: float = 0.75
    disc_radius: float = 1.1
    drop: float = 0.25
    crowd: float = 0.2
    surprise: float = 0.5
    truncation: float = 0.05
    truncation_down: float = 0.0
    level: tuple[float, float] = (0.45, 0.97)
    level_noise: float = 0.1
    hidden: tuple[float, float] = (0.05, 0.9)
    missing: float = 0.02
    error: tuple[float, float] = (0.4, 1.2)
    error_fall: tuple[float, float] = (2.4, 3.2)
    error_spread: float = 0.4
    wrong: tuple[float, float, float] = (0.28, 0.35, 6.0)
    wrong_most: float = 0.4
    partner: float = 0.0
    turned: float = 0.7
    carried: float = 0.6
    collapse: float = 0.2
    together: float = 0.9
    definition: float = 0.08
    full: tuple[float, float] = (0.85, 1.0)
    bend: float = 0.2
    threshold: tuple[float, float] = (0.1, 0.6)


BODY = DetectorModel(
    disc=0.5,
    disc_radius=1.0,
    drop=0.15,
    crowd=0.3,
    surprise=0.8,
    truncation=0.15,
    truncation_down=0.7,
    error=(0.2, 0.36),
    error_fall=(1.7, 2.5),
    wrong=(0.45, 0.25, 5.0),
    wrong_most=0.45,
    partner=0.4,
)
"""A whole body's detector: legs leave the picture, limbs cover each other and change places, left and right."""


def detector_model(skeleton: Skeleton, changes: Mapping[str, tuple[float, ...]] | None = None) -> DetectorModel:
    """The simulation for a skeleton: a body's where it has mirror pairs, else a hand's.

    Args:
        skeleton: Which joints there are.
        changes: Fields that are to have other numbers, e.g. ``{"error": (0.3, 1.8), "together": (0.5,)}``.

    Raises:
        InputError: There is no such field, or it takes another count of numbers.
    """
    model = BODY if skeleton.mirror else DetectorModel()
    known = {f.name: getattr(model, f.name) for f in fields(model)}
    values: dict[str, float | tuple[float, ...]] = {}
    for name, numbers in (changes or {}).items():
        if name not in known:
            raise InputError(f"the simulated detector has no number {name!r}: use {', '.join(known)}")
        count = len(known[name]) if isinstance(known[name], tuple) else 1
        if len(numbers) != count:
            raise InputError(f"expected {count} number(s) for {name} of the simulated detector, got {len(numbers)}")
        values[name] = tuple(numbers) if isinstance(known[name], tuple) else numbers[0]
    return replace(model, **values) if values else model  # type: ignore[arg-type]
