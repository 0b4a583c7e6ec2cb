# SPDX-License-Identifier: Apache-2.0
"""How a model is trained: every option of a run, its defaults and its limits.

May use: errors, nn.data. Test: tests/test_train.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from port_deploy.errors import InputError
from port_deploy.nn.data import DataSpec


@dataclass(frozen=True)
class TrainOptions:
    """What a run does.

    Attributes:
        data: The files and their weights.
        hold_out: Field of a file -> values that are held out.
        seed: Decides initial weights, order, cameras and corruption.
        epochs: How often ``epoch_poses`` poses are drawn.
        epoch_poses: Poses in an epoch; 0: as many as there are to train on.
        batch: Poses in a step.
        optimiser: ``adam``, ``adamw`` or ``muon``.
        lr: Learning rate after the warm-up; falls to 0 along a cosine.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Of AdamW.
        clip: Largest gradient norm.
        average: Decay of the weights' moving average, which is what is kept; 0 keeps the weights themselves.
        loss: ``squared`` (eq. 12) or ``distance``.
        masking: What ``paper`` training masks: ``random`` joints, or, ``simulated``, those that the simulated detector
            of ``soft`` training is unsure of, with its errors; ``soft`` knows the latter alone.
        mask_ratio: Part of the joints that ``random`` masking takes.
        masked_noise: Location error of joints under ``random`` masking, in sizes of the pose.
        start: A model file whose weights are the initial ones, of any skeleton; None: random weights.
        simulate: Numbers of the simulated detector that are not the skeleton's own (`nn.detector_model`).
        store: ``fp32``, or ``fp16``: the weights that are kept are rounded (`weights.rounded`), and the file is half as
            large.
        precision: ``fp32``, or ``bf16`` for the encoder's matrix products in training.
        variance_only: Nothing learns but the variance of the model ``start`` (nn/train_variance.py).
    """

    data: tuple[DataSpec, ...]
    hold_out: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seed: int = 0
    epochs: int = 100
    epoch_poses: int = 0
    batch: int = 128
    optimiser: str = "adam"
    lr: float = 5e-4
    warmup_steps: int = 1000
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float = 0.0
    loss: str = "squared"
    masking: str = "random"
    mask_ratio: float = 0.4
    masked_noise: float = 0.5
    start: str | None = None
    simulate: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    store: str = "fp32"
    precision: str = "fp32"
    variance_only: bool = False

    def __post_init__(self) -> None:
        whole = {"epochs": 1, "epoch_poses": 0, "batch": 1, "warmup_steps": 0, "seed": 0}
        for name, low in whole.items():
            if getattr(self, name) < low:
                raise InputError(f"expected {name} of at least {low}, got {getattr(self, name)}")
        ranges = {"lr": (0.0, 1.0), "clip": (0.0, math.inf), "mask_ratio": (0.0, 1.0)}
        for name, (above, high) in ranges.items():
            if not above < getattr(self, name) <= high:
                raise InputError(f"expected {name} above {above:g} and up to {high:g}, got {getattr(self, name)}")
        for name, high in (("weight_decay", 1.0), ("average", 0.99999), ("masked_noise", 10.0)):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"expected {name} from 0 to {high:g}, got {getattr(self, name)}")
        choices_of = {
            "optimiser": ("adam", "adamw", "muon"),
            "loss": ("squared", "distance"),
            "store": ("fp32", "fp16"),
            "masking": ("random", "simulated"),
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise InputError(f"expected {name} to be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not self.data:
            raise InputError("expected at least one data file")

    @classmethod
    def preset(cls, kind: str, **changes: Any) -> TrainOptions:
        """The paper's hyperparameters for ``paper``; for ``soft`` and ``variance_only`` those that measured best."""
        soft: dict[str, Any] = {}
        if kind == "soft":
            soft = {"optimiser": "adamw", "lr": 1.5e-3, "batch": 64, "weight_decay": 0.01, "average": 0.999}
            soft["loss"] = "distance"
        if changes.get("variance_only"):
            soft = {"lr": 5e-2, "batch": 256, "average": 0.99, "epochs": 3, "epoch_poses": 51200, "warmup_steps": 20}
        return cls(**(soft | changes))

    def to_json(self) -> dict[str, Any]:
        """The options as plain JSON values, without the data (`Source.facts` describe those)."""
        values = asdict(self)
        del values["data"]
        values["start"] = self.start and Path(self.start).name
        for name in ("variance_only", "masking"):
            if values[name] == TrainOptions.__dataclass_fields__[name].default:
                del values[name]  # what other runs wrote before it was there can be resumed
        values["simulate"] = {k: list(v) for k, v in self.simulate.items()}
        values["hold_out"] = {k: list(v) for k, v in self.hold_out.items()}
        return values
