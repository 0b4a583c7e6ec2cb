# SPDX-License-Identifier: Apache-2.0
"""A detector's channels matched to a skeleton by joint name. May use: config, joint_names, skeleton, errors.

Test: tests/test_export_detector.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from port_deploy.config import ModelSpec
from port_deploy.errors import InputError
from port_deploy.joint_names import canonical_name, match_names
from port_deploy.skeleton import Skeleton, bundled_skeletons

METADATA_KEYS = ("joint_names", "joints", "keypoint_names", "keypoints")
"""Metadata of an ONNX file that may hold the names: a JSON list, or names with commas."""

BODY_RATIO, HAND_RATIO = 1.7, 2.4
"""Mean bone over the mean edge of the shortest tree, of the middle pose, from which an order is taken for wrong."""

_SURE = 0.3


def joint_names(given: str | None, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The detector's joint names in channel order: as given, else from its metadata, else None.

    Args:
        given: A bundled skeleton's name, a JSON file (a list of names, or an object with ``names``), or names with
            commas.
        metadata: Of the ONNX file.

    Raises:
        InputError: They cannot be read, or what is given contradicts the metadata.
    """
    own = next((_parse(metadata[key], f"metadata {key!r}") for key in METADATA_KEYS if metadata.get(key)), None)
    if given is None:
        return own
    if given in bundled_skeletons():
        names = Skeleton.load(given).names
    elif Path(given).suffix == ".json":
        try:
            text = Path(given).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read joint names {given}: {error}") from error
        names = _parse(text, given)
    elif "," in given:
        names = _parse(given, "--detector-joints")
    else:
        raise InputError(
            f"expected joint names as one of {', '.join(bundled_skeletons())}, a JSON file or names with commas, "
            f"got {given!r}"
        )
    if own is not None and [canonical_name(n) for n in own] != [canonical_name(n) for n in names]:
        raise InputError(
            f"the detector's own metadata names its joints {', '.join(own[:4])}…, not {', '.join(names[:4])}…: "
            "leave out --detector-joints"
        )
    return tuple(names)


def _parse(text: str, source: str) -> tuple[str, ...]:
    if text.lstrip().startswith(("[", "{")):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"joint names in {source} are not JSON ({error})") from error
        names = data.get("names") if isinstance(data, dict) else data
    else:
        names = [part.strip() for part in text.split(",")]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise InputError(f"expected {source} to hold a list of joint names, got {str(names)[:60]}")
    return tuple(names)


def channel_order(names: Sequence[str], spec: ModelSpec) -> tuple[int, ...]:
    """For each joint of the model's skeleton its channel, -1 where the detector has none.

    Raises:
        InputError: A name comes twice, or too few joints are there for the model to refine a single pose.
    """
    order = tuple(int(i) for i in match_names(names, spec.skeleton))
    lacking = [name for name, i in zip(spec.skeleton.names, order, strict=True) if i < 0]
    present = len(order) - len(lacking)
    if present < spec.min_visible or len(lacking) > spec.max_masked:
        raise InputError(
            f"the detector has {present} of the {len(order)} joints of skeleton {spec.skeleton.name!r}, and this model "
            f"refines poses with at least {spec.min_visible} visible and at most {spec.max_masked} masked ones: choose "
            f"a model for the detector's joints (it lacks {', '.join(lacking[:6])}{'…' if len(lacking) > 6 else ''})"
        )
    return order


def check_order(skeleton: Skeleton, joints: NDArray[np.floating], confidence: NDArray[np.floating]) -> None:
    """Whether poses that a detector found on real photographs look like the skeleton at all.

    In the right order bones are hardly longer than the shortest tree that joins the same points. It finds a wrong list
    of names, not two names that are swapped. Measured, the middle pose of a set, right order / the best of wrong ones:
    bodies (three detectors' photographs) 1.33 to 1.36 / 1.84; hands, whose fingers lie side by side, 1.84 / 2.3 to 3.1.

    Args:
        skeleton: Bones.
        joints: [B, N, 2].
        confidence: [B, N].

    Raises:
        InputError: They do not.
    """
    bones = np.array(skeleton.bones)
    ratios = []
    for pose, sure in zip(joints, (confidence >= _SURE) & np.isfinite(joints).all(-1), strict=True):
        kept = bones[sure[bones].all(-1)]
        if sure.sum() >= 6 and len(kept) >= 4:
            own = np.linalg.norm(pose[kept[:, 0]] - pose[kept[:, 1]], axis=-1).mean()
            ratios.append(own / max(_shortest_tree(pose[sure]), 1e-6))
    fingers = sum(re.fullmatch(r"(thumb|index|middle|ring|pinky)[1-4]", canonical_name(n)) is not None
                  for n in skeleton.names)  # fmt: skip
    limit = HAND_RATIO if fingers > len(skeleton.names) // 2 else BODY_RATIO
    if ratios and float(np.median(ratios)) > limit:
        raise InputError(
            f"on these photographs the detector's joints do not look like skeleton {skeleton.name!r}: bones are "
            f"{np.median(ratios):.1f} times the shortest tree through the same joints (at most {limit} in the right "
            "order), so --detector-joints is not its channel order"
        )


def _shortest_tree(points: NDArray[np.floating]) -> float:
    """Mean edge of the minimum spanning tree of [n, 2]."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    nearest, length = distance[0].copy(), 0.0
    out = np.ones(len(points), np.bool_)
    out[0] = False
    for _ in range(len(points) - 1):
        joint = int(np.argmin(np.where(out, nearest, np.inf)))
        length += float(nearest[joint])
        out[joint] = False
        nearest = np.minimum(nearest, distance[joint])
    return length / (len(points) - 1)
