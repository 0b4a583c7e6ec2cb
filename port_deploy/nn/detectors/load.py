# SPDX-License-Identifier: Apache-2.0
"""`load_detector`: a checkpoint of MMPose 0.x or 1.x as a `Detector`, complete or not at all.

May use: checkpoint, detector, family, spec, errors, torch. Test: tests/test_detectors_checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from port_deploy.errors import InputError, ModelFileError
from port_deploy.nn.detectors.checkpoint import Checkpoint, read_checkpoint
from port_deploy.nn.detectors.detector import Detector
from port_deploy.nn.detectors.family import FAMILY, member
from port_deploy.nn.detectors.spec import SPLIT_RATIO, DetectorSpec, Target, choose_skeleton
from port_deploy.skeleton import MAX_JOINTS, Skeleton

_IGNORED = ("data_preprocessor.", "ema_")
"""Keys of no weight: the input's mean and deviation, and MMCV's copies of the weights under training."""

_COUNTER = ".num_batches_tracked"
"""Read in training only, and absent from older files."""

Tensors = Mapping[str, Tensor]


def load_detector(
    name: str,
    checkpoint: str | Path,
    *,
    skeleton: str | Skeleton | None = None,
    input_size: tuple[int, int] | None = None,
    target: Target | None = None,
    flip_test: bool = False,
) -> Detector:
    """Load a detector of the family from a checkpoint.

    Checkpoints come from MMPose's model zoo, under the configurations that ``FAMILY[name].sources`` names, or from your
    own training with them. Nothing in the file is executed. The number of joints follows from the weights.

    Args:
        name: One of ``DETECTORS``, e.g. ``hrnet_w32``.
        checkpoint: A ``.pth`` file.
        skeleton: Joints in the order of the channels: a name, a file or a `Skeleton`. None: by their number
            (`choose_skeleton`).
        input_size: (H, W) of the crops. None: what a SimCC head's weights say, else what the configuration in the file
            says, else 256 x 192 for COCO's 17 joints and 256 x 256 for others.
        target: ``msra`` or ``udp``, how heatmaps were encoded in training. None: what the configuration in the file
            says, else ``msra``.
        flip_test: Answer the mean over a crop and its mirror image.

    Returns:
        The detector in evaluation mode, in float32 on the CPU.

    Raises:
        InputError: No such detector or file, or an option does not fit the weights.
        ModelFileError: The file is no checkpoint, or not one of this detector: a key is missing, unused or of another
            shape, which the message names, with the detector of the family that would fit.
    """
    plain, _ = member(name)
    stored = read_checkpoint(checkpoint)
    tensors = _renamed(stored.tensors)
    joints = _joints(tensors)
    chosen = None if joints is None else choose_skeleton(joints, skeleton)
    detector = None
    problems = ["key 'head.final_layer.bias' is missing"]
    if chosen is not None:
        spec = _specify(plain, chosen, tensors, stored, input_size, target)
        detector = Detector(spec, flip_test=flip_test)
        problems = _problems(detector.state_dict(), tensors)
    if detector is None or problems:
        count = "" if len(problems) == 1 else f" and {len(problems) - 1:,} more keys do not fit"
        raise ModelFileError(
            f"{stored.path} is not a checkpoint of {plain}: {problems[0]}{count}; {_advice(plain, tensors, stored)}"
        )
    with torch.no_grad():
        detector.load_state_dict({k: _sound(v, k, stored.path) for k, v in tensors.items()}, strict=False)
    return detector


def _renamed(tensors: Tensors) -> dict[str, Tensor]:
    """Weights under the keys of MMPose 1.x, whichever version wrote them; without what is no weight."""
    wrapped = all(k.startswith("module.") for k in tensors)
    plain = {k.removeprefix("module.") if wrapped else k: v for k, v in tensors.items()}
    plain = {k.replace("keypoint_head.", "head.", 1): v for k, v in plain.items() if not k.startswith(_IGNORED)}
    if "head.final_layer.0.weight" in plain:  # HRNetv2 in 0.x: one list for what became two layers
        old = (("head.final_layer.0.", "head.conv_layers.0."), ("head.final_layer.1.", "head.conv_layers.1."))
        for before, after in (*old, ("head.final_layer.3.", "head.final_layer.")):
            plain = {k.replace(before, after, 1): v for k, v in plain.items()}
    return plain


def _joints(tensors: Tensors) -> int | None:
    bias = tensors.get("head.final_layer.bias")
    return len(bias) if bias is not None and bias.ndim == 1 else None


def _simcc_size(tensors: Tensors) -> tuple[int, int] | None:
    """(H, W) of the crops that a SimCC head was made for, from the length of its vectors; None for other heads."""
    heads = [tensors.get(k) for k in ("head.cls_y.weight", "head.cls_x.weight")]
    height, width = (round(len(t) / SPLIT_RATIO) if t is not None and t.ndim == 2 else 0 for t in heads)
    return (height, width) if height and width else None


def _specify(
    name: str,
    skeleton: Skeleton,
    tensors: Tensors,
    stored: Checkpoint,
    input_size: tuple[int, int] | None,
    target: Target | None,
) -> DetectorSpec:
    chosen = FAMILY[name]
    fixed = _simcc_size(tensors) if chosen.simcc else None
    if fixed and input_size and tuple(input_size) != fixed:
        raise InputError(f"expected input_size {fixed}, which {stored.path} was trained for, got {tuple(input_size)}")
    if target is not None and (target == "simcc") != chosen.simcc:
        wanted = "simcc" if chosen.simcc else "msra or udp"
        raise InputError(f"expected target {wanted} for {name}, got {target!r}: leave it out")
    if target is None:
        target = "simcc" if chosen.simcc else "udp" if stored.udp else "msra"
    size = input_size or fixed or stored.input_size or chosen.input_size(skeleton.name)
    return DetectorSpec(name, skeleton, (size[0], size[1]), target, source=chosen.sources)


def _problems(expected: Tensors, tensors: Tensors) -> list[str]:
    """What does not fit, one clause for each key."""
    found = []
    for key, wanted in expected.items():
        got = tensors.get(key)
        if got is None:
            if not key.endswith(_COUNTER):
                found.append(f"key {key!r} is missing")
        elif got.shape != wanted.shape:
            found.append(f"key {key!r} has shape {list(got.shape)}, expected {list(wanted.shape)}")
    return found + [f"key {key!r} is unused" for key in tensors if key not in expected]


def _advice(name: str, tensors: Tensors, stored: Checkpoint) -> str:
    """The detector of the family that would fit, or where checkpoints of the one that was asked for come from."""
    joints = min(max(_joints(tensors) or 17, 2), MAX_JOINTS)
    anyone = Skeleton("any", tuple(map(str, range(joints))), ((0, 1),))
    fits: dict[str, float] = {}
    for other in FAMILY:
        try:
            with torch.device("meta"):
                expected = Detector(_specify(other, anyone, tensors, stored, None, None)).state_dict()
        except InputError:  # a size that no detector has
            continue
        fits[other] = 1 - len(_problems(expected, tensors)) / len(expected | dict(tensors))
    best = max(fits, key=lambda other: fits[other])
    if fits[best] == 1:
        return f"it is one of {best}: load it as detector {best!r}"
    source = f"checkpoints of {name} are those of MMPose's {' or '.join(FAMILY[name].sources)}"
    if fits[best] > 0.5 and best != name:
        return f"the nearest detector is {best!r}, which fits {fits[best]:.0%} of the keys; {source}"
    return source


def _sound(tensor: Tensor, key: str, path: Path) -> Tensor:
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_complex()
    if not plain or not bool(torch.isfinite(tensor).all()):
        raise ModelFileError(f"{path}: expected finite numbers under {key!r}: the file is damaged, get it again")
    return tensor
