# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: one safetensors file with weights, their average, optimiser state and history.

Written whole or not at all, read without pickle. May use: errors, files, safetensors, torch. Test: tests/test_train.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from port_deploy.errors import InputError, ModelFileError
from port_deploy.files import write_bytes

METADATA_KEY = "port_train"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Epochs done.
        step: Optimiser steps done.
        best_score: Smallest held-out score so far.
        best_epoch: The epoch that reached it.
        history: One entry an epoch: losses, scores, learning rate.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = float("inf")
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    average: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    recipe: Mapping[str, Any],
) -> None:
    """Write everything that `load_checkpoint` needs to go on as if nothing had happened."""
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in model.named_parameters()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{name}.{key}"] = torch.as_tensor(value).detach().clone().contiguous()
    text = json.dumps({"progress": vars(progress), "recipe": dict(recipe)}, ensure_ascii=True)
    write_bytes(path, save(tensors, {METADATA_KEY: text}))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
) -> Progress:
    """Put a run back where its checkpoint left it.

    Raises:
        InputError: There is no checkpoint, or it is of another run (``recipe`` differs; the message says where).
        ModelFileError: The file is not a checkpoint.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path} to resume from: start without --resume")
    try:
        with safe_open(str(path), "pt") as file:
            stored = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        differing = sorted(k for k in set(recipe) | set(stored["recipe"]) if recipe.get(k) != stored["recipe"].get(k))
        if differing:
            raise InputError(f"{path} is of another run: {', '.join(differing)} differ: resume with the same options")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                prefix = f"optimiser.{name}."
                state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                if state:
                    optimiser.state[parameter] = state
            for name in average:
                average[name].copy_(tensors[f"average.{name}"])
        return Progress(**stored["progress"])
    except InputError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ModelFileError(f"{path} is not a checkpoint of this model: {error}: start without --resume") from error
