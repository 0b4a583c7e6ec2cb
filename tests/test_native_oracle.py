# SPDX-License-Identifier: Apache-2.0
"""The C++ core against the float64 oracle: every skeleton, kind, frame, codec, field, instruction set, precision."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from port_deploy import decode
from port_deploy.backends import native
from port_deploy.backends.base import HostBuffers
from port_deploy.skeleton import bundled_skeletons
from port_deploy.verify import Problem, make_problems, verify
from port_deploy.weights import Model

torch = pytest.importorskip("torch", reason="the oracle is PyTorch in float64")

from port_deploy.nn.line import Decode  # noqa: E402

INFO = native.build_info()
ISAS = INFO["available_isas"]


@cache
def model(kind: str, skeleton: str = "hand21", **changes: Any) -> Model:
    return random_model(kind, skeleton, **changes)


SOLVED: dict[tuple[bytes, str], tuple[Problem, ...]] = {}


def problems(source: Model, kind: str) -> tuple[Problem, ...]:
    """The oracle's answers, once per model."""
    key = source.data, kind
    if key not in SOLVED:
        SOLVED[key] = make_problems(source, kind)
    return SOLVED[key]


def check(source: Model, kind: str, precision: str = "fp32", isa: str | None = None, threads: int = 2) -> None:
    backend = native.load(source, threads=threads, precision=precision, isa=isa)
    verify(backend, problems(source, kind), precision).check(f"{isa or 'best'} {precision}")


@pytest.mark.parametrize("frame", ["visible", "paper"])
@pytest.mark.parametrize("kind", ["soft", "paper"])
@pytest.mark.parametrize("skeleton", bundled_skeletons())
def test_every_skeleton_kind_and_frame(skeleton: str, kind: str, frame: str) -> None:
    check(model(kind, skeleton, frame=frame), "joints")


@pytest.mark.parametrize("codec", ["softargmax", "softargmax-sum", "argmax"])
@pytest.mark.parametrize("kind", ["soft", "paper"])
def test_every_codec(kind: str, codec: str) -> None:
    check(model(kind, codec=codec), "heatmaps")


FIELDS: dict[str, dict[str, Any]] = {
    "refine all": {"refine": "all"},
    "refine all, fused": {"refine": "all", "fusion": 0.3},
    "fusion": {"fusion": 0.5},
    "no fusion": {"fusion": 0.0},
    "zeroed": {"masked_coordinates": "zero"},
    "min_visible": {"min_visible": 12},
    "max_masked": {"max_masked": 3},
    "divisor": {"confidence_divisor": 0.7},
    "shared hops": {"share_hop_weights": True},
    "one hop": {"hops": (1,)},
    "four hops": {"hops": (0, 1, 2, 5)},
    "scale by width": {"attention_scale": "width"},
    "small heads": {"head_dim": 16},
    "one head": {"heads": 1, "head_dim": 24},
    "wide": {"width": 96, "mlp_ratio": 3, "se_reduction": 2},
    "narrow and deep": {"width": 8, "layers": 7, "heads": 3, "head_dim": 8, "mlp_ratio": 1, "se_reduction": 8},
    "one layer": {"layers": 1},
    "eps": {"layer_norm_eps": 1e-3},
    "three channels, no residual": {"input_channels": 3, "residual": False, "mask_embedding": True},
    "residual, two channels": {"input_channels": 2, "residual": True},
    "frame size": {"frame": "paper", "frame_size": (192.0, 320.0)},
    "threshold": {"threshold": 0.55},
}


@pytest.mark.parametrize("kind", ["soft", "paper"])
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_honoured(name: str, kind: str) -> None:
    check(model(kind, "mpii16", **FIELDS[name]), "joints")


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
@pytest.mark.parametrize("source", ["soft", "paper"])
def test_every_instruction_set(isa: str, kind: str, source: str) -> None:
    if isa not in ISAS:
        pytest.skip(f"{isa} is not to be had here: {', '.join(ISAS)} are")
    check(model(source), kind, isa=isa)


@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
@pytest.mark.parametrize("source", ["soft", "paper"])
def test_bf16(kind: str, source: str) -> None:
    if not INFO["bf16"]:
        pytest.skip("this processor has no AVX512_BF16")
    check(model(source), kind, "bf16")


