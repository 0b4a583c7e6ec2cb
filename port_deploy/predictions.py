# SPDX-License-Identifier: Apache-2.0
"""Detector predictions with their labels, read from an ``.npz`` and put into a skeleton's joint order.

The file: ``joints`` [B, M, 2] labels and ``pred`` [B, M, 2] in pixels, ``conf`` [B, M]; where present ``names`` [M],
``labelled`` or ``visible`` [B, M] (0: no label), and sizes for PCK: ``bbox`` [B, 4] (x, y, width, height),
``head_size`` [B], ``image_size`` or ``imsize`` [B, 2]. Never pickled objects. A prediction is none where it is not
finite, or (0, 0) with confidence 0, as OpenPose writes it. May use: errors, joint_names, skeleton,
NumPy. Test: tests/test_evaluate.py.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.joint_names import match_names
from port_deploy.skeleton import Skeleton

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
SIZES = ("bbox", "head", "image", "pose")
"""What PCK's fraction can be a fraction of: the longer side of the box or image, the head, the labels' longer side."""


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions in a skeleton's order. A joint that the file lacks is NaN with confidence 0, unlabelled.

    Attributes:
        source: The file, for messages.
        joints: [B, N, 2] float32 labels, pixels.
        detected: [B, N, 2] float32 predictions, pixels; NaN where the detector gave none.
        confidence: [B, N] float32.
        labelled: [B, N] bool, True where the joint has a finite label.
        absent: Names of the skeleton's joints that the file does not have.
        sizes: For each of SIZES that the file allows, [B] float64 pixels.
    """

    source: str
    joints: Float32Array
    detected: Float32Array
    confidence: Float32Array
    labelled: BoolArray
    absent: tuple[str, ...]
    sizes: dict[str, NDArray[np.float64]]


def load_predictions(
    path: str | Path, skeleton: Skeleton, pred: str = "pred", conf: str = "conf", conf_constant: float | None = None
) -> Predictions:
    """Read a predictions file.

    Args:
        path: The ``.npz``.
        skeleton: Joints that are wanted, in the order that is wanted; the file's are matched to them by name.
        pred: Array that holds the predictions.
        conf: Array that holds the confidence.
        conf_constant: Confidence of every joint, for detectors that give none; the array is then not read.

    Raises:
        InputError: The file is no ``.npz``, lacks an array, or shapes do not agree; the message says which.
    """
    source = Path(path)
    arrays = _read(source)
    joints = _array(arrays, "joints", source)
    if joints.ndim != 3 or joints.shape[2] != 2:
        raise InputError(f"{source}: expected joints [B, N, 2], got {list(joints.shape)}")
    batch, count = joints.shape[:2]
    if pred not in arrays:
        raise InputError(f"{source}: no array {pred!r}{_choices(arrays, 'pred', '--pred')}")
    detected = _array(arrays, pred, source, joints.shape)
    if conf_constant is not None:
        confidence: Float32Array = np.full((batch, count), conf_constant, np.float32)
    elif conf not in arrays:
        raise InputError(
            f"{source}: no array {conf!r}{_choices(arrays, 'conf', '--conf')}: without confidence nothing tells which "
            "joints are occluded; for a model with refine=all, --conf-constant 1 stands in"
        )
    else:
        confidence = _array(arrays, conf, source, (batch, count))
    labelled: BoolArray = np.ones((batch, count), np.bool_)
    flag = next((name for name in ("labelled", "visible") if name in arrays), None)
    if flag is not None:
        labelled = np.asarray(_array(arrays, flag, source, (batch, count)) > 0, np.bool_)
    index = _order(arrays, skeleton, count, source)
    none = (detected == 0).all(-1) & (confidence == 0)
    detected = np.where(none[..., None], np.nan, detected)
    known = index >= 0

    def ordered(array: NDArray[Any], fill: float) -> NDArray[Any]:
        return np.ascontiguousarray(np.where(known.reshape(1, -1, *[1] * (array.ndim - 2)), array[:, index], fill))

    truth = ordered(joints, np.nan).astype(np.float32)
    labels = np.asarray(ordered(labelled, False).astype(np.bool_) & np.isfinite(truth).all(-1), np.bool_)
    return Predictions(
        source=str(source),
        joints=truth,
        detected=ordered(detected, np.nan).astype(np.float32),
        confidence=ordered(confidence, 0.0).astype(np.float32),
        labelled=labels,
        absent=tuple(name for name, there in zip(skeleton.names, known, strict=True) if not there),
        sizes=_sizes(arrays, truth, labels, source),
    )


