# SPDX-License-Identifier: Apache-2.0
"""PORT as the paper writes it, eqs. (4)-(11). In float64 this module is the definition that all else is tested against.

Written for reading, not for speed: one line per equation. Works inside TorchScript, the ONNX exporter and torch.export.
Precision lives in the parameters: every matrix product runs in the dtype of its weight, and the residual stream, layer
normalisation, softmax, embedding and head stay in the dtype of the input (`Port.lower`).
May use: config, torch. Test: tests/test_nn_port.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from port_deploy.config import PortConfig
from port_deploy.skeleton import Skeleton


class MSGC(nn.Module):
    """Multi-scale graph convolution, eq. (4): the mean over k in K of Ã^k X W_k, no bias."""

    def __init__(self, hop_matrices: Tensor, in_channels: int, out_channels: int, shared: bool) -> None:
        super().__init__()
        self.register_buffer("hops", hop_matrices, persistent=False)  # [K, N, N]
        self.weight = nn.Parameter(torch.empty(1 if shared else len(hop_matrices), in_channels, out_channels))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, in] -> [B, N, out], in the weight's dtype."""
        rows = x.to(self.weight.dtype).unsqueeze(1)  # [B, 1, N, in]
        aggregated: Tensor = torch.matmul(self.hops, rows)  # type: ignore[arg-type]
        return torch.matmul(aggregated, self.weight).mean(1)


class Linear(nn.Linear):
    """A linear layer that computes in its weight's dtype and answers in its input's."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class EncoderLayer(nn.Module):
    """Pre-norm encoder layer, eqs. (6)-(9): MSGC projections, multi-head attention, MLP with ReLU."""

    def __init__(self, config: PortConfig, hop_matrices: Tensor) -> None:
        super().__init__()
        d, shared = config.width, config.share_hop_weights
        self.heads, self.head_dim = config.heads, config.head_dim
        self.scale = 1.0 / math.sqrt(config.head_dim if config.attention_scale == "head_dim" else d)
        self.norm1 = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.q = MSGC(hop_matrices, d, config.inner, shared)
        self.k = MSGC(hop_matrices, d, config.inner, shared)
        self.v = MSGC(hop_matrices, d, config.inner, shared)
        self.out = Linear(config.inner, d)
        self.norm2 = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.fc1 = Linear(d, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, d)

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights of every head, eq. (7) without V: [B, N, D] -> [B, heads, N, N] (Fig. 6)."""
        q, k = self.split(self.q(x)) * self.scale, self.split(self.k(x))
        return torch.softmax(torch.matmul(q, k.transpose(-1, -2)).to(x.dtype), dim=-1)

    def split(self, x: Tensor) -> Tensor:
        """[B, N, heads * head_dim] -> [B, heads, N, head_dim]."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def forward(self, z: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = self.norm1(z)
        v = self.split(self.v(x))
        mixed = torch.matmul(self.attention(x).to(v.dtype), v)  # [B, heads, N, head_dim]
        z = z + self.out(mixed.transpose(1, 2).flatten(2)).to(z.dtype)  # eq. (8)
        hidden: Tensor = torch.relu(self.fc1(self.norm2(z)))
        z = z + self.fc2(hidden)  # eq. (9)
        return z


class Head(nn.Module):
    """Regression head with squeeze-and-excitation over the joints, eqs. (10)-(11)."""

    def __init__(self, config: PortConfig) -> None:
        super().__init__()
        self.se1 = Linear(config.width, config.se_width)
        self.se2 = Linear(config.se_width, config.width)
        self.out = Linear(config.width, config.outputs)

    def forward(self, z: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, 2], or 3: with log σ last."""
        gate = torch.sigmoid(self.se2(torch.relu(self.se1(z.mean(1)))))  # eq. (10): [B, D]
        joints: Tensor = self.out(gate.unsqueeze(1) * z)  # eq. (11)
        return joints


class Port(nn.Module):
    """PORT: framed joints in, reconstructed joints in the same frame out.

    Args:
        config: Shape of the network.
        skeleton: Its bones give the graph.
        dtype: float32, or float64 for the oracle.
    """

    def __init__(self, config: PortConfig, skeleton: Skeleton, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        hop_matrices = torch.from_numpy(skeleton.hop_matrices(config.hops)).to(dtype)
        self.embed = MSGC(hop_matrices, config.input_channels, config.width, config.share_hop_weights)
        self.residual, self.variance = config.residual, config.variance
        self.register_parameter(
            "mask_embedding", nn.Parameter(torch.zeros(config.width)) if config.mask_embedding else None
        )
        self.layers = nn.ModuleList(EncoderLayer(config, hop_matrices) for _ in range(config.layers))
        self.head = Head(config)
        self.to(dtype)

    @torch.jit.unused
    def lower(self, dtype: torch.dtype) -> Port:
        """Put the encoder's matrix products into ``dtype`` (float16 or bfloat16), in place."""
        for layer in self.layers:
            for name in ("q", "k", "v", "out", "fc1", "fc2"):
                getattr(layer, name).to(dtype)
        return self

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct every joint.

        Args:
            inputs: [B, N, input_channels] framed (x, y) or (x, y, confidence).
            mask: [B, N] bool, True where the joint is masked.

        Returns:
            [B, N, 2] framed joints; with a variance [B, N, 3], log σ of each joint last, as the network has it.
        """
        z = self.embed(inputs)  # eq. (5)
        if self.mask_embedding is not None:
            z = torch.where(mask.unsqueeze(-1), self.mask_embedding, z)  # type: ignore[arg-type]
        for layer in self.layers:
            z = layer(z)
        return self.place(inputs, self.head(z))

    def place(self, inputs: Tensor, output: Tensor) -> Tensor:
        """What the head says [B, N, 2 or 3] with the input joints added where it is a correction of them."""
        if not self.residual:
            return output
        if self.variance:
            return torch.cat([inputs[..., :2] + output[..., :2], output[..., 2:]], -1)
        return inputs[..., :2] + output
