# SPDX-License-Identifier: Apache-2.0
"""The joints of a file matched to a skeleton by name; every alias of a joint's name stands here and nowhere else.

Data sets write one joint as RHip, rhip, right_hip or hip_r. Limb joints mean the same everywhere. Head, neck and thorax
do not (head top or face, base or top of the neck), so only names that mean one place are aliases of each other.
May use: errors, skeleton, NumPy. Test: tests/test_data.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.skeleton import Skeleton

SIDED = {
    "shoulder": ("sho", "shou", "shoulder"),
    "elbow": ("elb", "elbow"),
    "wrist": ("wri", "wrist"),
    "hip": ("hip",),
    "knee": ("kne", "knee"),
    "ankle": ("ank", "ankle", "foot"),
    "eye": ("eye",),
    "ear": ("ear",),
}
"""Joints that come in pairs: their name here, and every way to write it beside a side."""

CENTRAL = {
    "pelvis": ("pelv", "pelvis", "hip", "hips", "root", "mid_hip", "midhip", "hip_center", "hip_centre"),
    "thorax": ("thor", "thorax"),
    "neck": ("neck", "upper_neck", "neck_nose"),
    "head": ("head", "head_top", "headtop", "top_head"),
    "wrist": ("wrist", "hand_root"),
}
"""Joints on the body's middle line, and the wrist of a lone hand."""

FINGERS = {
    "thumb": ("thumb",),
    "index": ("index", "forefinger", "index_finger", "fore"),
    "middle": ("middle", "middle_finger"),
    "ring": ("ring", "ring_finger"),
    "pinky": ("pinky", "pinky_finger", "little", "little_finger"),
}
"""Fingers; a joint is the finger and 1 to 4 from the palm outward, or the anatomical part."""

PARTS = {"mcp": 1, "pip": 2, "dip": 3, "tip": 4}
THUMB_PARTS = {"cmc": 1, "mcp": 2, "ip": 3, "tip": 4}
SIDES = {"r": "right", "right": "right", "l": "left", "left": "left"}

_SIDED = {alias: name for name, aliases in SIDED.items() for alias in aliases}
_CENTRAL = {alias: name for name, aliases in CENTRAL.items() for alias in aliases}
_FINGERS = {alias: name for name, aliases in FINGERS.items() for alias in aliases}


def canonical_name(name: str) -> str:
    """One spelling of a joint: ``RHip`` and ``hip_r`` give ``right_hip``, ``forefinger1`` gives ``index1``.

    A name without a known alias comes back in lower case, with its separators as underscores.
    """
    plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name).strip()).lower()).strip("_")
    if plain in _CENTRAL:
        return _CENTRAL[plain]
    for pattern in (r"(?P<side>right|left|r|l)_?(?P<part>[a-z]+)", r"(?P<part>[a-z]+)_(?P<side>right|left|r|l)"):
        found = re.fullmatch(pattern, plain)
        if found and found["part"] in _SIDED:
            return f"{SIDES[found['side']]}_{_SIDED[found['part']]}"
    found = re.fullmatch(r"(?P<finger>[a-z_]+?)_?(?P<part>[1-4]|cmc|mcp|pip|dip|ip|tip)", plain)
    if found and found["finger"] in _FINGERS:
        finger, part = _FINGERS[found["finger"]], found["part"]
        numbers = THUMB_PARTS if finger == "thumb" else PARTS
        if part.isdigit() or part in numbers:
            return f"{finger}{part if part.isdigit() else numbers[part]}"
    return plain


def match_names(names: Sequence[str], skeleton: Skeleton) -> NDArray[np.int64]:
    """Where each joint of the skeleton stands in a file.

    Args:
        names: The file's joint names, in the order of its arrays.
        skeleton: The joints that are wanted.

    Returns:
        Index [N] into ``names``, -1 where the file has no such joint.

    Raises:
        InputError: Two names of the file mean the same joint, or none means a joint of the skeleton.
    """
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        key = canonical_name(name)
        if key in found:
            raise InputError(f"joint names {names[found[key]]!r} and {name!r} mean the same joint: rename one of them")
        found[key] = i
    index = np.array([found.get(canonical_name(name), -1) for name in skeleton.names], dtype=np.int64)
    if (index < 0).all():
        listed = ", ".join(map(str, names[:6]))
        raise InputError(f"none of the joints {listed}… belongs to skeleton {skeleton.name!r}: choose another skeleton")
    return index
