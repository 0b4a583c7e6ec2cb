# SPDX-License-Identifier: Apache-2.0
"""Public formats of labels: CMU Panoptic hands, FPHB, RHD, Human3.6M. Each reader answers the arrays of our .npz.

Arrays: ``joints`` [M, n, 2] pixels and/or ``joints3d`` [M, n, 3] (any unit), ``names`` [n], and what else the format
knows (``labelled``, ``subject``, ``action``, ``seq``). COCO and MMPose, which also hold predictions, are in
formats_predictions.py. May use: safe_pickle, errors, NumPy. Test: tests/test_formats.py.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.safe_pickle import read_pickle

Arrays = dict[str, NDArray[Any]]

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
HAND_NAMES = ("wrist", *(f"{f}{i}" for f in FINGERS for i in (1, 2, 3, 4)))
"""Wrist, then each finger from the palm outward: CMU Panoptic's and OpenPose's order."""
RHD_NAMES = ("wrist", *(f"{f}{i}" for f in FINGERS for i in (4, 3, 2, 1)))
"""Wrist, then each finger from the tip inward."""
FPHB_NAMES = (
    "wrist", *(f"{f}1" for f in FINGERS), *(f"{f}{i}" for f in FINGERS for i in (2, 3, 4))
)  # fmt: skip
"""Wrist, the five knuckles, then each finger's other three."""
FPHB_EXTRINSIC = np.array(
    [
        [0.999988496304, -0.00468848412856, 0.000982563360594, 25.7],
        [0.00469115935266, 0.999985218048, -0.00273845880292, 1.22],
        [-0.000969709653873, 0.00274303671904, 0.99999576807, 3.902],
    ]
)
FPHB_INTRINSIC = np.array([[1395.749023, 0.0, 935.732544], [0.0, 1395.749268, 540.681030], [0.0, 0.0, 1.0]])
"""FPHB's colour camera, 1920 x 1080, as its authors publish it."""
H36M_NAMES = (
    "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "spine", "thorax",
    "neck", "head", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist",
)  # fmt: skip
H36M_32 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""The 17 joints among the 32 of Human3.6M's motion capture."""


