# SPDX-License-Identifier: Apache-2.0
"""``port-train --variance-only``: gives a trained model a variance, and leaves all else of it as it is, bit for bit.

Only the head's third row learns (D + 1 numbers, by Gaussian negative log-likelihood of the errors that the frozen model
makes on the simulated detector, in the joints that it changes, with its own fusion), so there is no backward pass
through the network and no memory of its forward pass.
May use: config, errors, weights, nn.*, torch. Test: tests/test_train_variance.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from port_deploy.config import ModelSpec
from port_deploy.errors import InputError
from port_deploy.nn.fused import FusedPort
from port_deploy.nn.line_std import RefineStd
from port_deploy.nn.mjm import Detection, gaussian_loss
from port_deploy.nn.options import TrainOptions
from port_deploy.nn.train import Trainer
from port_deploy.weights import Model, load_model

FIRST_STD = 0.15
"""σ that the row answers before it has learnt, in units of the frame: a usual error of a rebuilt joint."""

OUTPUT = "head.out"
"""The layer whose last row is trained."""


def variance_spec(model: Model) -> ModelSpec:
    """The specification of ``model`` with a variance; what was calibrated of one that it had before is gone."""
    return replace(model.spec, config=replace(model.spec.config, variance=True), std_scale=1.0)


class VarianceTrainer(Trainer):
    """One run that trains nothing but the variance.

    Args:
        options: ``variance_only``, and ``start``: the model, with or without a variance.
        output: As `Trainer`.

    Raises:
        InputError: ``start`` is missing, or there is nothing to train on.
    """

    chosen_by = "nll"

    def __init__(self, options: TrainOptions, output: Path) -> None:
        if not options.start:
            raise InputError("--variance-only needs the model that gets a variance: --start MODEL.safetensors")
        self.start = load_model(options.start)
        super().__init__(variance_spec(self.start), options, output)

    def losses(self, detection: Detection, joints: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Trainer.losses`; the loss is `gaussian_loss`."""
        refined, std, target = self.answers(detection, scale)
        recon = torch.where(target.unsqueeze(-1), refined, joints)
        return gaussian_loss(recon, joints, torch.where(target, std, torch.ones_like(std)), target), refined, target

    def answers(self, detection: Detection, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refined joints [B, N, 2] and their σ [B, N] in sizes of the pose; [B, N] bool, which of them count."""
        refined, changed, std = self.line(detection.joints * scale, detection.confidence, detection.threshold)
        return refined / scale, std / scale.squeeze(-1), detection.target & changed

    def scores(self, detection: Detection, joints: Tensor, scale: Tensor) -> tuple[dict[str, float], int]:
        """One source's held-out scores, of the joints below δ and of those above, and how many joints they are of.

        ``nll`` is the loss; ``within_1`` and ``within_2`` the per cent of joints no farther off than σ and 2 σ (39.3
        and 86.5 of an isotropic Gaussian).
        """
        refined, std, target = self.answers(detection, scale)
        mask = ~(detection.confidence >= detection.threshold)
        distance = (refined - joints).norm(dim=-1)
        loss = gaussian_loss(refined, joints, torch.where(target, std, torch.ones_like(std)), target)
        scores = {"nll": round(float(loss), 4)}
        for label, which in (("masked", target & mask), ("visible", target & ~mask)):
            for sigmas in (1, 2):
                within = distance[which] <= sigmas * std[which]
                share = round(100 * float(within.float().mean()), 2) if len(within) else 0.0
                scores[f"within_{sigmas}_{label}"] = share
        return scores, int(target.sum())

    def _start_from(self, model: Model) -> None:
        """The model's weights, with a row that answers FIRST_STD whatever it sees."""
        tensors = {k: torch.from_numpy(v.copy()) for k, v in model.tensors.items()}
        weight, bias = tensors[f"{OUTPUT}.weight"][:2], tensors[f"{OUTPUT}.bias"][:2]
        tensors[f"{OUTPUT}.weight"] = torch.cat([weight, torch.zeros_like(weight[:1])])
        tensors[f"{OUTPUT}.bias"] = torch.cat([bias, torch.full_like(bias[:1], math.log(FIRST_STD))])
        with torch.no_grad():
            self._load(tensors)

    def _line(self, dtype: torch.dtype) -> RefineStd:
        """The model's own line: σ is learnt of the joints that it changes, as it answers them."""
        return RefineStd(self.line_spec, FusedPort(self.port, dtype))  # type: ignore[arg-type]

    def _optimiser(self, dtype: torch.dtype) -> torch.optim.Optimizer:
        """Adam of the head's last layer, whose first two rows get a gradient of exactly 0, and so stay."""
        self.port.requires_grad_(False)
        output = self.port.head.out
        for parameter in (output.weight, output.bias):
            parameter.requires_grad_(True)
            parameter.register_hook(lambda gradient: gradient * _last_row(gradient))  # type: ignore[no-untyped-call]
        return torch.optim.Adam([output.weight, output.bias], lr=self.options.lr)

    def _card(self, scores: Mapping[str, Any]) -> ModelSpec:
        """The model's own card, with how the variance was trained and what it scored beside it."""
        learnt, start = super()._card(scores), self.start.spec
        training = {**start.training, "variance": dict(learnt.training)}
        return replace(self.spec, training=training, metrics={**start.metrics, "held_out_variance": dict(scores)})


def _last_row(gradient: Tensor) -> Tensor:
    rows = torch.zeros(len(gradient), *(1,) * (gradient.ndim - 1))
    rows[-1] = 1.0
    return rows
