# SPDX-License-Identifier: Apache-2.0
"""PORT's forward pass arranged for training on a CPU: the same parameters and values as nn/port.py, faster.

The joints of all poses become the rows of one matrix, the powers of the adjacency its columns, so that queries, keys
and values of a layer are one matrix product, in bfloat16 where that is wanted; attention has its own backward pass.
Forward and backward at batch 128 on one core of a shared Zen 5, µs a pose: nn/port.py 2,060, this 1,190, in bfloat16
460 (with `cli.train.keep_memory`; 570 without).
May use: nn.port, torch. Test: tests/test_train.py holds both against each other.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from port_deploy.nn.port import MSGC, EncoderLayer, Port


class Attention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d)) V of all heads, from and to rows of joints.

    The softmax is in float32: PyTorch's in bfloat16 takes seven times as long as the products around it where the last
    axis is no multiple of its vector (21 joints: 21 µs a pose and layer against 2.4), and so does its derivative.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, batch: int, heads: int, scale: float) -> Tensor:
        """[B * N, 3 * inner] to [B * N, inner]."""
        split = qkv.view(batch, -1, 3, heads, qkv.shape[-1] // (3 * heads))
        q, k, v = split.permute(2, 0, 3, 1, 4).contiguous()  # each [B, heads, N, head_dim]
        scores = torch.matmul(q.mul_(scale), k.transpose(-1, -2))
        weights = torch.softmax(scores, -1, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.matmul(weights.to(v.dtype), v).transpose(1, 2).reshape(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of ``qkv``."""
        q, k, v, weights = ctx.saved_tensors
        batch, heads, joints, head_dim = q.shape
        out = gradients[0].view(batch, joints, heads, head_dim).transpose(1, 2).contiguous()
        scores = torch.matmul(out, v.transpose(-1, -2)).to(weights.dtype)
        scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, weights.dtype).to(q.dtype)
        weights = weights.to(q.dtype)
        split = q.new_empty(batch, joints, 3, heads, head_dim)
        split[:, :, 0] = torch.matmul(scores, k).mul_(ctx.scale).transpose(1, 2)
        split[:, :, 1] = torch.matmul(scores.transpose(-1, -2), q).transpose(1, 2)
        split[:, :, 2] = torch.matmul(weights.transpose(-1, -2), out).transpose(1, 2)
        return split.view(batch * joints, -1), None, None, None


class FusedPort(nn.Module):
    """`Port` with fused products; gradients reach the parameters of ``port``.

    Args:
        port: The network whose parameters are used.
        dtype: Of the encoder's matrix products; the residual stream, LayerNorm, embedding and head stay in float32.
    """

    hops: Tensor

    def __init__(self, port: Port, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.port = port
        self.dtype = dtype
        hops = cast(Tensor, port.embed.hops)  # [K, N, N]
        if len(port.embed.weight) == 1:
            hops = hops.mean(0, keepdim=True)
        self.register_buffer("hops", hops.flatten(0, 1).contiguous(), persistent=False)  # [K * N, N]

    def aggregate(self, x: Tensor) -> Tensor:
        """The powers of the adjacency applied: [B, N, C] -> [B * N, K * C]."""
        batch, joints, channels = x.shape
        mixed = torch.matmul(self.hops.to(x.dtype), x).view(batch, -1, joints, channels)  # [B, K, N, C]
        return mixed.transpose(1, 2).reshape(batch * joints, -1)

    @staticmethod
    def weights(*layers: MSGC) -> Tensor:
        """The MSGC weights [K, in, out] of ``layers`` side by side, the mean over K in them: [K * in, sum of out]."""
        return torch.cat([m.weight.flatten(0, 1) for m in layers], 1) / len(layers[0].weight)

    def encode(self, layer: EncoderLayer, z: Tensor, batch: int) -> Tensor:
        """`EncoderLayer.forward`: [B * N, D] -> [B * N, D]."""
        dtype = self.dtype
        x = self.aggregate(layer.norm1(z).to(dtype).view(batch, -1, z.shape[-1]))
        qkv = x @ self.weights(layer.q, layer.k, layer.v).to(dtype)
        mixed = cast(Tensor, Attention.apply(qkv, batch, layer.heads, layer.scale))  # type: ignore[no-untyped-call]
        z = z + linear(mixed, layer.out.weight.to(dtype), layer.out.bias.to(dtype)).to(z.dtype)
        hidden = torch.relu(linear(layer.norm2(z).to(dtype), layer.fc1.weight.to(dtype), layer.fc1.bias.to(dtype)))
        return z + linear(hidden, layer.fc2.weight.to(dtype), layer.fc2.bias.to(dtype)).to(z.dtype)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """As `Port.forward`: [B, N, input_channels], [B, N] to [B, N, 2] (3 with a variance)."""
        port, batch = self.port, len(inputs)
        z = self.aggregate(inputs) @ self.weights(port.embed)
        if port.mask_embedding is not None:
            z = torch.where(mask.reshape(-1, 1), cast(Tensor, port.mask_embedding), z)
        for layer in port.layers:
            z = self.encode(cast(EncoderLayer, layer), z, batch)
        return port.place(inputs, port.head(z.view(batch, -1, z.shape[-1])))