def read_panoptic(path: Path) -> Arrays:
    """CMU Panoptic hands: a folder of one ``.json`` a hand (``hand_pts`` [21, 3]: x, y, labelled; ``is_left``)."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else []
    if not files:
        raise InputError(f"{path}: expected a folder of .json files, one a hand, as CMU Panoptic's hand_labels has")
    joints, labelled, left = [], [], []
    for file in files:
        content = read_json(file, "one of CMU Panoptic's hand labels")
        points = np.asarray(content.get("hand_pts", ()) if isinstance(content, dict) else (), np.float64)
        if points.shape != (21, 3):
            raise InputError(f"{file}: expected hand_pts of 21 joints with x, y and a flag, got {list(points.shape)}")
        joints.append(points[:, :2])
        labelled.append(points[:, 2] > 0)
        left.append(bool(content.get("is_left", 0)))
    return {
        "joints": np.array(joints, np.float32),
        "labelled": np.array(labelled),
        "left": np.array(left),
        "names": np.array(HAND_NAMES),
        "image": np.array([f.stem for f in files]),
    }


def read_fphb(path: Path) -> Arrays:
    """FPHB: folder ``Hand_pose_annotation_v1`` (``Subject_1/action/1/skeleton.txt``: frame, then 21 joints in mm)."""
    files = sorted(path.rglob("skeleton.txt")) if path.is_dir() else []
    if not files:
        raise InputError(f"{path}: expected FPHB's Hand_pose_annotation_v1, with skeleton.txt files in it")
    parts: list[NDArray[np.float64]] = []
    subjects, actions, sequences = [], [], []
    known: dict[str, int] = {}
    for number, file in enumerate(files):
        try:
            rows = np.loadtxt(file, ndmin=2)
        except ValueError as error:
            raise InputError(f"{file}: expected numbers: {error}") from error
        if rows.shape[1] != 64:
            raise InputError(f"{file}: expected a frame number and 63 coordinates a line, got {rows.shape[1]} numbers")
        parts.append(rows)
        folders = file.parts
        subject = next((f for f in reversed(folders) if f.startswith("Subject_")), "Subject_0").removeprefix("Subject_")
        action = folders[-3] if len(folders) >= 3 else ""
        subjects += [int(subject) if subject.isdigit() else 0] * len(rows)
        actions += [known.setdefault(action, len(known))] * len(rows)
        sequences += [number] * len(rows)
    every = np.concatenate(parts)
    world = every[:, 1:].reshape(-1, 21, 3)
    camera = world @ FPHB_EXTRINSIC[:, :3].T + FPHB_EXTRINSIC[:, 3]
    flat = camera @ FPHB_INTRINSIC.T
    with np.errstate(divide="ignore", invalid="ignore"):
        joints = np.where(flat[..., 2:] > 0, flat[..., :2] / flat[..., 2:], np.nan)
    return {
        "joints": joints.astype(np.float32),
        "joints3d": world.astype(np.float32),
        "names": np.array(FPHB_NAMES),
        "subject": np.array(subjects),
        "action": np.array(actions),
        "seq": np.array(sequences),
        "frame": every[:, 0].astype(np.int64),
    }


def read_rhd(path: Path) -> Arrays:
    """RHD: ``anno_training.pickle`` or ``anno_evaluation.pickle`` (``uv_vis`` [42, 3], ``xyz`` [42, 3]), both hands.

    The left hand's joints come first; a hand with fewer than 4 visible joints is left out.
    """
    content = read_pickle(read_bytes(path), str(path), "RHD's anno_training.pickle or anno_evaluation.pickle")
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected RHD's dictionary of samples")
    joints, points, visible, left, seq = [], [], [], [], []
    for key in sorted(content):
        sample = content[key]
        try:
            uv, xyz = (np.asarray(sample[k], np.float64).reshape(2, 21, 3) for k in ("uv_vis", "xyz"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: sample {key!r} has no uv_vis and xyz of 42 joints: {error}") from error
        for hand in (0, 1):
            seen = uv[hand, :, 2] > 0
            if seen.sum() < 4:
                continue
            joints.append(uv[hand, :, :2])
            points.append(xyz[hand])
            visible.append(seen)
            left.append(hand == 0)
            seq.append(int(key))
    if not joints:
        raise InputError(f"{path}: no hand of it has 4 visible joints")
    return {
        "joints": np.array(joints, np.float32),
        "joints3d": (np.array(points) * [1, -1, -1]).astype(np.float32),  # a camera's y points down, ours up
        "visible": np.array(visible),
        "left": np.array(left),
        "seq": np.array(seq),
        "names": np.array(RHD_NAMES),
    }


def read_h36m(path: Path) -> Arrays:
    """Human3.6M: ``data_3d_h36m.npz`` (``positions_3d``, 32 joints, z up), or MMPose's annotations (2D, ``part``)."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {n.removesuffix(".npy"): archive.read(n) for n in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: expected an .npz: {error}") from error
    if "positions_3d" in members:
        return _positions(members["positions_3d"], path)
    if "part" in members:
        try:
            part = np.load(io.BytesIO(members["part"]), allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{path}: part is no array: {error}") from error
        if part.ndim != 3 or part.shape[1:] != (17, 3):
            raise InputError(f"{path}: expected part [M, 17, 3], got {list(part.shape)}")
        names = np.array(H36M_NAMES)
        return {"joints": part[..., :2].astype(np.float32), "labelled": part[..., 2] > 0, "names": names}
    raise InputError(f"{path}: expected positions_3d or part, got {', '.join(sorted(members)) or 'nothing'}")


def _positions(data: bytes, path: Path) -> Arrays:
    """The nested dictionary of ``data_3d_h36m.npz``: subject, action, [frames, 32, 3]."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        header[version](stream)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: positions_3d is no array: {error}") from error
    value = read_pickle(stream.read(), str(path), "data_3d_h36m.npz as VideoPose3D writes it")
    content = value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.size == 1 else value
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected positions_3d to hold a dictionary of subjects")
    points, subjects, actions, sequences = [], [], [], []
    known: dict[str, int] = {}
    number = 0
    for subject in sorted(content):
        for action in sorted(content[subject]):
            poses = np.asarray(content[subject][action])
            if poses.ndim != 3 or poses.shape[1:] not in ((32, 3), (17, 3)):
                raise InputError(f"{path}: expected {subject} {action} [frames, 32, 3], got {list(poses.shape)}")
            poses = poses[:, H36M_32] if poses.shape[1] == 32 else poses
            points.append(np.stack([poses[..., 0], poses[..., 2], -poses[..., 1]], -1))  # z up to y up
            digits = "".join(c for c in str(subject) if c.isdigit())
            subjects += [int(digits or 0)] * len(poses)
            actions += [known.setdefault(str(action).split(" ")[0], len(known))] * len(poses)
            sequences += [number] * len(poses)
            number += 1
    if not points:
        raise InputError(f"{path}: positions_3d holds no poses")
    return {
        "joints3d": np.concatenate(points).astype(np.float32),
        "names": np.array(H36M_NAMES),
        "subject": np.array(subjects),
        "action": np.array(actions),
        "seq": np.array(sequences),
    }


def read_bytes(path: Path) -> bytes:
    """A file's bytes, or one line that says why not."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}: give the path of one that exists") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_json(path: Path, expected: str) -> Any:
    """A JSON file's content, or one line that says why not, and what file was expected."""
    data = read_bytes(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}): expected {expected}") from error


READERS: dict[str, Callable[[Path], Arrays]] = {
    "panoptic": read_panoptic,
    "fphb": read_fphb,
    "rhd": read_rhd,
    "h36m": read_h36m,
}
"""Formats of labels by name."""
