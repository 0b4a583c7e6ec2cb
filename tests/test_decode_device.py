# SPDX-License-Identifier: Apache-2.0
"""`decode` and `decode_simcc` of arrays on a GPU as far as no GPU allows: what reaches the core, and what is refused.

In place of the core's CUDA part stands one that takes the same addresses, reads them as host memory and computes with
the processor; test_cuda_decode.py is for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from test_native_cuda import STREAM, OnDevice, memory

from port_deploy import Refined, _core, decode, decode_simcc
from port_deploy.backends import cuda_decode, native, native_cuda
from port_deploy.errors import BackendUnavailableError, InputError

RNG = np.random.default_rng(0)
CODECS = ("softargmax", "softargmax-sum", "argmax", "msra", "dark", "udp")
Axis = tuple[int, str, Sequence[int], Sequence[int]]


class Core:
    """The core's decodes of arrays on a GPU, by the processor."""

    Error = _core.Error

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def decode_on_device(self, maps: int, dtype: str, shape: Any, strides: Any, codec: str, temperature: float,
                         threshold: float, out: Sequence[int], device: int, stream: int) -> None:  # fmt: skip
        self.calls.append((device, stream))
        given = memory(maps, shape, dtype, (*strides, 1))
        _core.decode(given, codec, temperature, threshold, *written(out, shape))

    def decode_peaks_on_device(self, maps: int, dtype: str, shape: Any, strides: Any, codec: str, blur: int,
                               threshold: float, out: Sequence[int], device: int, stream: int) -> None:  # fmt: skip
        self.calls.append((device, stream))
        given = memory(maps, shape, dtype, (*strides, 1))
        _core.decode_peaks(given, codec, blur, threshold, *written(out, shape))

    def decode_simcc_on_device(self, x: Axis, y: Axis, split_ratio: float, score: str, threshold: float,
                               out: Sequence[int], device: int, stream: int) -> None:  # fmt: skip
        self.calls.append((device, stream))
        axes = [np.ascontiguousarray(memory(a, shape, dtype, (*strides, 1))) for a, dtype, shape, strides in (x, y)]
        _core.decode_simcc(*axes, split_ratio, score, threshold, *written(out, x[2]))


def written(addresses: Sequence[int], shape: Sequence[int]) -> list[np.ndarray]:
    kinds = ((*shape[:2], 2), "f4"), (shape[:2], "f4"), (shape[:2], "?")
    return [memory(a, *k) for a, k in zip(addresses, kinds, strict=True)]


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    stand_in = Core()
    monkeypatch.setattr(native, "_core", stand_in)
    return stand_in


def results(batch: int, joints: int, gpu: int | None = None) -> tuple[OnDevice, ...]:
    values = np.full((batch, joints, 2), -7, "f4"), np.full((batch, joints), -7, "f4"), np.zeros((batch, joints), "?")
    return tuple(OnDevice(v, gpu) for v in values)


