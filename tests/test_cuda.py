# SPDX-License-Identifier: Apache-2.0
"""`native-cuda` on a GPU, through the public interface: variants, precisions, streams, capture behind a detector, out=.

Without a GPU all of it is skipped (a failure where PORT_REQUIRE names cuda); csrc/tests/emulated runs the same kernels
there, and csrc/tests/gpu is this file's twin in C++.
"""

from __future__ import annotations

from threading import Thread
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import Refiner, decode
from port_deploy.errors import BackendUnavailableError
from port_deploy.verify import STD_TOLERANCE

torch = pytest.importorskip("torch", reason="the arrays on the GPU are PyTorch's")

pytestmark = pytest.mark.cuda
VARIANTS = [None, "block", "cluster", "throughput"]
ALLOWED_PX = {"fp32": 1e-3, "fp16": 0.5, "bf16": 8.0}


def poses(batch: int, joints: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    places = rng.uniform(20, 230, (batch, joints, 2)).astype(np.float32)
    places[3::7, 0] = np.nan
    return places, rng.uniform(0, 0.9, (batch, joints)).astype(np.float32)


def gpu_refiner(model: Any, precision: str, variant: str | None = None) -> Refiner:
    options: dict[str, Any] = {} if variant is None else {"variant": variant}
    try:
        return Refiner.load(model, device="cuda", precision=precision, threshold=0.3, **options)
    except BackendUnavailableError as error:
        capability = torch.cuda.get_device_capability()
        if (variant == "cluster" and capability < (9, 0)) or (precision == "bf16" and capability < (8, 0)):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("model", ["hand21", "hand21-paper", "mpii16", "coco17", "h36m17"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_processor(model: str, precision: str, variant: str | None) -> None:
    if precision == "fp32" and variant not in (None, "block"):
        pytest.skip("fp32 runs as block only")
    gpu, cpu = gpu_refiner(model, precision, variant), Refiner.load(model, device="cpu", threshold=0.3)
    for batch in (0, 1, 2, 33, 131, 133, 529):
        joints, confidence = poses(batch, cpu.model.joints, batch)
        want = cpu.refine(joints, confidence)
        got = gpu.refine(torch.from_numpy(joints).cuda(), torch.from_numpy(confidence).cuda())
        assert got.joints.is_cuda
        np.testing.assert_array_equal(got.mask.cpu().numpy(), want.mask)
        np.testing.assert_allclose(got.joints.cpu().numpy(), want.joints, rtol=0, atol=ALLOWED_PX[precision])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_heatmaps_of_every_type(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    maps = torch.rand(5, 21, 64, 48).pow(8).to(dtype)
    host = maps.float().numpy()
    want = decode(host, codec="softargmax", threshold=0.3)
    got = decode(maps.cuda(), codec="softargmax", threshold=0.3)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.cpu().numpy(), np.asarray(b), rtol=0, atol=5e-4)
    gpu, cpu = gpu_refiner("hand21", "fp16"), Refiner.load("hand21", device="cpu", threshold=0.3)
    refined = gpu(maps.cuda())
    np.testing.assert_allclose(refined.joints.cpu().numpy(), cpu(host).joints, rtol=0, atol=ALLOWED_PX["fp16"])


def test_bits_do_not_depend_on_batch_variant_or_run() -> None:
    joints, confidence = (torch.from_numpy(a).cuda() for a in poses(40, 21, 3))
    whole = gpu_refiner("hand21", "fp16").refine(joints, confidence).joints
    for variant in VARIANTS:
        refiner = gpu_refiner("hand21", "fp16", variant)
        for first, last in ((0, 40), (0, 1), (7, 10), (39, 40)):
            part = refiner.refine(joints[first:last].contiguous(), confidence[first:last].contiguous()).joints
            assert torch.equal(part.view(torch.int32), whole[first:last].contiguous().view(torch.int32))


def test_captured_behind_a_detector() -> None:
    refiner = gpu_refiner("hand21", "fp16")
    detector = torch.nn.Conv2d(3, 21, 3, padding=1).cuda().eval()
    image = torch.rand(4, 3, 64, 64, device="cuda")
    out = tuple(torch.empty(*shape, dtype=t, device="cuda") for shape, t in
                (((4, 21, 2), torch.float32), ((4, 21), torch.float32), ((4, 21), torch.bool)))  # fmt: skip
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        refiner(detector(image), out=out)  # warm-up of PyTorch's own libraries
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        refiner(detector(image), out=out)
    for seed in range(3):
        torch.manual_seed(seed)
        image.copy_(torch.rand(4, 3, 64, 64))
        for buffer in out:
            buffer.fill_(1)
        graph.replay()
        with torch.inference_mode():
            want = refiner(detector(image))
        torch.testing.assert_close(out[0], want.joints, rtol=0, atol=0)
        assert torch.equal(out[2], want.mask)


def test_nothing_is_allocated_with_out() -> None:
    refiner = gpu_refiner("hand21", "fp16")
    joints, confidence = (torch.from_numpy(a).cuda() for a in poses(8, 21, 5))
    out = (torch.empty_like(joints), torch.empty_like(confidence), torch.empty(8, 21, dtype=torch.bool, device="cuda"))
    refiner.refine(joints, confidence, out=out)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(100):
        refiner.refine(joints, confidence, out=out)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_standard_deviations(precision: str, variant: str | None) -> None:
    if precision == "fp32" and variant not in (None, "block"):
        pytest.skip("fp32 runs as block only")
    model: Any = random_model("soft", "hand21", variance=True, std_scale=1.3)
    gpu, cpu = gpu_refiner(model, precision, variant), Refiner.load(model, device="cpu", threshold=0.3)
    for batch in (0, 1, 2, 33, 133, 529):
        joints, confidence = poses(batch, 21, batch)
        want = cpu.refine(joints, confidence)
        there = torch.from_numpy(joints).cuda(), torch.from_numpy(confidence).cuda()
        got = gpu.refine(*there)
        # NaN where the mask is False, on both sides
        np.testing.assert_allclose(got.std.cpu().numpy(), want.std, rtol=STD_TOLERANCE[precision])
        three = tuple(torch.full_like(t, 1) for t in got)
        fewer = gpu.refine(*there, out=three)
        assert fewer.std is None
        assert torch.equal(three[0].view(torch.int32), got.joints.view(torch.int32))
        host = gpu.refine(joints, confidence)
        np.testing.assert_array_equal(host.std, got.std.cpu().numpy())
        out = (*three, torch.full_like(got.confidence, -7))
        assert gpu.refine(*there, out=out).std is out[3]
        assert torch.equal(out[3].view(torch.int32), got.std.view(torch.int32))
    maps = torch.rand(5, 21, 64, 48).pow(8)
    want = cpu(maps.numpy())
    np.testing.assert_allclose(gpu(maps.cuda()).std.cpu().numpy(), want.std, rtol=STD_TOLERANCE[precision])


def test_one_refiner_from_many_threads_and_streams() -> None:
    refiner = gpu_refiner("hand21", "fp16")
    wrong: list[int] = []

    def work(seed: int) -> None:
        joints, confidence = (torch.from_numpy(a).cuda() for a in poses(1 + 30 * seed, 21, seed))
        want = refiner.refine(joints, confidence).joints
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(50):
                got = refiner.refine(joints, confidence).joints
                same = torch.equal(got.view(torch.int32), want.view(torch.int32))
                wrong.extend([] if same else [seed])

    threads = [Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="one GPU only")
def test_two_gpus() -> None:
    joints, confidence = (torch.from_numpy(a) for a in poses(5, 21, 9))
    answers = [
        Refiner.load("hand21", device=d, threshold=0.3).refine(joints.to(d), confidence.to(d)).joints.cpu()
        for d in ("cuda:0", "cuda:1")
    ]
    assert torch.equal(answers[0].view(torch.int32), answers[1].view(torch.int32))
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("model", ["hand21", "mpii16", "variance"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["joints", "heatmaps"])
def test_the_ptx_of_an_engines_layer(model: str, precision: Any, kind: str) -> None:
    """What a fused TensorRT engine holds, launched as TensorRT would, against the core's own kernel.

    The driver compiles it for one model, so the last bits may be others.
    """
    import ctypes

    from port_deploy.export import fused_kernel
    from port_deploy.weights import load_model

    driver = pytest.importorskip("cuda.bindings.driver")
    if not any(fused_kernel.layers_folder().glob("port_line_*.ptx")):
        pytest.fail("a GPU is here, and the core was built without kernels: PORT_CUDA=ON pip install .")
    loaded = random_model("soft", "hand21", variance=True) if model == "variance" else load_model(model)
    size, batch = (48, 64), 9
    count = loaded.spec.joints
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    kernel = fused_kernel.make_kernel(loaded, precision, size if kind == "heatmaps" else None, capability)
    core = gpu_refiner(loaded, precision, "block")
    if kind == "joints":
        first, second = (torch.from_numpy(a).cuda() for a in poses(batch, count, 5))
        want = core.refine(first, second)
    else:
        first = torch.rand(batch, count, *size, device="cuda").pow(8)
        second = torch.tensor([[2.0, 0.0, 5.0], [0.0, 2.0, 7.0]], device="cuda").repeat(batch, 1, 1)
        want = core(first, affine=second)
    threshold = torch.tensor([0.3], device="cuda")
    weights = torch.from_numpy(np.frombuffer(kernel.weights, np.int32).copy()).cuda()
    joints, confidence = (
        torch.full((batch, count, 2), -7.0, device="cuda"),
        torch.full((batch, count), -7.0, device="cuda"),
    )
    state = torch.full((batch, kernel.state_words), -7, dtype=torch.int32, device="cuda")
    std = torch.full((batch, count), -7.0, device="cuda")
    torch.cuda.synchronize()

    def must(answer: Any) -> Any:
        assert answer[0] == driver.CUresult.CUDA_SUCCESS, answer[0]
        return answer[1] if len(answer) > 1 else None

    module = must(driver.cuModuleLoadData(kernel.ptx.encode() + b"\0"))
    function = must(driver.cuModuleGetFunction(module, fused_kernel.ENTRY.encode()))
    written = [joints, confidence, state, std] if kernel.std else [joints, confidence, state]
    tensors = [first, second, threshold, weights], written
    values = (*(t.data_ptr() for t in tensors[0]), batch, *(t.data_ptr() for t in tensors[1]))
    kinds = (*[ctypes.c_void_p] * 4, ctypes.c_int32, *[ctypes.c_void_p] * len(written))
    grid, block = (batch, 1, 1), (kernel.threads, 1, 1)
    must(driver.cuLaunchKernel(function, *grid, *block, kernel.shared_bytes, 0, (values, kinds), 0))
    torch.cuda.synchronize()
    torch.testing.assert_close(joints, want.joints, rtol=0, atol=ALLOWED_PX[precision], equal_nan=True)
    torch.testing.assert_close(confidence, want.confidence, rtol=0, atol=1e-5, equal_nan=True)
    assert torch.equal(state[:, :count].bool(), want.mask)
    assert kernel.std == loaded.spec.config.variance
    if kernel.std:
        torch.testing.assert_close(std, want.std, rtol=STD_TOLERANCE[precision], atol=0, equal_nan=True)
    must(driver.cuModuleUnload(module))


def test_a_layer_reads_its_threshold_on_the_gpu() -> None:
    """How the classic plugin launches: the threshold is an address, the mask whole numbers."""
    from port_deploy.backends import native
    from port_deploy.weights import load_model

    model = load_model("mpii16")
    core = native.core().CudaRefiner(model.data, "mpii16", precision="fp16")
    joints, confidence = (torch.from_numpy(a).cuda() for a in poses(33, 16, 6))
    want = gpu_refiner("mpii16", "fp16").refine(joints, confidence)
    threshold = torch.tensor([0.3], device="cuda")
    out = (
        torch.empty_like(joints),
        torch.empty_like(confidence),
        torch.empty((33, 16), dtype=torch.int32, device="cuda"),
    )
    stream = torch.cuda.current_stream().cuda_stream
    addresses = [threshold.data_ptr(), *(t.data_ptr() for t in out), 0]
    core.refine_layer(joints.data_ptr(), confidence.data_ptr(), 33, addresses, stream)
    torch.testing.assert_close(out[0], want.joints, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(out[2].bool(), want.mask)
    maps = torch.rand(5, 16, 24, 20, device="cuda").pow(8)
    want = gpu_refiner("mpii16", "fp16")(maps)
    out = tuple(t[:5].contiguous() for t in out)  # type: ignore[assignment]
    addresses = [threshold.data_ptr(), *(t.data_ptr() for t in out), 0]
    core.run_layer(maps.data_ptr(), maps.shape, 0, addresses, stream)
    torch.testing.assert_close(out[0], want.joints, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(native.core().Error, match="expected the threshold"):
        core.refine_layer(joints.data_ptr(), confidence.data_ptr(), 33, [0, *addresses[1:]], stream)
