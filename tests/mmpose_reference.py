# SPDX-License-Identifier: Apache-2.0
"""The recorded answers of real MMPose: weights from a recipe, inputs, outputs. Used where they are."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from port_deploy.nn.detectors import Detector, DetectorSpec
from port_deploy.nn.detectors.family import FAMILY, Member, deconvolved
from port_deploy.nn.detectors.mobilenetv2 import MobileNetV2
from port_deploy.skeleton import Skeleton

FOLDER = "reference/mmpose"

FILES = {
    "hrnet_w32": "body_hrnet_w32",
    "hrnet_w48": "body_hrnet_w48",
    "hrnetv2_w18": "hand_hrnetv2_w18",
    "mobilenetv2": "hand_mobilenetv2",
    "resnet50": "hand_res50",
    "rtmpose_s": "rtmpose_s",
    "rtmpose_m": "rtmpose_m",
}

TINY = Member(deconvolved(partial(MobileNetV2, 0.125), (4, 4, 4)), False, ("tiny_onehand10k_64x64",))
"""The network of the small checkpoint files; tests put it into the family."""


class Reference:
    """The folder, opened."""

    def __init__(self, find: Callable[[str], Path]) -> None:
        self.folder = find(FOLDER)
        located = importlib.util.spec_from_file_location("mmpose_recipe", self.folder / "recipe.py")
        assert located is not None
        assert located.loader is not None
        self.recipe = importlib.util.module_from_spec(located)
        located.loader.exec_module(self.recipe)

    def json(self, file: str) -> Any:
        return json.loads((self.folder / f"{file}.json").read_text("utf-8"))

    def arrays(self, file: str) -> Mapping[str, Any]:
        return np.load(self.folder / f"{file}.npz")

    def input(self, height: int, width: int) -> torch.Tensor:
        return torch.from_numpy(self.recipe.model_input(2, height, width, seed=0))

    def fill(self, detector: Detector) -> Detector:
        """The recipe's weights: they follow from key and shape alone."""
        state = detector.state_dict()
        filled = {k: self.recipe.fill(k, v.shape, str(v.dtype).removeprefix("torch.")) for k, v in state.items()}
        detector.load_state_dict({k: torch.from_numpy(v) for k, v in filled.items()})
        return detector

    def detector(self, name: str, size: tuple[int, int], skeleton: str, flip_test: bool = False) -> Detector:
        return self.fill(blank(name, size, skeleton, flip_test))


def blank(name: str, size: tuple[int, int] = (256, 256), skeleton: str = "hand21", flip_test: bool = False) -> Detector:
    """A detector with PyTorch's initial weights."""
    target = "simcc" if FAMILY[name].simcc else "msra"
    return Detector(DetectorSpec(name, Skeleton.load(skeleton), size, target), flip_test=flip_test)
