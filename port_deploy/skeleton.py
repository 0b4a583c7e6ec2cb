# SPDX-License-Identifier: Apache-2.0
"""Skeletons as data: joint names, bones, mirror pairs; graph powers and normalisation follow from the bones.

The bundled ones are JSON files in data/skeletons; a user's own is the same JSON. May use: errors, NumPy.
Test: tests/test_skeleton.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.errors import InputError

MAX_JOINTS = 32
"""Largest N that every backend takes."""


@dataclass(frozen=True)
class Skeleton:
    """Joints and how they hang together.

    Attributes:
        name: e.g. ``hand21``.
        names: N joint names, in the order of every array.
        bones: Pairs of joint indices, undirected.
        mirror: Pairs of (left, right) joint indices that swap when the picture is mirrored; empty for a hand.
        root: Joint subtracted by the root-relative error and by the ``paper`` frame.
        axis: Joint that the ``paper`` frame turns onto +x.
    """

    name: str
    names: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    mirror: tuple[tuple[int, int], ...] = ()
    root: int = 0
    axis: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "bones", tuple((int(a), int(b)) for a, b in self.bones))
        object.__setattr__(self, "mirror", tuple((int(a), int(b)) for a, b in self.mirror))
        n = len(self.names)
        where = f"skeleton {self.name!r}"
        if not self.name or not 2 <= n <= MAX_JOINTS:
            raise InputError(f"{where}: expected a name and 2 to {MAX_JOINTS} joints, got {n}")
        if len(set(self.names)) != n or not all(isinstance(x, str) and x for x in self.names):
            raise InputError(f"{where}: expected different non-empty joint names")
        for kind, pairs in (("bone", self.bones), ("mirror pair", self.mirror)):
            for a, b in pairs:
                if not (0 <= a < n and 0 <= b < n and a != b):
                    raise InputError(f"{where}: {kind} [{a}, {b}] is not a pair of different joints from 0 to {n - 1}")
        if not self.bones:
            raise InputError(f"{where}: expected at least one bone")
        if len({j for pair in self.mirror for j in pair}) != 2 * len(self.mirror):
            raise InputError(f"{where}: a joint stands in two mirror pairs")
        if not (0 <= self.root < n and 0 <= self.axis < n and self.root != self.axis):
            raise InputError(f"{where}: expected root and axis to be different joints from 0 to {n - 1}")

    def adjacency(self) -> NDArray[np.float64]:
        """D^(-1/2) (A + I) D^(-1/2), float64 [N, N]. Section III-B."""
        n = len(self.names)
        a = np.eye(n)
        for i, j in self.bones:
            a[i, j] = a[j, i] = 1.0
        d: NDArray[np.float64] = a.sum(1) ** -0.5
        return d[:, None] * a * d[None, :]

    def hop_matrices(self, hops: tuple[int, ...]) -> NDArray[np.float64]:
        """The normalised adjacency to each power of ``hops``, float64 [len(hops), N, N]. Eq. (4)."""
        a = self.adjacency()
        return np.stack([np.linalg.matrix_power(a, k) for k in hops])

    def mirror_permutation(self) -> NDArray[np.int64]:
        """Index [N] that puts the joints of a mirrored picture back in order."""
        index = np.arange(len(self.names))
        for a, b in self.mirror:
            index[a], index[b] = b, a
        return index

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "name": self.name,
            "names": list(self.names),
            "bones": [list(b) for b in self.bones],
            "mirror": [list(m) for m in self.mirror],
            "root": self.root,
            "axis": self.axis,
        }

    @classmethod
    def from_json(cls, data: Any) -> Skeleton:
        """Read a skeleton: bones and mirror pairs by joint index or by joint name.

        Raises:
            InputError: A field is missing or does not fit; the message names it.
        """
        if not isinstance(data, dict) or not isinstance(data.get("names"), list):
            raise InputError('expected a skeleton {"name": …, "names": […], "bones": [[a, b], …], "mirror": […]}')
        names = data["names"]

        def joint(value: Any, field: str) -> int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if value in names:
                return int(names.index(value))
            raise InputError(
                f"skeleton {data.get('name')!r}: expected {field} to hold a joint's name or number, got {value!r}; "
                f"the joints are {names}"
            )

        def pairs(key: str) -> tuple[tuple[int, int], ...]:
            value = data.get(key, [])
            if not isinstance(value, list) or not all(isinstance(p, list) and len(p) == 2 for p in value):
                raise InputError(f"skeleton {data.get('name')!r}: expected {key} to be a list of pairs")
            return tuple((joint(a, key), joint(b, key)) for a, b in value)

        unknown = set(data) - {"name", "names", "bones", "mirror", "root", "axis"}
        if unknown:
            raise InputError(f"skeleton {data.get('name')!r}: unknown fields {sorted(unknown)}")
        return cls(
            name=str(data.get("name", "")),
            names=tuple(names),
            bones=pairs("bones"),
            mirror=pairs("mirror"),
            root=joint(data.get("root", 0), "root"),
            axis=joint(data.get("axis", 1), "axis"),
        )

    @classmethod
    def load(cls, name_or_path: str | Path) -> Skeleton:
        """A bundled skeleton by name, or a user's own from a JSON file.

        Raises:
            InputError: No such name or file, or the file is not a skeleton.
        """
        bundled = bundled_skeletons()
        text: str
        if str(name_or_path) in bundled:
            text = (resources.files("port_deploy") / "data" / "skeletons" / f"{name_or_path}.json").read_text("utf-8")
        else:
            path = Path(name_or_path)
            if path.suffix != ".json":
                raise InputError(f"no skeleton {str(path)!r}: use one of {', '.join(bundled)} or a .json file")
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read skeleton {path}: {error}") from error
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"skeleton {name_or_path} is not JSON: {error}") from error
        return cls.from_json(data)


def bundled_skeletons() -> tuple[str, ...]:
    """Names of the skeletons that come with the package."""
    folder = resources.files("port_deploy") / "data" / "skeletons"
    return tuple(sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json")))
