# SPDX-License-Identifier: Apache-2.0
"""Poses from .npz files, ready for training: matched to the skeleton by name, scaled, split into training and held-out.

A file holds ``joints`` [M, n, 2] (pixels, y down) or ``joints3d`` [M, n, 3] (any unit; y up where the skeleton has
mirror pairs, as motion capture has it), ``names`` [n], and perhaps ``labelled`` or ``visible`` [M, n]. Of a file with
both kinds of joints the 3D ones are used. May use: errors, files, joint_names, nn.face, skeleton,
NumPy, torch.
Test: tests/test_data.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from port_deploy.errors import InputError, listed
from port_deploy.files import sha256
from port_deploy.joint_names import canonical_name, match_names
from port_deploy.nn.face import with_face
from port_deploy.skeleton import Skeleton

MIN_LABELLED = 4
"""Poses with fewer labelled joints teach nothing and are left out."""

HELD_OUT_SHARE = 0.05
"""Part of a source's poses that is held out where no field of it says which."""

SPLIT_SEED = 0
"""Of that choice, and of simulated faces."""


@dataclass(frozen=True)
class DataSpec:
    """One ``--data`` option: ``FILE[:WEIGHT][:ignore=joint+joint][:face]``.

    Attributes:
        path: The .npz file.
        weight: Share of the batches, relative to the other files.
        ignore: Joints whose labels in this file are not used (another definition of the same name).
        face: Whether motion capture without a face is given a simulated one (`nn.face`).
    """

    path: Path
    weight: float = 1.0
    ignore: tuple[str, ...] = ()
    face: bool = False

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Read the option.

        Raises:
            InputError: It is not of that form.
        """
        path, *rest = text.split(":")
        weight = 1.0
        ignore: tuple[str, ...] = ()
        face = "face" in rest
        for part in (r for r in rest if r != "face"):
            if part.startswith("ignore="):
                ignore = tuple(canonical_name(n) for n in part.removeprefix("ignore=").split("+"))
                continue
            try:
                weight = float(part)
            except ValueError:
                weight = -1.0
            if not 0 < weight < float("inf"):
                raise InputError(
                    f"expected --data FILE[:WEIGHT][:ignore=joint+joint][:face] with a weight > 0, got {text!r}"
                )
        return cls(Path(path), weight, ignore, face)


@dataclass(frozen=True)
class Source:
    """The poses of one file.

    Attributes:
        name: The file's stem.
        weight: Share of the batches, relative to the other sources.
        points: [M, N, 2] (y down) or [M, N, 3] (y up) float32, centred and scaled to a root-mean-square coordinate of 1
            over the labelled joints, which are the only ones to read.
        labelled: [M, N] bool.
        training: Indices of the poses to train on.
        held_out: Indices of the poses that choose the best checkpoint.
        facts: What goes into the model's card: file, digest, poses, weight, how it was split.
        fields: Arrays of the file that hold one number a pose: what can be held out by.
        unlabelled: Joints of the skeleton that no pose has a label of, but for those that were to be ignored.
        unknown: The file's names that mean no joint of the skeleton.
    """

    name: str
    weight: float
    points: Tensor
    labelled: Tensor
    training: Tensor
    held_out: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def gaps(self, skeleton: Skeleton) -> str:
        """One line on the joints of the skeleton that the file has no label of; empty where it has labels of all."""
        if not self.unlabelled:
            return ""
        others = f" (its names that {skeleton.name} does not have: {listed(self.unknown)})" if self.unknown else ""
        return f"{self.facts['file']}: no labels for {listed(self.unlabelled)}{others}"


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an .npz file, read without pickle.

    Raises:
        InputError: The file is missing, damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise InputError(f"no data file {path}: give the path of an .npz file") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = "it is no .npz, or holds Python objects" if "pickle" in str(error) else error
        raise InputError(f"cannot read data {path}: expected an .npz file of plain arrays: {reason}") from error


def load_source(spec: DataSpec, skeleton: Skeleton, hold_out: Mapping[str, Sequence[float]]) -> Source:
    """Read one data file.

    Args:
        spec: The file, its weight and the joints to ignore.
        skeleton: Joints to look for.
        hold_out: Field of the file -> values that are held out, e.g. ``{"subject": (9, 11)}``. A file with none of the
            fields holds out HELD_OUT_SHARE of its poses, whole sequences where it has ``seq``: always the same, so that
            runs of different seeds compare, and what one held out none has learnt.

    Raises:
        InputError: The file cannot be read, its arrays do not fit, or it has no usable pose; the message says which.
    """
    arrays = read_arrays(spec.path)
    joints, names = _joints(spec.path, arrays)
    if spec.face:
        if joints.shape[-1] != 3:
            raise InputError(f"{spec.path}: a simulated face takes joints3d, and it has joints alone: leave :face out")
        joints, names = with_face(joints, names, SPLIT_SEED)
    index = match_names(names, skeleton)
    known = {canonical_name(n) for n in skeleton.names}
    present = index >= 0
    for i, name in enumerate(skeleton.names):
        present[i] &= canonical_name(name) not in spec.ignore
    labelled = np.zeros((len(joints), len(index)), dtype=bool)
    labelled[:, present] = np.isfinite(joints).all(-1)[:, index[present]]
    for key in ("labelled", "visible"):
        if key in arrays:
            own = present & (index < arrays["names"].shape[0])  # not a simulated face
            labelled[:, own] &= _per_joint(spec.path, arrays, key)[:, index[own]] > 0
            break
    points = np.where(labelled[..., None], joints[:, np.maximum(index, 0)], 0.0).astype(np.float32)
    seen = np.asarray(labelled.any(0))
    points, usable = _normalise(points, labelled)
    if not usable.any():
        raise InputError(
            f"{spec.path}: no pose with {MIN_LABELLED} labelled joints of skeleton {skeleton.name!r} in it"
        )
    held, how = _held_out(arrays, len(joints), hold_out)
    held, rows = held[usable], np.flatnonzero(usable)
    if held.all():
        raise InputError(f"{spec.path}: every pose is held out ({how}): nothing is left to train on")
    facts = {
        "file": spec.path.name,
        "sha256": sha256(spec.path),
        "poses": int((~held).sum()),
        "held_out": int(held.sum()),
        "split": how,
        "weight": spec.weight,
        "dimensions": int(points.shape[-1]),
        **({"face": "simulated"} if spec.face else {}),
        **({"ignored_joints": list(spec.ignore)} if spec.ignore else {}),
    }
    return Source(
        name=spec.path.stem,
        weight=spec.weight,
        points=torch.from_numpy(points[rows]),
        labelled=torch.from_numpy(labelled[rows]),
        training=torch.from_numpy(np.flatnonzero(~held)),
        held_out=torch.from_numpy(np.flatnonzero(held)),
        facts=facts,
        fields=tuple(sorted(k for k in arrays if _is_field(arrays, k, len(joints)))),
        unlabelled=tuple(
            n for n, s in zip(skeleton.names, seen, strict=True) if not s and canonical_name(n) not in spec.ignore
        ),
        unknown=tuple(n for n in map(str, arrays["names"]) if canonical_name(n) not in known),
    )


def check_hold_out(hold_out: Mapping[str, Sequence[float]], sources: Sequence[Source]) -> None:
    """Raise where a field that poses are to be held out by is in no file at all: the name is most likely misspelt.

    Raises:
        InputError: It is; the message names the field, the files and the fields that they have.
    """
    for key in hold_out:
        if not any(key in s.fields for s in sources):
            have = "; ".join(f"{s.facts['file']} has {listed(s.fields) if s.fields else 'none'}" for s in sources)
            raise InputError(f"--hold-out {key}: no data file has that field, one number a pose: {have}")


def _joints(path: Path, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], list[str]]:
    for key, dimensions in (("joints3d", 3), ("joints", 2)):
        if key in arrays:
            joints = arrays[key]
            if joints.ndim != 3 or joints.shape[2] != dimensions or joints.dtype.kind not in "fiu":
                raise InputError(
                    f"{path}: expected {key} [M, n, {dimensions}] of numbers, got {joints.dtype} {list(joints.shape)}"
                )
            break
    else:
        raise InputError(f"{path}: expected an array joints [M, n, 2] or joints3d [M, n, 3], got {sorted(arrays)}")
    if "names" not in arrays or arrays["names"].shape != (joints.shape[1],):
        raise InputError(f"{path}: expected an array names [{joints.shape[1]}], one name for each of its joints")
    if len(joints) == 0:
        raise InputError(f"{path}: expected at least one pose, got {key} {list(joints.shape)}")
    return joints.astype(np.float32), [str(n) for n in arrays["names"]]


def _per_joint(path: Path, arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    value = arrays[key]
    shape = list(arrays["joints3d" if "joints3d" in arrays else "joints"].shape[:2])
    if list(value.shape) != shape:
        raise InputError(f"{path}: expected {key} {shape}, got {list(value.shape)}")
    return value


def _normalise(points: NDArray[Any], labelled: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Centre and scale [M, N, d] over the labelled joints; and which poses [M] are usable."""
    weight = labelled[..., None].astype(np.float32)
    count = weight.sum(1, keepdims=True)
    centred = (points - (points * weight).sum(1, keepdims=True) / np.maximum(count, 1)) * weight
    size = np.sqrt((centred**2).sum((1, 2)) / np.maximum(count[:, 0, 0] * points.shape[-1], 1))
    largest = np.abs(points).max((1, 2))
    usable = (count[:, 0, 0] >= MIN_LABELLED) & np.isfinite(size) & (size > 1e-5 * largest) & (size > 1e-12)
    return (centred / np.where(usable, size, 1)[:, None, None]).astype(np.float32), usable


