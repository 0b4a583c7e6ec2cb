# SPDX-License-Identifier: Apache-2.0
"""Training data: names, loading, cameras and mirroring (port_deploy/joint_names.py, nn/data.py, nn/augment.py)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from port_deploy.errors import InputError  # noqa: E402
from port_deploy.joint_names import canonical_name, match_names  # noqa: E402
from port_deploy.nn.augment import (  # noqa: E402
    draw,
    draw_batch,
    mirror,
    normalise,
    project,
    random_rotations,
    rotation,
    view,
)
from port_deploy.nn.data import DataSpec, check_hold_out, load_source  # noqa: E402
from port_deploy.skeleton import Skeleton, bundled_skeletons  # noqa: E402

H36M_NAMES = (
    *("Hip", "RHip", "RKnee", "RFoot", "LHip", "LKnee", "LFoot", "Spine", "Thorax", "Neck/Nose", "Head"),
    *("LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist"),
)


def write(path: Path, **arrays: object) -> DataSpec:
    np.savez(path, **arrays)
    return DataSpec(path)


def hands(count: int = 40, dimensions: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 50, (count, 21, dimensions)).astype(np.float32)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *((w, "right_hip") for w in ("RHip", "rhip", "right_hip", "hip_r", "Right Hip", "r_hip", "hip-right")),
        *((w, "left_ankle") for w in ("lank", "LFoot", "left_foot", "LAnkle", "leftAnkle")),
        *((w, "index1") for w in ("forefinger1", "index1", "index_finger_mcp", "INDEX_FINGER_MCP")),
        *((w, "thumb1") for w in ("thumb1", "thumb_cmc")),
        *((w, "pelvis") for w in ("pelv", "Hip", "pelvis", "hip")),
        ("middle_finger4", "middle4"),
        ("little3", "pinky3"),
        ("THUMB_MCP", "thumb2"),
        ("rear", "right_ear"),
        ("lsho", "left_shoulder"),
        ("Neck/Nose", "neck"),
        ("thor", "thorax"),
        ("face", "face"),
        ("belly", "belly"),
    ],
)
def test_aliases(written: str, name: str) -> None:
    assert canonical_name(written) == name


@pytest.mark.parametrize("skeleton", bundled_skeletons())
def test_every_bundled_skeleton_matches_itself(skeleton: str) -> None:
    loaded = Skeleton.load(skeleton)
    assert match_names(loaded.names, loaded).tolist() == list(range(len(loaded.names)))


def test_h36m_names_reach_mpii_by_meaning() -> None:
    index = match_names(H36M_NAMES, Skeleton.load("mpii16"))
    assert index.tolist() == [3, 2, 1, 4, 5, 6, 0, 8, 9, 10, 16, 15, 14, 11, 12, 13]


def test_absent_joints_are_minus_one_and_head_is_not_face() -> None:
    index = match_names(["face", "lsho", "rsho"], Skeleton.load("mpii16"))
    names = Skeleton.load("mpii16").names
    assert index[names.index("head")] == -1
    assert index[names.index("left_shoulder")] == 1
    assert (index >= 0).sum() == 2


def test_names_that_collide_or_fit_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="mean the same joint"):
        match_names(["rhip", "RHip"], Skeleton.load("mpii16"))
    with pytest.raises(InputError, match="none of the joints"):
        match_names(["rhip", "lhip"], Skeleton.load("hand21"))


def test_data_option() -> None:
    assert DataSpec.parse("a.npz") == DataSpec(Path("a.npz"))
    spec = DataSpec.parse("a.npz:0.5:ignore=Neck/Nose+head")
    assert (spec.weight, spec.ignore) == (0.5, ("neck", "head"))
    for text in ("a.npz:0", "a.npz:x", "a.npz:-1", "a.npz:inf"):
        with pytest.raises(InputError, match="weight > 0"):
            DataSpec.parse(text)


def test_labels_missing_in_any_way_are_not_labelled(tmp_path: Path) -> None:
    skeleton = Skeleton.load("hand21")
    joints, labelled = hands(), np.ones((40, 21), bool)
    joints[0, 3] = np.nan
    labelled[1, 5] = False
    labelled[2, 3:] = False
    spec = write(tmp_path / "a.npz", joints=joints, labelled=labelled, names=skeleton.names)
    source = load_source(DataSpec(spec.path, ignore=("thumb1",)), skeleton, {})
    assert len(source.points) == 39, "the pose with three labels is left out"
    assert not source.labelled[0, 3]
    assert not source.labelled[1, 5]
    assert not source.labelled[:, 1].any()
    assert source.labelled.sum() == 39 * 20 - 2
    assert torch.isfinite(source.points).all()
    size = source.points.square().sum((1, 2)) / (2 * source.labelled.sum(1))
    torch.testing.assert_close(size, torch.ones(39))


def test_hold_out_by_field_by_sequence_and_at_random(tmp_path: Path) -> None:
    skeleton = Skeleton.load("hand21")
    subject, seq = np.arange(400) % 4, np.arange(400) // 10
    spec = write(tmp_path / "a.npz", joints=hands(400), names=skeleton.names, subject=subject, seq=seq)
    source = load_source(spec, skeleton, {"subject": (1.0, 3.0), "absent": (0.0,)})
    assert sorted(source.held_out.tolist()) == np.flatnonzero(subject % 2 == 1).tolist()
    assert not set(source.held_out.tolist()) & set(source.training.tolist())
    source = load_source(spec, skeleton, {"absent": (0.0,)})
    assert 0 < len(source.held_out) < 200
    assert not set(seq[source.held_out].tolist()) & set(seq[source.training].tolist()), "sequences stay whole"
    with pytest.raises(InputError, match="every pose is held out"):
        load_source(spec, skeleton, {"subject": (0.0, 1.0, 2.0, 3.0)})


def test_a_field_that_no_file_has_is_refused(tmp_path: Path) -> None:
    skeleton, numbers = Skeleton.load("hand21"), np.arange(40) % 4
    texts = numbers.astype(str)
    named = {"joints": hands(), "names": skeleton.names}
    first = load_source(write(tmp_path / "a.npz", **named, subject=numbers, image=texts), skeleton, {})
    second = load_source(write(tmp_path / "b.npz", **named), skeleton, {})
    check_hold_out({"subject": (1.0,)}, [first, second])  # one of them has it
    check_hold_out({}, [second])
    for field in ("sbject", "image"):  # a text is no number that could be asked for
        with pytest.raises(InputError) as caught:
            check_hold_out({"subject": (1.0,), field: (1.0,)}, [first, second])
        assert f"--hold-out {field}: no data file" in str(caught.value)
        assert "a.npz has subject; b.npz has none" in str(caught.value)


def test_joints_without_any_label_are_named_beside_the_names_that_mean_nothing(tmp_path: Path) -> None:
    skeleton = Skeleton.load("hand21")
    whole = load_source(write(tmp_path / "a.npz", joints=hands(), names=skeleton.names), skeleton, {})
    assert whole.gaps(skeleton) == ""
    names = ["wrong" if n == "index2" else n for n in skeleton.names]
    wrong = write(tmp_path / "b.npz", joints=hands(), names=names)
    gaps = load_source(wrong, skeleton, {}).gaps(skeleton)
    assert gaps == "b.npz: no labels for index2 (its names that hand21 does not have: wrong)"
    assert load_source(DataSpec(wrong.path, ignore=("index2",)), skeleton, {}).gaps(skeleton) == "", "as was asked for"
    empty = hands()
    empty[:, 4:12] = np.nan
    unlabelled = load_source(write(tmp_path / "c.npz", joints=empty, names=skeleton.names), skeleton, {})
    assert unlabelled.gaps(skeleton) == f"c.npz: no labels for {', '.join(skeleton.names[4:9])} and 3 more"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"names": ["a"]}, "expected an array joints"),
        ({"joints": np.zeros((4, 21, 3)), "names": ["a"] * 21}, r"joints \[M, n, 2\]"),
        ({"joints": np.zeros((4, 21, 2))}, "expected an array names"),
        ({"joints": np.zeros((4, 21, 2)), "names": Skeleton.load("hand21").names}, "no pose with 4 labelled"),
        ({"joints": np.zeros((0, 21, 2)), "names": Skeleton.load("hand21").names}, "at least one pose"),
        (
            {"joints": hands(4), "names": Skeleton.load("hand21").names, "labelled": np.ones((4, 3))},
            r"expected labelled \[4, 21\]",
        ),
        ({"joints": np.array([[["x", "y"]]]), "names": ["wrist"]}, "of numbers"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    spec = write(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_source(spec, Skeleton.load("hand21"), {})


def test_missing_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    skeleton = Skeleton.load("hand21")
    with pytest.raises(InputError, match="no data file"):
        load_source(DataSpec(tmp_path / "none.npz"), skeleton, {})
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(InputError, match="cannot read data"):
        load_source(DataSpec(tmp_path / "broken.npz"), skeleton, {})
    spec = write(tmp_path / "pickled.npz", joints=np.array([object()], dtype=object))
    with pytest.raises(InputError, match="cannot read data"):
        load_source(spec, skeleton, {})


def test_rotations_are_rotations() -> None:
    turns = random_rotations(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turns @ turns.transpose(1, 2), torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(50), atol=1e-5, rtol=0)
    quarter = rotation(1, torch.tensor([math.pi / 2]))[0]
    torch.testing.assert_close(
        quarter @ torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0
    )


def test_projection() -> None:
    points = torch.tensor([[[1.0, 2.0, 0.0], [1.0, 2.0, 5.0], [1.0, 2.0, -10.0]]])
    seen = project(points, torch.tensor([10.0]))[0]
    torch.testing.assert_close(seen, torch.tensor([[1.0, -2.0], [2.0, -4.0], [0.5, -1.0]]))  # nearer is larger, y down
    far = project(points, torch.tensor([1e6]))[0]
    torch.testing.assert_close(far, torch.tensor([[1.0, -2.0]]).expand(3, 2), atol=1e-4, rtol=0)


def test_upright_views_keep_the_head_above_the_feet() -> None:
    points = torch.tensor([[[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]]).expand(500, 2, 3)
    upright = view(points, True, torch.Generator().manual_seed(0))
    assert (upright[:, 0, 1] < upright[:, 1, 1]).float().mean() > 0.9
    anyhow = view(points, False, torch.Generator().manual_seed(0))
    assert 0.4 < (anyhow[:, 0, 1] < anyhow[:, 1, 1]).float().mean() < 0.6


def test_mirroring_swaps_left_and_right() -> None:
    skeleton = Skeleton.load("mpii16")
    joints = torch.arange(32.0).view(1, 16, 2).repeat(64, 1, 1)
    labelled = torch.ones(64, 16, dtype=torch.bool)
    left, right = skeleton.names.index("left_wrist"), skeleton.names.index("right_wrist")
    labelled[:, left] = False
    seen, marked = mirror(joints, labelled, skeleton, torch.Generator().manual_seed(0))
    flipped = seen[:, skeleton.root, 0] < 0
    assert 16 < flipped.sum() < 48
    expected = joints[0, left] * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(seen[flipped][:, right], expected.expand(int(flipped.sum()), 2))
    torch.testing.assert_close(seen[~flipped], joints[~flipped])
    assert not marked[flipped][:, right].any()
    assert marked[flipped][:, left].all()
    assert not marked[~flipped][:, left].any()


def test_draw_gives_normalised_poses_and_the_same_ones_again(tmp_path: Path) -> None:
    skeleton = Skeleton.load("hand21")
    labelled = np.random.default_rng(1).random((40, 21)) < 0.8
    flat = load_source(write(tmp_path / "a.npz", joints=hands(), labelled=labelled, names=skeleton.names), skeleton, {})
    deep = load_source(write(tmp_path / "b.npz", joints3d=hands(dimensions=3), names=skeleton.names), skeleton, {})
    for source in (flat, deep):
        joints, marked = draw(source, torch.arange(len(source.points)), skeleton, torch.Generator().manual_seed(5))
        torch.testing.assert_close(normalise(joints, marked), joints, atol=1e-5, rtol=0)
        again, _ = draw(source, torch.arange(len(source.points)), skeleton, torch.Generator().manual_seed(5))
        assert torch.equal(joints, again)
    joints, marked = draw_batch([flat, deep], 256, skeleton, torch.Generator().manual_seed(0))
    assert joints.shape == (256, 21, 2)
    whole = marked.all(1).float().mean()
    assert 0.35 < whole < 0.65, "half the batch comes from the fully labelled file"
