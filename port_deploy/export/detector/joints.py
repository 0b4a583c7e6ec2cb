# SPDX-License-Identifier: Apache-2.0
"""A detector's channels matched to a skeleton by joint name. May use: config, joint_names, skeleton, errors.

Test: tests/test_export_detector.py.
"""

from __future__ import annotations

import json
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

_SHUFFLES = 500
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

    In the right order bones are short: their total length is below that of nearly every random assignment of the same
    points to joints. It finds a wrong list of names, not a left and right that are swapped.

    Args:
        skeleton: Bones.
        joints: [B, N, 2].
        confidence: [B, N].

    Raises:
        InputError: They do not.
    """
    random = np.random.default_rng(0)
    bones = np.array(skeleton.bones)
    beaten = tried = 0
    for pose, sure in zip(joints, (confidence >= _SURE) & np.isfinite(joints).all(-1), strict=True):
        kept = bones[sure[bones].all(-1)]
        if sure.sum() < 6 or len(kept) < 4:
            continue
        where = np.flatnonzero(sure)
        shuffled = np.tile(np.arange(len(pose)), (_SHUFFLES, 1))
        shuffled[:, where] = random.permuted(np.tile(where, (_SHUFFLES, 1)), axis=1)
        points = pose[shuffled]  # [S, N, 2]
        lengths = np.linalg.norm(points[:, kept[:, 0]] - points[:, kept[:, 1]], axis=-1).sum(-1)
        own = np.linalg.norm(pose[kept[:, 0]] - pose[kept[:, 1]], axis=-1).sum()
        beaten += int((lengths < own).sum())
        tried += _SHUFFLES
    if tried and beaten > 0.05 * tried:
        raise InputError(
            f"on these photographs the detector's joints do not look like skeleton {skeleton.name!r}: "
            f"{beaten / tried:.0%} of random orders have shorter bones, so --detector-joints is not its channel order"
        )