def _is_field(arrays: Mapping[str, NDArray[Any]], key: str, count: int) -> bool:
    return key in arrays and arrays[key].shape == (count,) and arrays[key].dtype.kind in "biuf"


def _held_out(
    arrays: Mapping[str, NDArray[Any]], count: int, hold_out: Mapping[str, Sequence[float]]
) -> tuple[NDArray[Any], str]:
    """Which poses [M] are held out, and how that was decided."""
    fields = [k for k in hold_out if _is_field(arrays, k, count)]
    if fields:
        held = np.zeros(count, dtype=bool)
        for key in fields:
            held |= np.isin(arrays[key], list(hold_out[key]))
        return held, "held out " + ", ".join(f"{k} {'/'.join(f'{v:g}' for v in hold_out[k])}" for k in fields)
    random = np.random.default_rng(SPLIT_SEED)
    if "seq" in arrays and arrays["seq"].shape == (count,):
        sequences = np.unique(arrays["seq"])
        chosen = sequences[random.random(len(sequences)) < HELD_OUT_SHARE]
        return np.isin(arrays["seq"], chosen), f"held out {HELD_OUT_SHARE:.0%} of the sequences at random"
    return random.random(count) < HELD_OUT_SHARE, f"held out {HELD_OUT_SHARE:.0%} at random"
