# SPDX-License-Identifier: Apache-2.0
"""`decode` and `decode_simcc` of arrays on a GPU against the processor: codecs, types, batches, streams, graphs, out=.

Without a GPU all of it is skipped (a failure where PORT_REQUIRE names cuda); csrc/tests/emulated runs the same kernels
there, and test_decode_device.py what stands before them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from port_deploy import InputError, decode, decode_simcc

torch = pytest.importorskip("torch", reason="the arrays on the GPU are PyTorch's")

pytestmark = pytest.mark.cuda
CODECS = ("softargmax", "softargmax-sum", "argmax", "msra", "dark", "udp")
ALLOWED_PX = {"argmax": 0.0, "msra": 0.0}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def blobs(batch: int, joints: int, height: int, width: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    at = rng.uniform(-1, 1, (4, batch, joints, 1, 1))
    centre_x, centre_y = (0.5 + 0.6 * at[0]) * width, (0.5 + 0.6 * at[1]) * height
    peak, sigma = 0.5 + 0.45 * at[2], 2.0 + 0.5 * at[3]
    return torch.from_numpy((peak * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * sigma**2))).astype("f4"))


def assert_same(got: Any, want: Any, allowed_px: float) -> None:
    joints, confidence, mask = (a.cpu().numpy() for a in got)
    np.testing.assert_array_equal(confidence, want.confidence)
    np.testing.assert_array_equal(mask, want.mask)
    np.testing.assert_allclose(joints, want.joints, rtol=0, atol=allowed_px)  # NaN where NaN is


def bits(result: Any) -> torch.Tensor:
    return torch.cat([result.joints.flatten(), result.confidence.flatten()]).view(torch.int32)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_heatmaps_of_every_type_and_size(codec: str, dtype: torch.dtype) -> None:
    for seed, (batch, height, width) in enumerate([(1, 64, 48), (5, 46, 46), (3, 17, 33), (2, 5, 5), (300, 24, 20)]):
        maps = blobs(batch, 17, height, width, seed).to(dtype)
        want = decode(maps.float().numpy(), codec=codec, blur=13)
        got = decode(maps.cuda(), codec=codec, blur=13)
        if codec.startswith("softargmax"):  # confidence is the pixel at a rounded place
            np.testing.assert_allclose(got.joints.cpu().numpy(), want.joints, rtol=0, atol=5e-4)
        else:
            assert_same(got, want, ALLOWED_PX.get(codec, 5e-3))
    assert decode(maps[:0].cuda(), codec=codec).joints.shape == (0, 17, 2)


@pytest.mark.parametrize("codec", ["msra", "dark", "udp"])
def test_faint_flat_and_broken_maps(codec: str) -> None:
    maps = blobs(4, 9, 64, 40, 7)
    maps[0] *= 5e-3  # udp clips: the whole map is blurred
    maps[1, 0], maps[1, 1], maps[1, 2] = 0.0, -1.0, 0.5
    maps[1, 3, 5, 6], maps[1, 4, 63, 39], maps[1, 5] = float("nan"), float("inf"), -float("inf")
    maps[1, 6, 30:, :] = -float("inf")
    maps[2] *= 100.0
    maps[3] -= 0.2
    want, got = decode(maps.numpy(), codec=codec), decode(maps.cuda(), codec=codec)
    assert_same(got._replace(joints=got.joints * 0), want._replace(joints=want.joints * 0), 0.0)
    moved = np.abs(want.joints - np.rint(want.joints))
    off = np.abs(got.joints.cpu().numpy() - want.joints)[moved < 0.5]
    assert off.max() < (1e-6 if codec == "msra" else 1e-2)
    assert np.median(off) < 1e-5


@pytest.mark.parametrize("codec", ["msra", "dark", "udp"])
def test_bits_do_not_depend_on_batch_or_strides(codec: str) -> None:
    maps = blobs(260, 17, 32, 24, 3).cuda()  # 4,420 maps: a warp each; few of them: a block each
    maps[::3] *= 4e-3
    whole = decode(maps, codec=codec)
    for first, last in ((0, 1), (7, 30), (259, 260)):
        assert torch.equal(
            bits(decode(maps[first:last], codec=codec)), bits(type(whole)(*(a[first:last] for a in whole)))
        )
    wide = torch.zeros(20, 17, 50, 37, device="cuda")
    wide[:, :, 3:35, 5:29] = maps[:20]
    assert torch.equal(bits(decode(wide[:, :, 3:35, 5:29], codec=codec)), bits(decode(maps[:20], codec=codec)))
    with pytest.raises(InputError, match="contiguous"):
        decode(wide[..., ::2], codec=codec)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", ["min", "mean"])
def test_simcc(dtype: torch.dtype, score: Any) -> None:
    torch.manual_seed(5)
    for batch in (1, 3, 300):
        x, y = (torch.rand(batch, 17, bins).sub(0.1).to(dtype) for bins in (384, 511))
        x[0, 0, 5], y[0, 1, 5], x[0, 2] = float("nan"), float("inf"), -1.0
        want = decode_simcc(x.float().numpy(), y.float().numpy(), score=score, threshold=0.95)
        assert_same(decode_simcc(x.cuda(), y.cuda(), score=score, threshold=0.95), want, 0.0)
        flipped = decode_simcc(x.cuda().flip(1)[:, 1:], y.cuda().flip(1)[:, 1:], score=score, threshold=0.95)
        np.testing.assert_array_equal(flipped.joints.cpu().numpy(), want.joints[:, -2::-1])
    assert decode_simcc(x[:0].cuda(), y[:0].cuda()).mask.shape == (0, 17)


@pytest.mark.parametrize("codec", ["softargmax", "msra", "dark", "udp", "simcc"])
def test_captured_on_the_callers_stream_into_the_callers_memory(codec: str) -> None:
    maps = torch.empty((2, 4, 17, 64) if codec == "simcc" else (4, 17, 64, 48), device="cuda")

    def run(out: Any = None) -> Any:
        return decode_simcc(maps[0], maps[1], out=out) if codec == "simcc" else decode(maps, codec=codec, out=out)

    out = (
        torch.empty(4, 17, 2, device="cuda"),
        torch.empty(4, 17, device="cuda"),
        torch.empty(4, 17, dtype=torch.bool, device="cuda"),
    )
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        assert tuple(run(out)) == out
    for seed in range(3):
        torch.manual_seed(seed)
        maps.copy_(torch.rand(maps.shape).pow(4))
        for buffer in out:
            buffer.fill_(1)
        graph.replay()
        want = run()
        assert torch.equal(bits(type(want)(*out)), bits(want))
        assert torch.equal(out[2], want.mask)
    free = torch.cuda.mem_get_info()[0]
    for _ in range(50):
        run(out)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        maps.mul_(0.5)
        late = run()
    side.synchronize()
    assert torch.equal(bits(late), bits(run()))
