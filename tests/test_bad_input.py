# SPDX-License-Identifier: Apache-2.0
"""Bad arrays and numbers: each ends in one line that says what to do, or stays its own pose's problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import random_model

from port_deploy import InputError, Refined, Refiner, decode
from port_deploy.verify_problems import joint_questions

MODEL = random_model("soft", "hand21", layers=2, head_dim=16)
REFINERS: dict[str, Refiner] = {}


@pytest.fixture(params=["native-cpu", "torch"])
def refiner(request: pytest.FixtureRequest) -> Refiner:
    name = request.param
    if name == "torch":
        pytest.importorskip("torch")
    if name not in REFINERS:
        REFINERS[name] = Refiner.load(MODEL, backend=name, threads=2)
    return REFINERS[name]


def good(batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.uniform(0, 256, (batch, 21, 2)).astype("f4"), rng.random((batch, 21)).astype("f4")


def good_maps(batch: int = 4) -> np.ndarray:
    return np.random.default_rng(6).random((batch, 21, 12, 10)).astype("f4")


JOINTS: list[tuple[Callable[[np.ndarray], Any], str]] = [
    (lambda j: j[0], r"expected joints \[B, 21, 2\], got \[21, 2\]: add the batch axis with joints\[None\]"),
    (lambda j: j[None], r"got \[1, 4, 21, 2\]"),
    (lambda j: j.reshape(4, 42), r"got \[4, 42\]"),
    (lambda j: j[:, :17], r"expected joints \[B, 21, 2\], got \[4, 17, 2\]: this model is for skeleton 'hand21'"),
    (lambda j: np.zeros((4, 21, 3), "f4"), r"got \[4, 21, 3\]"),
    (lambda j: j.transpose(0, 2, 1), r"got \[4, 2, 21\]"),
    (lambda j: j.astype("f8"), r"expected joints float32, got float64: pass joints\.astype\(numpy\.float32\)"),
    (lambda j: j.astype("f2"), "got float16"),
    (lambda j: j.astype("i4"), "got int32"),
    (lambda j: j.astype("c8"), "got complex64"),
    (lambda j: j.astype(">f4"), "got >f4"),
    (lambda j: j.astype(object), "got object"),
    (lambda j: j.tolist(), "expected joints as a NumPy array, a torch tensor or anything with DLPack, got list"),
    (lambda j: None, "got NoneType"),
    (lambda j: j[:3], r"expected confidence \[3, 21\] beside the joints, got \[4, 21\]"),
]


@pytest.mark.parametrize(("spoil", "message"), JOINTS)
def test_joints_that_do_not_fit(refiner: Refiner, spoil: Callable[[np.ndarray], Any], message: str) -> None:
    joints, confidence = good()
    with pytest.raises(InputError, match=message) as caught:
        refiner.refine(spoil(joints), confidence)
    assert "\n" not in str(caught.value)


CONFIDENCE: list[tuple[Callable[[np.ndarray], Any], str]] = [
    (lambda c: c[0], r"expected confidence \[4, 21\] beside the joints, got \[21\]"),
    (lambda c: c[..., None], r"got \[4, 21, 1\]"),
    (lambda c: c[:, :20], r"got \[4, 20\]"),
    (lambda c: c.astype("f8"), r"expected confidence float32, got float64: pass confidence\.astype"),
    (lambda c: c > 0.5, "expected confidence float32, got bool"),
    (lambda c: 0.5, "got float"),
]


@pytest.mark.parametrize(("spoil", "message"), CONFIDENCE)
def test_confidence_that_does_not_fit(refiner: Refiner, spoil: Callable[[np.ndarray], Any], message: str) -> None:
    joints, confidence = good()
    with pytest.raises(InputError, match=message):
        refiner.refine(joints, spoil(confidence))


MAPS: list[tuple[Callable[[np.ndarray], Any], str]] = [
    (
        lambda m: m[0],
        r"expected heatmaps \[B, 21, H, W\], got \[21, 12, 10\]: add the batch axis with heatmaps\[None\]",
    ),
    (lambda m: m[:, :17], r"got \[4, 17, 12, 10\]: this model is for skeleton 'hand21'"),
    (lambda m: m.transpose(0, 2, 3, 1), r"got \[4, 12, 10, 21\]: .*joints come before height and width"),
    (lambda m: m[:, :, :0], r"got \[4, 21, 0, 10\]: no axis but B may be empty"),
    (lambda m: m.astype("f8"), r"expected heatmaps float32 or float16, got float64"),
    (lambda m: (m * 255).astype("u1"), "got uint8"),
    (lambda m: m.astype(">f4"), "got >f4"),
]


@pytest.mark.parametrize(("spoil", "message"), MAPS)
def test_heatmaps_that_do_not_fit(refiner: Refiner, spoil: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        refiner(spoil(good_maps()))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), float("-inf"), "0.3", True])
def test_unusable_thresholds(refiner: Refiner, value: Any) -> None:
    for call in (lambda: refiner.refine(*good(), threshold=value), lambda: refiner(good_maps(), threshold=value)):
        with pytest.raises(InputError, match="expected threshold to be a finite number of at least 0"):
            call()
    with pytest.raises(InputError, match="threshold"):
        decode(good_maps(), threshold=value)


def test_boxes_that_do_not_fit(refiner: Refiner) -> None:
    boxes = np.array([[0, 0, 9, 9], [4, 4, 4, 9], [0, 0, 9, 9], [9, 9, 2, 2]], np.float32)
    with pytest.raises(InputError, match=r"x2 > x1 and y2 > y1, not so in rows 1, 3: leave those out"):
        refiner(good_maps(), boxes=boxes)
    with pytest.raises(InputError, match="expected boxes or affine, got both"):
        refiner(good_maps(), boxes=boxes, affine=np.eye(2, 3))
    with pytest.raises(InputError, match=r"expected boxes \[4, 4\]"):
        refiner(good_maps(), boxes=boxes[:2])
    with pytest.raises(InputError, match="udp=True says how boxes are read"):
        refiner(good_maps(), udp=True)
    with pytest.raises(InputError, match=r"expected affine \[4, 2, 3\]"):
        refiner(good_maps(), affine=np.eye(3))


def test_memory_on_a_gpu_is_refused(refiner: Refiner) -> None:
    class OnGpu:
        __cuda_array_interface__ = None

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("asked for memory that this backend cannot read")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    joints, confidence = good()
    for call in (
        lambda: refiner.refine(OnGpu(), confidence),
        lambda: refiner.refine(joints, OnGpu()),
        lambda: refiner(OnGpu()),
        lambda: refiner.refine(joints, confidence, out=(OnGpu(), OnGpu(), OnGpu())),
    ):
        with pytest.raises(InputError, match="host memory, got a CUDA device"):
            call()


def test_nothing_is_written_when_a_call_is_refused(refiner: Refiner) -> None:
    joints, confidence = good()
    out = Refined(np.full((4, 21, 2), 7, "f4"), np.full((4, 21), 7, "f4"), np.zeros((4, 21), "?"))
    for bad in ((joints[:, :17], confidence), (joints, confidence[:2]), (joints.astype("f8"), confidence)):
        with pytest.raises(InputError):
            refiner.refine(*bad, out=out)
    assert (out.joints == 7).all()
    assert (out.confidence == 7).all()


def rows(result: Refined, keep: np.ndarray) -> list[bytes]:
    return [np.asarray(a)[keep].tobytes() for a in result]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e7])
@pytest.mark.parametrize("where", ["one coordinate", "a pose", "confidence"])
def test_bad_numbers_stay_in_their_pose(refiner: Refiner, value: float, where: str) -> None:
    joints, confidence = good(9)
    clean = refiner.refine(joints, confidence)
    joints, confidence = joints.copy(), confidence.copy()
    if where == "confidence":
        confidence[4, ::2] = value
    elif where == "a pose":
        joints[4] = value
    else:
        joints[4, 3, 1] = value
    out = refiner.refine(joints, confidence)
    others = np.arange(9) != 4
    assert rows(out, others) == rows(clean, others)
    if where == "one coordinate":
        assert out.mask[4, 3]
        assert np.isfinite(out.joints[4, 3]).all()  # rebuilt
    if where == "a pose":
        assert not out.mask[4].any()
        assert out.joints[4].tobytes() == joints[4].tobytes()  # bit for bit as it came


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["a pixel", "a map", "a pose"])
def test_bad_heatmaps_stay_in_their_pose(refiner: Refiner, value: float, where: str) -> None:
    maps = good_maps(9)
    clean = refiner(maps)
    maps = maps.copy()
    target = {"a pixel": np.s_[4, 7, 3, 3], "a map": np.s_[4, 7], "a pose": np.s_[4]}[where]
    maps[target] = value
    out = refiner(maps)
    others = np.arange(9) != 4
    if refiner.backend.name == "native-cpu":
        assert rows(out, others) == rows(clean, others)
    else:
        np.testing.assert_allclose(out.joints[others], clean.joints[others], atol=1e-3)
    if value != -np.inf:
        assert out.confidence[4, 7] == 0
        assert where == "a pose" or np.isfinite(out.joints[4, 7]).all()  # missing, so rebuilt


def test_all_masked_comes_back_as_it_was(refiner: Refiner) -> None:
    joints, _ = good()
    out = refiner.refine(joints, np.zeros((4, 21), "f4"))
    assert out.joints.tobytes() == joints.tobytes()
    assert not out.mask.any()


def test_none_masked_comes_back_as_it_was(refiner: Refiner) -> None:
    joints, _ = good()
    out = refiner.refine(joints, np.ones((4, 21), "f4"))
    assert out.joints.tobytes() == joints.tobytes()
    assert not out.mask.any()


def test_empty_heatmaps_come_back_undecided(refiner: Refiner) -> None:
    out = refiner(np.zeros((2, 21, 12, 10), "f4"))
    np.testing.assert_allclose(out.joints, np.broadcast_to(np.float32([4.5, 5.5]), (2, 21, 2)), atol=1e-5)
    assert (out.confidence == 0).all()
    assert not out.mask.any()


def test_all_joints_in_one_place_come_back_as_they_were(refiner: Refiner) -> None:
    joints = np.full((1, 21, 2), 77.25, "f4")
    confidence = np.ones((1, 21), "f4")
    confidence[0, 3] = 0
    out = refiner.refine(joints, confidence)
    assert out.joints.tobytes() == joints.tobytes()
    assert not out.mask.any()


def test_too_few_visible_come_back_as_they_were(refiner: Refiner) -> None:
    joints, _ = good(2)
    confidence = np.zeros((2, 21), "f4")
    confidence[0, : MODEL.spec.min_visible - 1] = 1
    confidence[1, : MODEL.spec.min_visible] = 1
    out = refiner.refine(joints, confidence)
    assert out.joints[0].tobytes() == joints[0].tobytes()
    assert not out.mask[0].any()
    assert out.mask[1].sum() == 21 - MODEL.spec.min_visible


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codec": "centroid"}, "centroid"),
        ({"codec": None}, "codec"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": "40"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"threshold": -1}, "threshold"),
        ({"threads": -1}, "threads"),
        ({"threads": 1.5}, "threads"),
    ],
)
def test_decode_refuses_unusable_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(good_maps(), **arguments)


def test_every_awkward_pose_at_once_leaves_the_process_alive(refiner: Refiner) -> None:
    asked = joint_questions(MODEL.spec, 64, seed=9)
    with np.errstate(all="ignore"):
        wild = (asked.first * np.float32(1e38)).astype("f4")
    for joints in (asked.first, wild):
        for threshold in (0, 1e-30, 0.5, 1e30):
            out = refiner.refine(joints, asked.second, threshold=threshold)
            assert out.joints.shape == joints.shape
