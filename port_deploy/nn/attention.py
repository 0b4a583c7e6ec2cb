# SPDX-License-Identifier: Apache-2.0
"""What a model's joints attend to (Fig. 6): the attention of every layer, averaged over heads and poses.

May use: nn.line, nn.port, weights, torch. Test: tests/test_report.py.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from port_deploy.nn.line import Refine
from port_deploy.nn.port import EncoderLayer, Port
from port_deploy.weights import Model


@torch.no_grad()
def mean_attention(
    model: Model, joints: NDArray[Any], confidence: NDArray[Any], threshold: float
) -> NDArray[np.float64]:
    """Attention of each layer as the model reads these poses.

    Args:
        model: The model.
        joints: [B, N, 2] pixels.
        confidence: [B, N].
        threshold: δ.

    Returns:
        [L, N, N], rows (the joint that asks) sum to 1.
    """
    port = Port(model.spec.config, model.spec.skeleton)
    for name, parameter in port.named_parameters():
        parameter.copy_(torch.from_numpy(model.tensors[name]))
    maps: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        encoder = cast(EncoderLayer, layer)
        maps.append(encoder.attention(encoder.norm1(inputs[0])).double().mean((0, 1)))

    for layer in port.layers:
        layer.register_forward_pre_hook(keep)
    line = Refine(model.spec, port)
    line(torch.from_numpy(np.array(joints)), torch.from_numpy(np.array(confidence)), torch.tensor([threshold]))
    return cast("NDArray[np.float64]", torch.stack(maps).numpy())
