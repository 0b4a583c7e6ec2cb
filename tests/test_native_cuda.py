# SPDX-License-Identifier: Apache-2.0
"""`native-cuda` as far as no GPU allows: what reaches the core.

In place of the core's CUDA part stands one that takes the same addresses, reads them as host memory and computes
with the processor; test_cuda.py is for a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import Refiner, _core
from port_deploy.backends import native, native_cuda
from port_deploy.errors import BackendUnavailableError, InputError

MODEL = random_model("soft", "hand21", layers=1, head_dim=16)
WITH_STD = random_model("soft", "hand21", layers=1, head_dim=16, variance=True)
RNG = np.random.default_rng(0)
STREAM = 77


class OnDevice:
    """An array that says it lies on a GPU."""

    def __init__(self, values: np.ndarray, gpu: int | None = None, read_only: bool = False) -> None:
        self.values, self.shape = values, values.shape
        self.device = SimpleNamespace(id=gpu)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (values.ctypes.data, read_only),
            "strides": values.strides,
            "stream": STREAM,
            "version": 3,
        }


def memory(address: int, shape: Sequence[int], dtype: str, strides: Sequence[int] | None = None) -> np.ndarray:
    """The array at an address; strides in elements."""
    size = np.dtype(dtype).itemsize
    dense = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    steps = [size * s for s in (dense if strides is None else strides)]
    reaches = [(n - 1) * s for n, s in zip(shape, steps, strict=True)]
    below = -sum(r for r in reaches if r < 0)
    raw = (ctypes.c_char * (below + sum(r for r in reaches if r > 0) + size)).from_address(address - below)
    return np.ndarray(shape, dtype, np.frombuffer(raw, np.uint8), below, steps)


class Gpu:
    """`_core.CudaRefiner` on the processor."""

    made: list[dict[str, Any]]
    streams: list[int]
    wrong_px = 0.0
    wrong_std = 1.0
    weight_bytes = 1
    description = "a stand-in, fp16"

    def __init__(self, data: bytes, source: str, **options: Any) -> None:
        Gpu.made.append(options)
        self.refiner = _core.Refiner(data, source, threads=1)

    def variant(self, batch: int) -> str:
        return "cluster" if batch < 8 else "throughput"

    def refine(
        self, joints: int, confidence: int, batch: int, threshold: float, out: Sequence[int], stream: int
    ) -> None:
        Gpu.streams.append(stream)
        given = memory(joints, (batch, 21, 2), "f4"), memory(confidence, (batch, 21), "f4")
        self.refiner.refine(*given, threshold, *outputs(out, batch))

    def run(
        self,
        maps: int,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        affine: int,
        threshold: float,
        out: Sequence[int],
        stream: int,
    ) -> None:
        Gpu.streams.append(stream)
        matrix = memory(affine, (shape[0], 2, 3), "f4") if affine else None
        self.refiner.run(memory(maps, shape, dtype, (*strides, 1)), matrix, threshold, *outputs(out, shape[0]))

    def refine_host(self, *arguments: Any) -> None:
        self.refiner.refine(*arguments)
        arguments[3][-1, -1, 0] += Gpu.wrong_px
        if arguments[6] is not None:
            arguments[6][0] *= Gpu.wrong_std

    def run_host(self, *arguments: Any) -> None:
        self.refiner.run(*arguments)


def outputs(addresses: Sequence[int], batch: int) -> list[np.ndarray | None]:
    kinds = (((batch, 21, 2), "f4"), ((batch, 21), "f4"), ((batch, 21), "?"), ((batch, 21), "f4"))
    return [memory(a, *k) if a else None for a, k in zip(addresses, kinds, strict=True)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Refiner:
    device = {"index": 0, "name": "Stand-in", "compute_capability": (9, 0)}
    core = SimpleNamespace(
        Error=_core.Error,
        Refiner=_core.Refiner,
        CudaRefiner=Gpu,
        build_info=_core.build_info,
        cuda_info=lambda: {"compiled": True, "devices": [device], "detail": "built with CUDA, 1 GPU(s)"},
    )
    Gpu.made, Gpu.streams = [], []
    monkeypatch.setattr(native, "_core", core)
    return Refiner.load(MODEL)


def arrays(batch: int, gpu: int | None = None) -> tuple[OnDevice, OnDevice, tuple[OnDevice, ...]]:
    joints = RNG.uniform(0, 256, (batch, 21, 2)).astype("f4")
    confidence = RNG.random((batch, 21), np.float32)
    out = np.full((batch, 21, 2), -7, "f4"), np.full((batch, 21), -7, "f4"), np.zeros((batch, 21), "?")
    return OnDevice(joints, gpu), OnDevice(confidence, gpu), tuple(OnDevice(o, gpu) for o in out)


def check(given: Sequence[Any], wanted: Sequence[Any]) -> None:
    for got, want in zip(given, wanted, strict=True):
        np.testing.assert_array_equal(got.values if isinstance(got, OnDevice) else got, want)


def test_auto_takes_the_gpu_in_fp16_and_says_so(gpu: Refiner) -> None:
    assert (gpu.backend.name, gpu.backend.device) == ("native-cuda", "cuda")
    assert str(gpu.backend) == "native-cuda (a stand-in, fp16): chosen by auto (the best for this file)"
    assert Gpu.made == [{"device": 0, "precision": "fp16", "variant": None}]
    Refiner.load(MODEL, device="cuda:1", precision="fp32", variant="block")
    assert Gpu.made[-1] == {"device": 1, "precision": "fp32", "variant": "block"}
    assert Refiner.load(MODEL, device="cpu").backend.name == "native-cpu"
    for device in ("cuda:x", "cuda:-1"):
        with pytest.raises(InputError, match="expected device cuda or cuda:N"):
            Refiner.load(MODEL, device=device)


@pytest.mark.parametrize(("wrong_px", "precision"), [(0.1, "fp32"), (2.0, "fp16"), (20.0, "bf16"), (np.nan, "fp16")])
def test_a_gpu_that_answers_wrongly_is_refused(
    gpu: Refiner, monkeypatch: pytest.MonkeyPatch, wrong_px: float, precision: str
) -> None:
    monkeypatch.setattr(Gpu, "wrong_px", wrong_px)
    with pytest.raises(BackendUnavailableError, match=r'disagrees with the processor .* on a stand-in.*device="cpu"'):
        Refiner.load(MODEL, precision=precision)
    monkeypatch.setattr(Gpu, "wrong_px", 0.001)
    Refiner.load(MODEL, precision=precision)


@pytest.mark.parametrize(("wrong", "precision"), [(1.02, "fp32"), (0.8, "fp16"), (2.0, "bf16"), (np.nan, "fp16")])
def test_a_gpu_whose_standard_deviations_are_wrong_is_refused(
    gpu: Refiner, monkeypatch: pytest.MonkeyPatch, wrong: float, precision: str
) -> None:
    monkeypatch.setattr(Gpu, "wrong_std", wrong)
    with pytest.raises(BackendUnavailableError, match=r'disagrees with the processor on std .*device="cpu"'):
        Refiner.load(WITH_STD, precision=precision)
    Refiner.load(MODEL, precision=precision)
    monkeypatch.setattr(Gpu, "wrong_std", 1.001)
    Refiner.load(WITH_STD, precision=precision)


def test_availability_names_the_gpus(gpu: Refiner) -> None:
    assert native_cuda.availability().detail == "Stand-in (9.0)"


@pytest.mark.parametrize("batch", [1, 5])
def test_joints_are_refined_where_they_lie(gpu: Refiner, batch: int) -> None:
    joints, confidence, out = arrays(batch)
    wanted = Refiner.load(MODEL, device="cpu").refine(joints.values, confidence.values, threshold=0.4)
    result = gpu.refine(joints, confidence, threshold=0.4, out=out)
    assert tuple(result) == out
    check(out, wanted)
    gpu.refine(joints, confidence, out=out, stream=5)
    assert Gpu.streams == [STREAM, 5]


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_heatmaps_are_read_where_they_lie(gpu: Refiner, dtype: str) -> None:
    cpu = Refiner.load(MODEL, device="cpu")
    whole = RNG.random((3, 30, 20, 40), np.float32).astype(dtype)
    _, _, out = arrays(3)
    for maps in (np.ascontiguousarray(whole[:, :21]), whole[:, 9:, 2:18, 4:28], whole[:, 20::-1], whole[:, :21, ::2]):
        gpu(OnDevice(maps), out=out)
        check(out, cpu(maps))
    turn = RNG.random((3, 2, 3), np.float32)
    gpu(OnDevice(maps), affine=OnDevice(turn), out=out)
    check(out, cpu(maps, affine=turn))


def test_host_arrays_come_back_as_host_arrays(gpu: Refiner) -> None:
    cpu = Refiner.load(MODEL, device="cpu")
    joints, confidence, _ = arrays(4)
    check(gpu.refine(joints.values, confidence.values), cpu.refine(joints.values, confidence.values))
    maps = RNG.random((2, 21, 16, 16), np.float32)
    boxes = np.float32([[0, 0, 64, 64]] * 2)
    check(gpu(maps, boxes=boxes), cpu(maps, boxes=boxes))
    torch = pytest.importorskip("torch")
    result = gpu.refine(torch.from_numpy(joints.values), torch.from_numpy(confidence.values))
    assert isinstance(result.joints, torch.Tensor)


def test_standard_deviations_are_written_where_they_are_wanted(gpu: Refiner) -> None:
    on_gpu, cpu = Refiner.load(WITH_STD), Refiner.load(WITH_STD, device="cpu")
    joints, confidence, out = arrays(6)
    std = OnDevice(np.full((6, 21), -7, "f4"))
    wanted = cpu.refine(joints.values, confidence.values, threshold=0.4)
    result = on_gpu.refine(joints, confidence, threshold=0.4, out=(*out, std))
    assert result.std is std
    check((*out, std), (*wanted, wanted.std))
    assert np.isnan(std.values).any()
    assert (std.values > 0).any()
    without = arrays(6)[2]  # nothing can be allocated of this kind: so nothing is
    result = on_gpu.refine(joints, confidence, threshold=0.4, out=without)
    assert result.std is None
    check(without, wanted)
    maps = RNG.random((6, 21, 16, 24), np.float32)
    on_gpu(OnDevice(maps), out=(*out, std))
    wanted = cpu(maps)
    check((*out, std), (*wanted, wanted.std))
    host = on_gpu.refine(joints.values, confidence.values, threshold=0.4)
    wanted = cpu.refine(joints.values, confidence.values, threshold=0.4)
    check((*host, host.std), (*wanted, wanted.std))
    host = on_gpu(maps)
    wanted = cpu(maps)
    check((*host, host.std), (*wanted, wanted.std))
    with pytest.raises(InputError, match=r"expected out.std float32 \[6, 21\]"):
        on_gpu.refine(joints, confidence, out=(*out, OnDevice(std.values[:5])))
    with pytest.raises(InputError, match="this model has no variance"):
        gpu.refine(joints, confidence, out=(*out, std))


def test_what_does_not_fit_is_refused_before_anything_is_queued(gpu: Refiner) -> None:
    joints, confidence, out = arrays(2)
    maps = RNG.random((2, 21, 8, 16), np.float32)
    for call, message in (
        (lambda: gpu.refine(OnDevice(joints.values[:, :17]), confidence, out=out), r"got float32 \[2, 17, 2\]"),
        (
            lambda: gpu.refine(joints, OnDevice(confidence.values[:1]), out=out),
            r"expected confidence float32 \[2, 21\]",
        ),
        (lambda: gpu.refine(joints, confidence.values, out=out), "expected confidence on the GPU|CUDA array"),
        (lambda: gpu.refine(joints, confidence, out=(*out[:2], OnDevice(confidence.values))), "expected out.mask bool"),
        (lambda: gpu.refine(joints, confidence, out=(OnDevice(joints.values, read_only=True), *out[1:])), "writable"),
        (lambda: gpu.refine(joints, confidence), "new arrays of that kind cannot be made: pass out="),
        (lambda: gpu.refine(joints, confidence, out=out, threshold=-1.0), "threshold"),
        (lambda: gpu(OnDevice(maps.astype("f8")), out=out), "float32 or float16 or bfloat16"),
        (lambda: gpu(OnDevice(maps[..., ::2]), out=out), "expected heatmaps as a dense array"),
        (lambda: gpu(OnDevice(maps), affine=OnDevice(maps), out=out), r"expected affine float32 \[2, 2, 3\]"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    other = arrays(2, gpu=1)
    with pytest.raises(InputError, match=r'got one on cuda:1: move it there, or load the refiner with device="cuda:1"'):
        gpu.refine(other[0], other[1], out=other[2])
    assert Gpu.streams == []
    check(out, [np.full((2, 21, 2), -7), np.full((2, 21), -7), np.zeros((2, 21))])


def test_without_cuda_in_the_build_or_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    state = native_cuda.availability()
    if state.available:
        pytest.skip("there is a GPU")
    assert state.remedy is not None
    with pytest.raises(BackendUnavailableError, match="native-cuda"):
        Refiner.load(MODEL, device="cuda")
    with pytest.raises(BackendUnavailableError):
        native_cuda.CudaBackend(MODEL)
