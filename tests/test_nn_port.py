# SPDX-License-Identifier: Apache-2.0
"""nn/port.py, the definition, against eqs. (4)-(11) written out once more in NumPy, joint by joint."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy.config import ModelSpec, PortConfig
from port_deploy.skeleton import Skeleton, bundled_skeletons
from port_deploy.weights import Model

torch = pytest.importorskip("torch")

from port_deploy.nn.port import Port  # noqa: E402


def port_of(model: Model, dtype: Any = torch.float64) -> Port:
    port = Port(model.spec.config, model.spec.skeleton, dtype)
    port.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in model.tensors.items()})
    return port.eval()


def by_hand(spec: ModelSpec, w: dict[str, np.ndarray], inputs: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Eqs. (4)-(11) for one pose: inputs [N, C], mask [N]."""
    c = spec.config
    a = spec.skeleton.adjacency()

    def msgc(x: np.ndarray, name: str) -> np.ndarray:  # eq. (4)
        total = 0
        for i, k in enumerate(c.hops):
            weight = w[name][0 if c.share_hop_weights else i]
            total = total + np.linalg.matrix_power(a, k) @ x @ weight
        return total / len(c.hops)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + c.layer_norm_eps)
        return scaled * w[name + ".weight"] + w[name + ".bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    z = msgc(inputs, "embed.weight")  # eq. (5)
    if c.mask_embedding:
        z[mask] = w["mask_embedding"]
    for layer in range(c.layers):
        p = f"layers.{layer}."
        x = norm(z, p + "norm1")
        q, k, v = (msgc(x, p + f"{name}.weight") for name in "qkv")  # eq. (6)
        heads = []
        for h in range(c.heads):
            part = slice(h * c.head_dim, (h + 1) * c.head_dim)
            d = c.head_dim if c.attention_scale == "head_dim" else c.width
            score = q[:, part] @ k[:, part].T / np.sqrt(d)
            weight = np.exp(score - score.max(-1, keepdims=True))
            heads.append(weight / weight.sum(-1, keepdims=True) @ v[:, part])  # eq. (7)
        z = z + linear(np.concatenate(heads, -1), p + "out")  # eq. (8)
        z = z + linear(np.maximum(linear(norm(z, p + "norm2"), p + "fc1"), 0), p + "fc2")  # eq. (9)
    gate = 1 / (1 + np.exp(-linear(np.maximum(linear(z.mean(0), "head.se1"), 0), "head.se2")))  # eq. (10)
    joints = linear(gate * z, "head.out")  # eq. (11)
    return joints + inputs[:, :2] if c.residual else joints


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_hop_weights": True, "hops": (0, 1, 3)},
        {"attention_scale": "width", "heads": 2, "head_dim": 24},
        {"width": 24, "mlp_ratio": 3, "se_reduction": 2, "layers": 2, "layer_norm_eps": 1e-3},
    ],
)
@pytest.mark.parametrize("kind", ["soft", "paper"])
@pytest.mark.parametrize("skeleton", ["hand21", "mpii16"])
def test_it_is_the_equations(kind: str, skeleton: str, changes: dict[str, Any]) -> None:
    model = random_model(kind, skeleton, **changes)
    rng = np.random.default_rng(0)
    n, channels = model.spec.joints, model.spec.config.input_channels
    inputs, mask = rng.normal(size=(3, n, channels)), rng.random((3, n)) < 0.4
    weights = {k: v.astype(np.float64) for k, v in model.tensors.items()}
    with torch.no_grad():
        got = port_of(model)(torch.from_numpy(inputs), torch.from_numpy(mask)).numpy()
    expected = np.stack([by_hand(model.spec, weights, i, m) for i, m in zip(inputs, mask, strict=True)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["soft", "paper"])
@pytest.mark.parametrize("skeleton", bundled_skeletons())
def test_the_config_lists_every_tensor(kind: str, skeleton: str) -> None:
    config = PortConfig.preset(kind)
    port = Port(config, Skeleton.load(skeleton))
    assert {k: tuple(v.shape) for k, v in port.state_dict().items()} == config.parameter_shapes()
    assert sum(p.numel() for p in port.parameters()) == config.parameter_count()


def test_the_paper_has_half_a_million_parameters() -> None:
    assert round(PortConfig.preset("paper").parameter_count() / 1e6, 2) == 0.53  # Table II: 0.5 M


def test_attention_is_a_distribution() -> None:
    port = port_of(random_model("paper"))
    with torch.no_grad():
        weights = port.layers[0].attention(torch.randn(2, 21, 64, dtype=torch.float64))
    assert weights.shape == (2, 4, 21, 21)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 21, dtype=torch.float64))


def test_only_masked_rows_take_the_mask_embedding() -> None:
    model = random_model("paper")
    port = port_of(model)
    inputs = torch.randn(1, 21, 2, dtype=torch.float64)
    none, some = torch.zeros(1, 21, dtype=torch.bool), torch.zeros(1, 21, dtype=torch.bool)
    some[0, 4] = True
    with torch.no_grad():
        before = port(inputs, none)
        port.mask_embedding += 1
        assert torch.equal(port(inputs, none), before)
        assert not torch.allclose(port(inputs, some), before)


def test_a_soft_model_of_zero_weights_changes_nothing() -> None:
    config = PortConfig.preset("soft")
    port = Port(config, Skeleton.load("hand21"))
    with torch.no_grad():
        port.head.out.weight.zero_()
        port.head.out.bias.zero_()
        inputs = torch.randn(2, 21, 3)
        assert torch.equal(port(inputs, torch.zeros(2, 21, dtype=torch.bool)), inputs[..., :2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lowering_keeps_the_residual_stream_in_float32(dtype: Any) -> None:
    model = random_model("soft")
    full, low = port_of(model, torch.float32), port_of(model, torch.float32).lower(dtype)
    assert low.layers[0].q.weight.dtype == low.layers[0].fc1.weight.dtype == dtype
    assert low.layers[0].norm1.weight.dtype == low.head.out.weight.dtype == torch.float32
    inputs, mask = torch.randn(4, 21, 3), torch.rand(4, 21) < 0.3
    with torch.no_grad():
        a, b = full(inputs, mask), low(inputs, mask)
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.2


def test_it_is_torchscript() -> None:
    port = port_of(random_model("paper", layers=1), torch.float32)
    stored = io.BytesIO()
    torch.jit.save(torch.jit.script(port), stored)
    stored.seek(0)
    inputs, mask = torch.randn(2, 21, 2), torch.rand(2, 21) < 0.3
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(stored)(inputs, mask), port(inputs, mask), atol=1e-5)
