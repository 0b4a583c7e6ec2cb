# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose matrices are made orthogonal before they are applied; AdamW for whatever is no large matrix.

A gradient of an attention or MLP weight has a few large singular values; with all of them set to one, every direction
is learnt at the same pace (Jordan et al. 2024; the scale that makes AdamW's learning rate fit is Liu et al.'s, 2025).
May use: torch. Test: tests/test_muon.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 16
"""Weights with fewer rows or columns than this are AdamW's."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that takes every singular value to about 1 in five steps (Jordan et al. 2024)."""


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrices [M, r, c] with singular values of about 1 (0.7 to 1.2), computed in ``dtype``."""
    a, b, c = COEFFICIENTS
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)).to(dtype)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.transpose(1, 2)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x if wide else x.transpose(1, 2)
    return result.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """The optimiser.

    Args:
        parameters: All that is learnt. A weight [K, in, out] counts as one matrix [K * in, out].
        lr: Learning rate, on AdamW's scale.
        weight_decay: Decoupled, as AdamW's.
        momentum: Of the matrices (Nesterov's).
        betas: Of AdamW.
        dtype: Of the orthogonalisation's products; bfloat16 is enough.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999), dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.momentum, self.betas, self.dtype = momentum, betas, dtype
        every = list(parameters)
        large = [p for p in every if p.ndim >= 2 and min(p.shape[-2:]) >= SMALLEST]
        chosen = {id(p) for p in large}
        small = [p for p in every if id(p) not in chosen]
        groups = [{"params": part, "large": part is large} for part in (large, small) if part]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; parameters without gradient stay."""
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            for parameter in live:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            (self._step_large if group["large"] else self._step_small)(live, group["lr"])

    def _step_large(self, parameters: list[Tensor], lr: float) -> None:
        shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"].lerp_(gradient, 1 - self.momentum)
            ahead = gradient.lerp(average, self.momentum).flatten(0, -2)
            shapes.setdefault((ahead.shape[0], ahead.shape[1]), []).append((parameter, ahead))
        for (rows, columns), members in shapes.items():
            updates = orthogonal(torch.stack([m for _, m in members]), self.dtype)
            for (parameter, _), update in zip(members, updates, strict=True):
                parameter.sub_(update.view_as(parameter), alpha=lr * 0.2 * max(rows, columns) ** 0.5)

    def _step_small(self, parameters: list[Tensor], lr: float) -> None:
        first, second = self.betas
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            done = int(state["step"])
            mean = state["exp_avg"].lerp_(gradient, 1 - first)
            square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
            size = (square / (1 - second**done)).sqrt_().add_(1e-8)
            parameter.addcdiv_(mean, size, value=-lr / (1 - first**done))
