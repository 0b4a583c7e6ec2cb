# SPDX-License-Identifier: Apache-2.0
"""Labels and predictions together: COCO-style JSON with a results file, and the dumps of MMPose 1.x (.pkl, .json).

Readers answer the arrays that port-eval takes: ``joints``, ``labelled``, ``pred``, ``conf``, ``names``, ``bbox``.
May use: formats, safe_pickle, errors, NumPy. Test: tests/test_formats.py.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError
from port_deploy.formats import Arrays, read_bytes, read_json
from port_deploy.safe_pickle import read_pickle


def read_coco(path: Path, results: Path | None = None) -> Arrays:
    """COCO-style annotations, and a detector's results for them.

    Args:
        path: ``{"images": […], "annotations": [{"keypoints": [x, y, v, …], …}], "categories": [{"keypoints": […]}]}``.
        results: ``[{"image_id": …, "keypoints": [x, y, score, …]}, …]`` (flat, or MMPose 0.x's lists of three). In each
            picture, results are given to annotations one to one, nearest first.

    Raises:
        InputError: Either is of another form, or no annotation meets a result.
    """
    content = read_json(path, "a COCO-style annotation file")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError(f"{path}: expected COCO annotations: an object with a list 'annotations'")
    names = next((c["keypoints"] for c in content.get("categories", ()) if c.get("keypoints")), None)
    images = {i["id"]: i for i in content.get("images", ()) if "id" in i}
    labels: list[NDArray[np.float64]] = []
    boxes: list[list[float]] = []
    owners: list[Any] = []
    for annotation in content["annotations"]:
        if not annotation.get("keypoints") or annotation.get("iscrowd"):
            continue
        points = _points(annotation["keypoints"], path)
        if labels and points.shape != labels[0].shape:
            raise InputError(f"{path}: annotations of {len(labels[0])} and of {len(points)} keypoints: split the file")
        if not (points[:, 2] > 0).any():
            continue
        labels.append(points)
        boxes.append(_box(annotation, points))
        owners.append(annotation.get("image_id"))
    if not labels:
        raise InputError(f"{path}: no annotation of it has a labelled keypoint")
    truth = np.array(labels)
    arrays: Arrays = {
        "joints": truth[..., :2].astype(np.float32),
        "labelled": truth[..., 2] > 0,
        "visible": truth[..., 2] > 1,
        "bbox": np.array(boxes, np.float32),
    }
    if names:
        arrays["names"] = np.array([str(n) for n in names])
    sizes = [(images.get(o, {}).get("width", 0), images.get(o, {}).get("height", 0)) for o in owners]
    if all(w > 0 and h > 0 for w, h in sizes):
        arrays["image_size"] = np.array(sizes, np.float32)
    if results is None:
        return arrays
    return _with_results(arrays, owners, results)


def read_mmpose(path: Path) -> Arrays:
    """A dump of MMPose 1.x (``--dump``): a list of samples with ``pred_instances`` and ``gt_instances``.

    ``.pkl`` is read without running anything in it; ``.json`` holds the same as lists.
    """
    expected = "an MMPose dump (.pkl, or .json of the same)"
    content = (
        read_json(path, expected) if path.suffix == ".json" else read_pickle(read_bytes(path), str(path), expected)
    )
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: expected MMPose's list of samples, got {type(content).__name__}")
    rows: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for i, sample in enumerate(content):
        try:
            found, truth = sample["pred_instances"], sample["gt_instances"]
            pred = np.asarray(found["keypoints"], np.float64)[..., :2]
            conf = np.asarray(found["keypoint_scores"], np.float64)
            joints = np.asarray(truth["keypoints"], np.float64)[..., :2]
            flag = np.asarray(truth.get("keypoints_visible", np.ones(joints.shape[:2])), np.float64)
            flag = flag[..., 0] if flag.ndim == 3 else flag
            if not (pred.shape == joints.shape and conf.shape == flag.shape == pred.shape[:2] and pred.ndim == 3):
                raise ValueError(f"shapes {pred.shape}, {conf.shape}, {joints.shape}, {flag.shape}")
            boxes = np.asarray(truth["bboxes"], np.float64) if "bboxes" in truth else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: sample {i} is not one of MMPose's: {type(error).__name__}: {error}") from error
        for key, value in (("pred", pred), ("conf", conf), ("joints", joints), ("labelled", flag > 0)):
            rows[key].append(value)
        if boxes is not None and boxes.shape == (len(pred), 4):
            rows["bbox"].append(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1))
    try:
        whole = {k: np.concatenate(v) for k, v in rows.items()}
    except ValueError as error:
        raise InputError(f"{path}: its samples have different numbers of keypoints: {error}") from error
    if "bbox" in whole and len(whole["bbox"]) != len(whole["pred"]):
        del whole["bbox"]
    return {k: v if k == "labelled" else v.astype(np.float32) for k, v in whole.items()}


def _points(value: Any, path: Path) -> NDArray[np.float64]:
    """Keypoints [K, 3], flat or nested."""
    try:
        points = np.asarray(value, np.float64).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: expected keypoints as x, y and a third number each: {error}") from error
    return points


def _box(annotation: dict[str, Any], points: NDArray[np.float64]) -> list[float]:
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4:
        return [float(v) for v in box]
    seen = points[points[:, 2] > 0, :2]
    low, high = seen.min(0), seen.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _with_results(arrays: Arrays, owners: list[Any], results: Path) -> Arrays:
    """Annotations that a result was found for, with it."""
    content = read_json(results, "a detector's results in COCO's form")
    if not isinstance(content, list) or not all(isinstance(r, dict) and "keypoints" in r for r in content):
        raise InputError(f"{results}: expected a list of results, each with image_id and keypoints")
    by_image: dict[Any, list[NDArray[np.float64]]] = defaultdict(list)
    for result in content:
        by_image[result.get("image_id")].append(_points(result["keypoints"], results))
    of_image: dict[Any, list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        of_image[owner].append(row)
    count = arrays["joints"].shape[1]
    chosen: dict[int, NDArray[np.float64]] = {}
    for image, rows in of_image.items():
        found = by_image.get(image, [])
        if any(len(f) != count for f in found):
            raise InputError(f"{results}: expected results of {count} keypoints as the annotations have")
        pairs = []
        for row in rows:
            label, flag = arrays["joints"][row], arrays["labelled"][row]
            size = max(float(arrays["bbox"][row, 2:].max()), 1.0)
            for j, points in enumerate(found):
                apart = np.linalg.norm(points[:, :2] - label, axis=-1)[flag] / size
                pairs.append((float(np.minimum(apart, 1.0).mean()), row, j))
        taken: set[int] = set()
        for apart, row, j in sorted(pairs):
            if row not in chosen and j not in taken and apart < 1.0:
                chosen[row] = found[j]
                taken.add(j)
    if not chosen:
        raise InputError(f"{results}: no result meets an annotation: are the image ids those of the annotations?")
    keep = np.array(sorted(chosen))
    points = np.array([chosen[r] for r in keep])
    matched = {k: v if k == "names" else v[keep] for k, v in arrays.items()}
    return matched | {"pred": points[..., :2].astype(np.float32), "conf": points[..., 2].astype(np.float32)}
