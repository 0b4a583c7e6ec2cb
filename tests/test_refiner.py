# SPDX-License-Identifier: Apache-2.0
"""`Refiner` and `decode`: arrays in and out, out=, boxes, thresholds, threads, allocations."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import random_model

from port_deploy import InputError, Refined, Refiner, decode
from port_deploy.verify_problems import heatmap_questions, joint_questions
from port_deploy.weights import save_model

MODEL = random_model("soft", "hand21")


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return Refiner.load(MODEL, threads=1)


def poses(batch: int) -> tuple[np.ndarray, np.ndarray]:
    asked = joint_questions(MODEL.spec, max(batch, 1), seed=3)
    return asked.first[:batch], asked.second[:batch]


def maps(batch: int, size: tuple[int, int] = (24, 20)) -> np.ndarray:
    return heatmap_questions(MODEL.spec, size, max(batch, 1), seed=4).first[:batch]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def equal(a: Refined, b: Refined) -> bool:
    return all(same_bits(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 33])
def test_shapes_and_dtypes_for_any_batch(refiner: Refiner, batch: int) -> None:
    joints, confidence = poses(batch)
    for out in (refiner.refine(joints, confidence), refiner(maps(batch))):
        assert out.joints.shape == (batch, 21, 2)
        assert out.confidence.shape == out.mask.shape == (batch, 21)
        assert (out.joints.dtype, out.confidence.dtype, out.mask.dtype) == (np.float32, np.float32, np.bool_)


def test_inputs_are_left_alone(refiner: Refiner) -> None:
    joints, confidence = poses(33)
    heatmaps = maps(9)
    kept = joints.copy(), confidence.copy(), heatmaps.copy()
    refiner.refine(joints, confidence)
    refiner(heatmaps)
    assert all(same_bits(a, b) for a, b in zip((joints, confidence, heatmaps), kept, strict=True))


def test_what_is_not_masked_is_copied_bit_for_bit(refiner: Refiner) -> None:
    joints, confidence = poses(64)
    out = refiner.refine(joints, confidence)
    assert out.mask.any()
    assert not out.mask.all(1).any()
    assert same_bits(out.joints[~out.mask], joints[~out.mask])
    assert same_bits(out.confidence, confidence)
    assert np.isfinite(out.joints[out.mask]).all()


def test_the_whole_line_is_decode_then_refine(refiner: Refiner) -> None:
    heatmaps, delta = maps(32), MODEL.spec.threshold
    boxes = np.random.default_rng(0).uniform(0, 100, (32, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 1
    whole = refiner(heatmaps, boxes=boxes)
    first = decode(heatmaps, MODEL.spec.codec, MODEL.spec.temperature, delta)
    scale = (boxes[:, None, 2:] - boxes[:, None, :2]) / np.float32([20, 24])
    second = refiner.refine(first.joints * scale + boxes[:, None, :2], first.confidence)
    assert same_bits(whole.confidence, first.confidence)
    np.testing.assert_array_equal(whole.mask, second.mask)
    np.testing.assert_allclose(whole.joints, second.joints, rtol=0, atol=1e-3)


def test_decode_masks_what_is_missing_or_below_the_threshold() -> None:
    heatmaps = maps(32)
    out = decode(heatmaps, threshold=0.4)
    missing = np.isnan(out.joints).any(-1)
    assert missing.any()
    np.testing.assert_array_equal(out.mask, missing | (out.confidence < np.float32(0.4)))
    assert equal(out, decode(heatmaps, threshold=0.4, threads=3))
    assert decode(heatmaps, threshold=0.4, out=out) is out


def test_boxes_and_affine_say_the_same(refiner: Refiner) -> None:
    heatmaps = maps(3)
    boxes = np.array([[10, 20, 50, 68], [0, 0, 20, 24], [5, 5, 25, 53]])
    affine = np.zeros((3, 2, 3))
    affine[:, 0, 0], affine[:, 1, 1] = (boxes[:, 2] - boxes[:, 0]) / 20, (boxes[:, 3] - boxes[:, 1]) / 24
    affine[:, :, 2] = boxes[:, :2]
    assert equal(refiner(heatmaps, boxes=boxes), refiner(heatmaps, affine=affine))
    assert not equal(refiner(heatmaps, boxes=boxes), refiner(heatmaps, boxes=boxes, udp=True))


def test_identity_is_the_default_frame(refiner: Refiner) -> None:
    assert equal(refiner(maps(3)), refiner(maps(3), affine=np.eye(2, 3)))


def test_threshold_of_a_call_wins(refiner: Refiner) -> None:
    joints, confidence = np.abs(poses(8)[0][:1]) + 1, np.full((1, 21), 0.5, np.float32)
    confidence[0, :5] = 0.2
    joints = np.random.default_rng(0).uniform(0, 200, (1, 21, 2)).astype(np.float32)
    assert refiner.refine(joints, confidence, threshold=0).mask.sum() == 0
    assert refiner.refine(joints, confidence).mask.sum() == 5
    assert refiner.refine(joints, confidence, threshold=np.float32(0.1)).mask.sum() == 0
    stricter = Refiner.load(MODEL, threshold=0.1, threads=1)
    assert stricter.refine(joints, confidence).mask.sum() == 0
    assert stricter.refine(joints, confidence, threshold=0.3).mask.sum() == 5


def test_options_of_load_reach_the_backend() -> None:
    joints = np.random.default_rng(0).uniform(0, 200, (1, 21, 2)).astype(np.float32)
    confidence = np.full((1, 21), 0.5, np.float32)
    confidence[0, :5] = 0.2
    assert Refiner.load(MODEL, min_visible=17).refine(joints, confidence).mask.sum() == 0
    assert Refiner.load(MODEL, max_masked=4).refine(joints, confidence).mask.sum() == 0
    every = Refiner.load(MODEL, refine="all")
    assert every.refine(joints, confidence).mask.all()
    assert every.model.refine == "all"


def test_out_is_filled_and_returned(refiner: Refiner) -> None:
    joints, confidence = poses(7)
    out = Refined(np.empty((7, 21, 2), np.float32), np.empty((7, 21), np.float32), np.empty((7, 21), np.bool_))
    assert refiner.refine(joints, confidence, out=out) is out
    assert equal(out, refiner.refine(joints, confidence))
    triple = tuple(np.empty_like(a) for a in out)
    result = refiner(maps(7), out=triple)
    assert all(a is b for a, b in zip(result, triple, strict=True))
    assert equal(result, refiner(maps(7)))


def test_in_place(refiner: Refiner) -> None:
    joints, confidence = poses(33)
    expected = refiner.refine(joints, confidence)
    joints, confidence = joints.copy(), confidence.copy()
    refiner.refine(joints, confidence, out=(joints, confidence, np.empty((33, 21), np.bool_)))
    assert same_bits(joints, expected.joints)


def test_outputs_that_overlap_are_refused(refiner: Refiner) -> None:
    joints, confidence = poses(2)
    memory = np.zeros(2 * 21 * 3, np.float32)
    mask = np.empty((2, 21), np.bool_)
    with pytest.raises(InputError, match="overlap"):
        refiner.refine(joints, confidence, out=(memory[:84].reshape(2, 21, 2), memory[60:102].reshape(2, 21), mask))
    long = np.zeros((3, 21, 2), np.float32)
    with pytest.raises(InputError, match="overlap"):
        refiner.refine(long[:2], confidence, out=(long[1:], np.empty_like(confidence), mask))


@pytest.mark.parametrize("bad", [None, "confidence", "mask", "joints"])
def test_out_that_does_not_fit_is_refused(refiner: Refiner, bad: str | None) -> None:
    fields = {
        "joints": np.empty((2, 21, 2), np.float32),
        "confidence": np.empty((2, 21), np.float32),
        "mask": np.empty((2, 21), np.bool_),
    }
    if bad is None:
        with pytest.raises(InputError, match=r"expected out as \(joints, confidence, mask\)"):
            refiner.refine(*poses(2), out=fields["joints"][0])
        return
    fields[bad] = np.empty(fields[bad].shape, np.int32)
    with pytest.raises(InputError, match=rf"expected out\.{bad} .* got int32"):
        refiner.refine(*poses(2), out=tuple(fields.values()))


def test_layouts_give_the_same_answer(refiner: Refiner) -> None:
    joints, confidence = poses(7)
    expected = refiner.refine(joints, confidence)
    assert equal(expected, refiner.refine(np.asfortranarray(joints), np.asfortranarray(confidence)))
    wide = np.zeros((7, 21, 3), np.float32)
    wide[..., :2], wide[..., 2] = joints, confidence
    assert equal(expected, refiner.refine(wide[..., :2], wide[..., 2]))  # views of MMPose's [B, N, 3]


def test_heatmaps_of_any_layout_give_the_same_answer(refiner: Refiner) -> None:
    heatmaps = maps(7)
    expected = refiner(heatmaps)
    padded = np.zeros((9, 25, 30, 40), np.float32)
    padded[1:8, 2:23, 3:27, 5:25] = heatmaps
    last = np.ascontiguousarray(heatmaps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # channels last
    odd = np.frombuffer(b"x" + heatmaps.tobytes(), np.uint8)[1:].view(np.float32).reshape(heatmaps.shape)
    assert not odd.flags.aligned
    for layout in (padded[1:8, 2:23, 3:27, 5:25], last, heatmaps[::-1][::-1], np.asfortranarray(heatmaps), odd):
        assert equal(expected, refiner(layout))
    assert equal(Refined(*(a[::-1] for a in expected)), refiner(heatmaps[::-1]))


def test_float16_heatmaps_are_those_values_in_float32(refiner: Refiner) -> None:
    half = maps(32).astype(np.float16)
    assert equal(refiner(half), refiner(half.astype(np.float32)))


def test_torch_in_torch_out_without_a_copy(refiner: Refiner) -> None:
    torch = pytest.importorskip("torch")
    joints, confidence = poses(7)
    expected = refiner.refine(joints, confidence)
    out = refiner.refine(torch.from_numpy(joints), torch.from_numpy(confidence))
    assert all(isinstance(t, torch.Tensor) for t in out)
    assert out.mask.dtype == torch.bool
    assert equal(expected, Refined(*(t.numpy() for t in out)))

    given = Refined(torch.empty(7, 21, 2), torch.empty(7, 21), torch.empty(7, 21, dtype=torch.bool))
    places = [t.data_ptr() for t in given]
    assert refiner.refine(torch.from_numpy(joints), torch.from_numpy(confidence), out=given) is given
    assert [t.data_ptr() for t in given] == places
    assert equal(expected, Refined(*(t.numpy() for t in given)))

    points = torch.from_numpy(joints.copy())
    place = points.data_ptr()
    refiner.refine(points, confidence, out=(points, *given[1:]))  # in place, in the tensor's own memory
    assert points.data_ptr() == place
    assert same_bits(points.numpy(), expected.joints)

    heatmaps = maps(7)
    for tensor in (torch.from_numpy(heatmaps), torch.from_numpy(heatmaps).to(memory_format=torch.channels_last)):
        assert equal(refiner(heatmaps), Refined(*(t.numpy() for t in refiner(tensor.requires_grad_()))))


def test_anything_with_dlpack_is_read(refiner: Refiner) -> None:
    class Foreign:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __dlpack__(self, stream: object = None) -> object:
            return self.values.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    joints, confidence = poses(7)
    joints, confidence = joints.copy(), confidence.copy()
    assert equal(refiner.refine(joints, confidence), refiner.refine(Foreign(joints), Foreign(confidence)))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_batches_do_not_change_a_bit(refiner: Refiner, threads: int) -> None:
    joints, confidence = poses(101)
    many = Refiner.load(MODEL, threads=threads)
    expected = refiner.refine(joints, confidence)
    assert equal(expected, many.refine(joints, confidence))
    one_by_one = [many.refine(joints[i : i + 1], confidence[i : i + 1]) for i in range(101)]
    assert equal(expected, Refined(*(np.concatenate(parts) for parts in zip(*one_by_one, strict=True))))
    order = np.random.default_rng(1).permutation(101)
    shuffled = many.refine(joints[order], confidence[order])
    assert equal(Refined(*(a[order] for a in expected)), shuffled)
    assert equal(refiner(maps(40)), many(maps(40)))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_threads_share_one_refiner(threads: int) -> None:
    shared = Refiner.load(MODEL, threads=threads)
    jobs = [(1 + i % 17, i) for i in range(200)]
    inputs = [joint_questions(MODEL.spec, size, seed) for size, seed in jobs]
    heatmaps = maps(5)
    expected = [shared.refine(a.first, a.second) for a in inputs]
    decoded = shared(heatmaps)
    gate = threading.Barrier(8)

    def work(worker: int) -> bool:
        gate.wait()
        fine = True
        for i in range(worker, len(jobs), 4):
            fine &= equal(expected[i], shared.refine(inputs[i].first, inputs[i].second))
            fine &= equal(decoded, shared(heatmaps))
        return fine

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_gil_is_released() -> None:
    shared = Refiner.load(MODEL, threads=1)
    joints, confidence = poses(2000)
    ticks, busy = 0, True

    def tick() -> None:
        nonlocal ticks
        while busy:
            ticks += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # so the other thread runs only where somebody lets go of the lock
    counter = threading.Thread(target=tick)
    counter.start()
    try:
        before = ticks
        shared.refine(joints, confidence)  # a tenth of a second or more
        assert ticks > before
    finally:
        busy = False
        counter.join()
        sys.setswitchinterval(interval)


def test_nothing_grows_with_out(refiner: Refiner) -> None:
    joints, confidence = poses(256)
    heatmaps = maps(16)
    many = Refined(np.empty((256, 21, 2), np.float32), np.empty((256, 21), np.float32), np.empty((256, 21), np.bool_))
    few = Refined(*(a[:16].copy() for a in many))
    for _ in range(3):
        refiner.refine(joints, confidence, out=many)
        refiner(heatmaps, out=few)
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(20):
            refiner.refine(joints, confidence, out=many)
            refiner(heatmaps, out=few)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - base < 2048, "memory is kept from call to call"
    assert peak - base < 4096, "an array was allocated: the smallest of a call holds 5,376 bytes"


def test_load_from_a_file(tmp_path: object, refiner: Refiner) -> None:
    path = f"{tmp_path}/mine.safetensors"
    save_model(path, MODEL.spec, MODEL.tensors)
    loaded = Refiner.load(path, threads=1)
    assert equal(loaded.refine(*poses(7)), refiner.refine(*poses(7)))
    assert loaded.model == MODEL.spec


def test_it_says_what_it_is(refiner: Refiner) -> None:
    assert refiner.backend.name == "native-cpu"
    assert refiner.backend.device == "cpu"
    assert "native-cuda" in refiner.backend.reason  # why not
    assert "1 thread" in str(refiner.backend)
    assert repr(refiner) == "Refiner('random', backend='native-cpu', threshold=0.3, refine='masked')"
    assert refiner.refine_mode == refiner.model.refine == "masked"
    every = Refiner.load(MODEL, refine="all", threads=1)
    assert every.refine_mode == "all"
    assert repr(every).endswith("refine='all')")
    with pytest.raises(AttributeError):
        every.refine_mode = "masked"  # type: ignore[misc]
    assert refiner.model.skeleton.name == "hand21"
