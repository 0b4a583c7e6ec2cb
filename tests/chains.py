# SPDX-License-Identifier: Apache-2.0
"""What the tests of training share: a skeleton of six joints in a row, a small network, and poses for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from port_deploy.skeleton import Skeleton

CHAIN = Skeleton("chain6", tuple("abcdef"), tuple((i, i + 1) for i in range(5)))
SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "head_dim": 8}


def write_chains(folder: Path) -> Path:
    """Straight, evenly spaced chains: any two visible joints tell where the hidden ones are."""
    along = np.linspace(-1, 1, 6)[None, :, None] * np.array([1.0, 0.0])
    bend = np.random.default_rng(0).uniform(-0.2, 0.2, (600, 1, 1)) * (np.linspace(-1, 1, 6)[:, None] ** 2) * [0.0, 1.0]
    path = folder / "chains.npz"
    np.savez(path, joints=((along + bend) * 100).astype(np.float32), names=CHAIN.names)
    return path