def load_scores(path: str | Path, skeleton: Skeleton, pred: str = "pred", conf: str = "conf") -> Float32Array:
    """Only the confidence of a predictions file, which needs no labels then.

    Args:
        path: The ``.npz``.
        skeleton: Joints that are wanted.
        pred: Array of the predictions; where the file has it, joints that it does not place are left out.
        conf: Array of the confidence.

    Returns:
        [B, N] float32 in the skeleton's order; NaN for a joint that was not detected.

    Raises:
        InputError: The file is no ``.npz``, lacks the array, or shapes do not agree; the message says which.
    """
    source = Path(path)
    arrays = _read(source)
    if conf not in arrays:
        raise InputError(f"{source}: no array {conf!r}{_choices(arrays, 'conf', '--conf')}")
    confidence = _array(arrays, conf, source)
    if confidence.ndim != 2:
        raise InputError(f"{source}: expected {conf} [B, N], got {list(confidence.shape)}")
    scores = confidence.astype(np.float32)
    if pred in arrays:
        joints = _array(arrays, pred, source, (*confidence.shape, 2))
        scores[~np.isfinite(joints).all(-1) | ((joints == 0).all(-1) & (scores == 0))] = np.nan
    index = _order(arrays, skeleton, confidence.shape[1], source)
    return np.where(index >= 0, scores[:, index], np.float32(np.nan)).astype(np.float32)


def load_poses(path: str | Path, skeleton: Skeleton, count: int = 4000, seed: int = 0) -> Float32Array:
    """True poses of an ``.npz`` as port-train takes them, 2D ones as they are, 3D ones seen from random sides.

    Args:
        path: The ``.npz``: ``joints`` [M, n, 2], or ``joints3d`` [M, n, 3] (y up), and ``names`` [n].
        skeleton: Joints that are wanted; the file must have every one.
        count: Most poses, drawn at random.
        seed: Of what is random.

    Returns:
        [M, N, 2] float32, y down, only poses whose every joint is labelled.

    Raises:
        InputError: The file is no ``.npz``, or lacks a joint.
    """
    source = Path(path)
    arrays = _read(source)
    name = "joints3d" if "joints3d" in arrays else "joints"
    joints = _array(arrays, name, source)
    if joints.ndim != 3 or joints.shape[2] != (3 if name == "joints3d" else 2):
        raise InputError(f"{source}: expected joints [M, n, 2] or joints3d [M, n, 3], got {name} {list(joints.shape)}")
    index = _order(arrays, skeleton, joints.shape[1], source)
    lacking = [n for n, i in zip(skeleton.names, index, strict=True) if i < 0]
    if lacking:
        raise InputError(f"{source}: has no {', '.join(lacking)}: a linear completion needs poses with every joint")
    whole = np.isfinite(joints).all(-1)
    flag = next((n for n in ("labelled", "visible") if n in arrays), None)
    if flag is not None:
        whole &= _array(arrays, flag, source, joints.shape[:2]) > 0
    rows = np.flatnonzero(whole[:, index].all(1))
    random = np.random.default_rng(seed)
    chosen = random.permutation(rows)[:count]
    poses: Float32Array = joints[chosen][:, index].astype(np.float32)
    if name == "joints":
        return poses
    yaw = random.uniform(0, 2 * np.pi, len(poses))
    turn = np.zeros((len(poses), 3, 3))
    turn[:, 0, 0], turn[:, 0, 2], turn[:, 1, 1] = np.cos(yaw), np.sin(yaw), 1.0
    turn[:, 2, 0], turn[:, 2, 2] = -np.sin(yaw), np.cos(yaw)
    if not skeleton.mirror:  # a hand may point anywhere
        turn = np.linalg.qr(random.normal(size=(len(poses), 3, 3)))[0]
    seen: Float32Array = (poses @ turn.transpose(0, 2, 1))[..., :2] * np.array([1.0, -1.0])
    return seen.astype(np.float32)