def test_float16_heatmaps_against_the_oracle() -> None:
    """The oracle decodes the float16 values themselves."""
    from port_deploy.backends.torch_ import oracle

    source = model("soft")
    asked = problems(source, "heatmaps")[0]
    half = np.where(np.abs(asked.questions.first) < 6e4, asked.questions.first, np.nan).astype(np.float16)
    joints, confidence, mask = oracle(source).compute_heatmaps(half, asked.questions.second, source.spec.threshold)
    n = source.spec.joints
    out = HostBuffers(np.empty((len(half), n, 2), "f4"), np.empty((len(half), n), "f4"), np.empty((len(half), n), "?"))
    native.load(source, threads=1).run(half, asked.questions.second, source.spec.threshold, out)
    clear = asked.clear & (np.abs(out.confidence - confidence) == 0).all(1)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(out.mask[clear], mask[clear])
    np.testing.assert_allclose(out.joints[clear], joints[clear], rtol=0, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 5),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    codec=st.sampled_from(["softargmax", "softargmax-sum", "argmax"]),
    temperature=st.floats(0.5, 100),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_decode_of_any_size(
    batch: int, height: int, width: int, codec: str, temperature: float, half: bool, seed: int
) -> None:
    import torch

    from port_deploy.nn.line import Decode

    rng = np.random.default_rng(seed)
    maps = rng.normal(0, 0.3, (batch, 3, height, width)).astype(np.float16 if half else np.float32)
    out = HostBuffers(np.empty((batch, 3, 2), "f4"), np.empty((batch, 3), "f4"), np.empty((batch, 3), "?"))
    native.decode(maps, codec, temperature, 0.3, out)
    if batch == 0:
        return
    joints, _ = Decode(codec, float(np.float32(temperature)))(torch.from_numpy(maps.astype(np.float64)))
    # float32 sums of clipped noise: an error of 1e-6 relative to the map's width
    np.testing.assert_allclose(out.joints, joints.numpy(), rtol=0, atol=1e-3)
    x = np.rint(out.joints[..., 0]).clip(0, width - 1).astype(int)
    y = np.rint(out.joints[..., 1]).clip(0, height - 1).astype(int)
    read = np.take_along_axis(maps.reshape(batch, 3, -1), (y * width + x)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(out.confidence, read.astype(np.float32).clip(0, 1))
    np.testing.assert_array_equal(out.mask, out.confidence < np.float32(0.3))


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(0, 40), threads=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_any_batch_equals_its_poses_alone(batch: int, threads: int, seed: int) -> None:
    source = model("soft", "coco17", layers=2, head_dim=16)
    rng = np.random.default_rng(seed)
    joints = rng.uniform(0, 256, (batch, 17, 2)).astype("f4")
    joints[rng.random((batch, 17)) < 0.05] = np.nan
    confidence = rng.random((batch, 17)).astype("f4")

    def run(backend: native.NativeBackend, rows: slice) -> list[bytes]:
        j, c = joints[rows], confidence[rows]
        out = HostBuffers(np.empty_like(j), np.empty_like(c), np.empty(c.shape, "?"))
        backend.refine(j, c, 0.3, out)
        return [a.tobytes() for a in (out.joints, out.confidence, out.mask)]

    whole = run(native.load(source, threads=threads), slice(None))
    alone = native.load(source, threads=1)
    parts = [run(alone, slice(i, i + 1)) for i in range(batch)]
    assert whole == [b"".join(p[k] for p in parts) for k in range(3)]


def test_both_readers_read_the_same_card() -> None:
    for source in (model("soft"), model("paper", "mpii16", **FIELDS["frame size"]), model("soft", fusion=0.25)):
        card, spec = native.load(source)._native.card, source.spec
        for field in ("name", "codec", "frame", "refine", "min_visible", "max_masked"):
            assert card[field] == getattr(spec, field)
        for field in ("temperature", "threshold", "fusion", "confidence_divisor"):
            assert card[field] == pytest.approx(getattr(spec, field), rel=1e-6)
        assert card["joint_names"] == list(spec.skeleton.names)
        assert card["skeleton"] == spec.skeleton.name
        assert card["parameter_count"] == spec.config.parameter_count()


def test_an_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT_FORCE_ISA", "generic")
    assert native.load(model("soft")).isa == "generic"
    assert native.build_info()["selected_isa"] == "generic"
    monkeypatch.setenv("PORT_FORCE_ISA", "mmx")
    state = native.availability()
    assert not state.available
    assert "mmx" in state.detail
    with pytest.raises(native.BackendUnavailableError, match="mmx"):
        native.load(model("soft"))


@pytest.mark.parametrize("codec", ["softargmax", "softargmax-sum", "argmax"])
def test_maps_of_minus_infinity_answer_as_the_oracle_does(codec: str) -> None:
    maps = np.full((1, 3, 8, 8), -np.inf, np.float32)
    maps[0, 1] = 0.2
    maps[0, 1, 2, 3], maps[0, 1, 4, 4] = -np.inf, 0.9
    maps[0, 2] = -5.0
    joints, confidence = Decode(codec, 40.0)(torch.from_numpy(maps).double())
    out = decode(maps, codec=codec)
    np.testing.assert_allclose(out.joints, joints.numpy(), atol=1e-4)
    np.testing.assert_array_equal(out.confidence, confidence.numpy().astype(np.float32))