def check(out: Sequence[OnDevice], wanted: Sequence[np.ndarray]) -> None:
    for got, want in zip(out, wanted, strict=True):
        np.testing.assert_array_equal(got.values, want)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_heatmaps_are_read_where_they_lie(codec: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RNG.random((3, 12, 20, 40), np.float32).astype(dtype)
    views = [np.ascontiguousarray(whole[:, :5]), whole[:, 7:, 2:18, 4:28], whole[:, 4::-1], whole[:, :5, ::2]]
    wanted = [decode(v, codec=codec, temperature=7.0, threshold=0.9, blur=13) for v in views]
    core = Core()
    monkeypatch.setattr(native, "_core", core)
    for maps, want in zip(views, wanted, strict=True):
        out = results(3, 5)
        result = decode(OnDevice(maps), codec=codec, temperature=7.0, threshold=0.9, blur=13, out=out)
        assert tuple(result) == out
        check(out, want)
    decode(OnDevice(maps, 1), codec=codec, out=results(3, 5, 1), stream=5)
    assert core.calls == [(0, STREAM)] * 4 + [(1, 5)]


@pytest.mark.parametrize("score", ["min", "mean"])
def test_simcc_vectors_are_read_where_they_lie(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = RNG.random((4, 9, 30), np.float32), RNG.random((4, 9, 41), np.float32).astype("f2")
    pairs = [(x, y), (x[::-1, ::2, 3:20], y[::-1, ::2, :9]), (x[:1, :, :1], y[:1])]
    wanted = [decode_simcc(*pair, split_ratio=3, score=score, threshold=0.97) for pair in pairs]
    core = Core()
    monkeypatch.setattr(native, "_core", core)
    for pair, want in zip(pairs, wanted, strict=True):
        out = results(*want.mask.shape)
        given = [OnDevice(v, 2) for v in pair]
        assert tuple(decode_simcc(*given, split_ratio=3, score=score, threshold=0.97, out=out)) == out
        check(out, want)
    assert core.calls == [(2, STREAM)] * 3


def test_what_does_not_fit_is_refused_before_anything_is_queued(core: Core) -> None:
    values = RNG.random((2, 3, 8, 16), np.float32)
    maps, out = OnDevice(values), results(2, 3)
    x, y = OnDevice(values[:, :, 0]), OnDevice(values[:, :, 1])
    for call, message in (
        (lambda: decode(maps), "heatmaps is a OnDevice, and new arrays of that kind cannot be made: pass out="),
        (lambda: decode(OnDevice(values[0]), out=out), "expected heatmaps float32 or float16 or bfloat16"),
        (lambda: decode(OnDevice(values.astype("f8")), out=out), "float32 or float16 or bfloat16"),
        (lambda: decode(OnDevice(values[..., ::2]), out=out), "expected heatmaps as a dense array"),
        (lambda: decode(maps, out=results(2, 4)), r"expected out.joints float32 \[2, 3, 2\], got float32 \[2, 4, 2\]"),
        (lambda: decode(maps, out=(*out[:2], out[1])), "expected out.mask bool"),
        (lambda: decode(maps, out=(OnDevice(out[0].values, read_only=True), *out[1:])), "writable"),
        (lambda: decode(maps, out=(*out, out[1])), "expected out without std"),
        (lambda: decode(maps, out=[o.values for o in out]), "out.joints"),
        (lambda: decode(OnDevice(values, 0), out=results(2, 3, 1)), "all arrays on one GPU, .* cuda:0 and cuda:1"),
        (lambda: decode(maps, codec="dark", blur=10, out=out), "expected an odd blur from 9 to 63"),
        (lambda: decode(maps, codec="best", out=out), "unknown codec"),
        (lambda: decode(maps, temperature=0, out=out), "temperature"),
        (lambda: decode(maps, threshold=-1, out=out), "threshold"),
        (lambda: decode(maps, out=out, stream="x"), "expected a CUDA stream"),
        (lambda: decode(values, out=Refined(*(o.values for o in out)), stream=5), "stream= is for arrays on the GPU"),
        (lambda: decode(values, stream=5), "stream= is for arrays on the GPU, got ndarray in host memory"),
        (lambda: decode_simcc(values[:, :, 0], values[:, :, 0], stream=5), "stream= is for arrays on the GPU"),
        (lambda: decode_simcc(x, values[:, :, 1], out=out), "simcc_y"),
        (lambda: decode_simcc(values[:, :, 0], y, out=out), "expected simcc_y in host memory"),
        (lambda: decode_simcc(x, OnDevice(values[:, :2, 1]), out=out), r"simcc_x \[2, 3, bins\], got \[2, 2, bins\]"),
        (lambda: decode_simcc(x, OnDevice(values), out=out), "expected simcc_y float32"),
        (lambda: decode_simcc(x, OnDevice(np.zeros((2, 3, 5000), "f4")), out=out), "at most 4096 bins"),
        (lambda: decode_simcc(x, OnDevice(values[:, :, 1, ::2]), out=out), "expected simcc_y as a dense array"),
        (lambda: decode_simcc(x, y, split_ratio=0, out=out), "split ratio"),
        (lambda: decode_simcc(x, OnDevice(values[:, :, 1], 1), out=results(2, 3, 0)), "all arrays on one GPU"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert core.calls == []
    check(out, [np.full((2, 3, 2), -7), np.full((2, 3), -7), np.zeros((2, 3))])


def test_without_cuda_in_the_build_or_a_gpu_it_says_what_to_do() -> None:
    if native_cuda.availability().available:
        pytest.skip("there is a GPU")
    maps, out = OnDevice(RNG.random((1, 2, 3, 4), np.float32)), results(1, 2)
    vector = OnDevice(maps.values[:, :, 0])
    for codec in CODECS:
        with pytest.raises(BackendUnavailableError, match="CUDA"):
            decode(maps, codec=codec, out=out)
    with pytest.raises(BackendUnavailableError, match="CUDA"):
        decode_simcc(vector, vector, out=out)
    view = native_cuda.DeviceView(4096, (1, 2, 3, 4), "<f4", None, (24, 12, 4, 1))
    with pytest.raises(InputError, match="unknown codec"):
        cuda_decode.decode_on_device(view, "best", 40.0, 0.3, [view] * 3, 0, 0)
    with pytest.raises(InputError, match="unknown codec"):
        cuda_decode.decode_peaks_on_device(view, "argmax", 11, 0.3, [view] * 3, 0, 0)
    with pytest.raises(InputError, match="blur"):
        cuda_decode.decode_peaks_on_device(view, "udp", 8, 0.3, [view] * 3, 0, 0)
    with pytest.raises(InputError, match="maps of one row"):
        cuda_decode.decode_simcc_on_device(view, view, 2.0, "min", 0.3, [view] * 3, 0, 0)
    row = view._replace(shape=(1, 2, 1, 4))
    with pytest.raises(InputError, match="unknown"):
        cuda_decode.decode_simcc_on_device(row, row, 2.0, "max", 0.3, [view] * 3, 0, 0)
    with pytest.raises(InputError, match="got one on cuda:1"):
        cuda_decode.decode_on_device(view._replace(device=1), "argmax", 40.0, 0.3, [view] * 3, 0, 0)
