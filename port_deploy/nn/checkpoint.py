# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training run: one safetensors file with weights, their average, optimiser state and history.

Written whole or not at all, read without pickle. May use: errors, files, safetensors, torch. Test: tests/test_train.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
MOST_DIFFERENCES = 3
LONGEST_SHOWN = 40
_ABSENT = object()


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


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Where two recipes differ, e.g. ``epochs: 1 in the checkpoint, 2 now``: at most MOST_DIFFERENCES; empty if equal.

    Args:
        before: The checkpoint's, plain JSON values.
        now: This run's, likewise.
    """
    first, second = dict(_flat(before)), dict(_flat(now))
    found = [k for k in dict.fromkeys((*second, *first)) if first.get(k, _ABSENT) != second.get(k, _ABSENT)]
    parts = [
        f"{_named(k)}: {_shown(first.get(k, _ABSENT))} in the checkpoint, {_shown(second.get(k, _ABSENT))} now"
        for k in found[:MOST_DIFFERENCES]
    ]
    more = len(found) - MOST_DIFFERENCES
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _flat(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every plain value of a recipe, and where it stands; what is empty is not there."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, (*place, str(key)))
    elif isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        for number, inner in enumerate(value, 1):
            yield from _flat(inner, (*place, str(number)))
    else:
        yield place, value


def _named(place: tuple[str, ...]) -> str:
    """``epochs``, ``config layers`` or ``data 1 file``: options and fields of the model go by their own names."""
    return " ".join(place[1:] if place[0] in ("options", "model") else place)


def _shown(value: Any) -> str:
    text = "none" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def load_checkpoint(
    path: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
) -> Progress:
    """Put a run back where its checkpoint left it.

    Raises:
        InputError: There is no checkpoint, or it is of another run (the message says where ``recipe`` differs).
        ModelFileError: The file is not a checkpoint.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path} to resume from: start without --resume")
    try:
        with safe_open(str(path), "pt") as file:
            stored = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        differing = differences(stored["recipe"], recipe)
        if differing:
            raise InputError(f"{path} is of another run: {differing}: resume with the same options")
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