def _read(source: Path) -> dict[str, NDArray[Any]]:
    try:
        opened = np.load(source, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise InputError(f"{source} holds one array: expected an .npz with joints, pred and conf")
        with opened as file:
            arrays = {name: file[name] for name in file.files}
        foreign = next((name for name, array in arrays.items() if not isinstance(array, np.ndarray)), None)
        if foreign is not None:
            raise InputError(f"{source}: {foreign!r} is no array: write the file with numpy.savez")
        return arrays
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        reason = "it is no .npz, or holds Python objects" if "pickle" in reason else reason
        raise InputError(f"{source} is not a usable .npz of plain arrays: {reason}") from error


def _array(
    arrays: dict[str, NDArray[Any]], name: str, source: Path, shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    if name not in arrays:
        raise InputError(f"{source}: no array {name!r} among {', '.join(sorted(arrays)) or 'none'}")
    array = arrays[name]
    if array.dtype.kind not in "fiub" or (shape is not None and array.shape != shape):
        wanted = f"numbers {list(shape)}" if shape is not None else "numbers"
        raise InputError(f"{source}: expected {name} to be {wanted}, got {array.dtype} {list(array.shape)}")
    return array


def _choices(arrays: dict[str, NDArray[Any]], prefix: str, option: str) -> str:
    others = sorted(name for name in arrays if name.startswith(prefix))
    return f"; choose one with {option}: {', '.join(others)}" if others else ""


def _order(arrays: dict[str, NDArray[Any]], skeleton: Skeleton, count: int, source: Path) -> NDArray[np.int64]:
    """For each joint of the skeleton its place in the file, -1 where it has none."""
    if "names" not in arrays:
        if count != len(skeleton.names):
            raise InputError(
                f"{source}: {count} joints and no names, but skeleton {skeleton.name!r} has {len(skeleton.names)}: "
                "add an array of names"
            )
        return np.arange(count, dtype=np.int64)
    names = arrays["names"]
    if names.dtype.kind not in "US" or names.shape != (count,):
        raise InputError(f"{source}: expected names to be {count} texts, got {names.dtype} {list(names.shape)}")
    listed = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names.tolist()]
    try:
        return match_names(listed, skeleton)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _sizes(
    arrays: dict[str, NDArray[Any]], truth: Float32Array, labelled: BoolArray, source: Path
) -> dict[str, NDArray[np.float64]]:
    batch = len(truth)
    sizes = {}
    if "bbox" in arrays:
        sizes["bbox"] = _array(arrays, "bbox", source, (batch, 4))[:, 2:].astype(np.float64).max(1)
    if "head_size" in arrays:
        sizes["head"] = _array(arrays, "head_size", source, (batch,)).astype(np.float64)
    for name in ("image_size", "imsize"):
        if name in arrays:
            sizes["image"] = _array(arrays, name, source, (batch, 2)).astype(np.float64).max(1)
    low = np.where(labelled[..., None], truth, np.inf).min(1, initial=np.inf)
    high = np.where(labelled[..., None], truth, -np.inf).max(1, initial=-np.inf)
    some: BoolArray = np.asarray(labelled.any(1), np.bool_)
    extent = np.where(some[:, None], high, 0.0) - np.where(some[:, None], low, 0.0)
    sizes["pose"] = extent.astype(np.float64).max(1)
    return {name: sizes[name] for name in SIZES if name in sizes}
