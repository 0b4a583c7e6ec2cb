# SPDX-License-Identifier: Apache-2.0
"""skeleton.py: the bundled skeletons are sound, the graph is eq. (4)'s, a user's own JSON is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from port_deploy import InputError, Skeleton, bundled_skeletons

GOOD: dict[str, Any] = {"name": "line", "names": ["a", "b", "c"], "bones": [[0, 1], [1, 2]], "mirror": [[0, 2]]}


def test_the_five_are_there() -> None:
    assert bundled_skeletons() == ("coco17", "h36m17", "hand21", "hand21-rhd", "mpii16")


@pytest.mark.parametrize("name", bundled_skeletons())
def test_bundled_skeletons_are_one_connected_body(name: str) -> None:
    skeleton = Skeleton.load(name)
    n = len(skeleton.names)
    assert n == int("".join(c for c in name.split("-")[0] if c.isdigit())[-2:])
    reach = np.linalg.matrix_power(skeleton.adjacency() > 0, n)
    assert reach.all()
    again = skeleton.mirror_permutation()
    np.testing.assert_array_equal(again[again], np.arange(n))
    for left, right in skeleton.mirror:
        assert skeleton.names[left].replace("left", "right") == skeleton.names[right]
    bones = {frozenset(b) for b in skeleton.bones}
    assert {frozenset((again[a], again[b])) for a, b in skeleton.bones} == bones  # the graph is symmetric


def test_the_two_hands_are_one_hand_in_two_orders() -> None:
    ours, rhd = Skeleton.load("hand21"), Skeleton.load("hand21-rhd")
    assert set(ours.names) == set(rhd.names)

    def bones(skeleton: Skeleton) -> set[frozenset[str]]:
        return {frozenset((skeleton.names[a], skeleton.names[b])) for a, b in skeleton.bones}

    assert bones(ours) == bones(rhd)


def test_adjacency_is_normalised_with_its_loops() -> None:
    skeleton = Skeleton("line", ("a", "b", "c"), ((0, 1), (1, 2)))
    expected = np.array([[1 / 2, 1 / 6**0.5, 0], [1 / 6**0.5, 1 / 3, 1 / 6**0.5], [0, 1 / 6**0.5, 1 / 2]])
    np.testing.assert_allclose(skeleton.adjacency(), expected, atol=1e-15)
    powers = skeleton.hop_matrices((0, 1, 2))
    np.testing.assert_allclose(powers, [np.eye(3), expected, expected @ expected], atol=1e-15)


def test_a_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GOOD | {"bones": [["a", "b"], ["b", 2]], "mirror": [["a", "c"]]}))
    skeleton = Skeleton.load(path)
    assert skeleton.bones == ((0, 1), (1, 2))
    assert skeleton.mirror_permutation().tolist() == [2, 1, 0]
    assert Skeleton.from_json(json.loads(json.dumps(skeleton.to_json()))) == skeleton


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": "abc"}, "expected a skeleton"),
        ({"names": ["a"]}, "2 to 32 joints, got 1"),
        ({"names": [f"j{i}" for i in range(33)]}, "2 to 32 joints, got 33"),
        ({"names": ["a", "b", "b"]}, "different non-empty joint names"),
        ({"names": ["a", "b", ""]}, "different non-empty joint names"),
        ({"name": ""}, "expected a name"),
        ({"bones": []}, "at least one bone"),
        ({"bones": [["a", "z"]]}, "expected bones to hold a joint's name or number, got 'z'"),
        ({"bones": [["a", "a"]]}, "different joints"),
        ({"bones": [[0, 3]]}, r"bone \[0, 3\]"),
        ({"bones": [[-1, 0]]}, r"bone \[-1, 0\]"),
        ({"bones": [["a", "b", "c"]]}, "list of pairs"),
        ({"bones": {"a": "b"}}, "list of pairs"),
        ({"mirror": [["a", "b"], ["b", "c"]]}, "two mirror pairs"),
        ({"root": "b", "axis": "b"}, "root and axis"),
        ({"root": 7}, "root and axis"),
        ({"bonse": []}, r"unknown fields \['bonse'\]"),
    ],
)
def test_unusable_skeletons_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Skeleton.from_json(GOOD | changes)


@pytest.mark.parametrize("data", [None, [], 3, {}])
def test_what_is_no_skeleton_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="expected a skeleton"):
        Skeleton.from_json(data)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000])
def test_files_that_are_no_json_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        Skeleton.load(path)


def test_names_that_are_not_there_list_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use one of coco17, h36m17, hand21, hand21-rhd, mpii16"):
        Skeleton.load("coco18")
    with pytest.raises(InputError, match="cannot read skeleton"):
        Skeleton.load(tmp_path / "absent.json")
