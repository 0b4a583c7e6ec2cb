# SPDX-License-Identifier: Apache-2.0
"""What all tests share: models with random weights, research data where it lies beside the checkout, GPU markers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from port_deploy.config import ModelSpec, PortConfig
from port_deploy.skeleton import Skeleton
from port_deploy.weights import Model, model_from_bytes, model_to_bytes

# PyTorch's threads spin while they wait: with two of them and other work beside, the oracle takes five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ModelMaker = Callable[..., Model]


def random_model(kind: str = "soft", skeleton: str = "hand21", seed: int = 0, **changes: Any) -> Model:
    """A model with random weights, scaled so that its answers are of the order of one frame unit.

    Args:
        kind: ``paper`` or ``soft``.
        skeleton: Bundled name.
        seed: Of the weights.
        changes: Fields of `ModelSpec`, or of `PortConfig` (each goes where it belongs).
    """
    shape = {k: changes.pop(k) for k in list(changes) if k in PortConfig.__dataclass_fields__}
    spec = ModelSpec("random", Skeleton.load(skeleton), PortConfig.preset(kind, **shape), **changes)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, size in spec.config.parameter_shapes().items():
        if ".norm" in name:
            tensors[name] = (rng.normal(1.0 if name.endswith("weight") else 0.0, 0.1, size)).astype(np.float32)
        elif len(size) == 1:
            tensors[name] = rng.normal(0.0, 0.1, size).astype(np.float32)
        else:
            fan_in = size[1] if len(size) == 2 else size[-2]
            tensors[name] = rng.normal(0.0, fan_in**-0.5, size).astype(np.float32)
    tensors["head.out.weight"] *= np.float32(0.3)
    return model_from_bytes(model_to_bytes(spec, tensors), f"random {kind} {skeleton}")


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """`random_model`."""
    return random_model


def data_folder() -> Path:
    """Research data: PORT_DATA, or ``shared`` beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("PORT_DATA", default))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a research file such as ``data/panoptic_dev_hand21.npz``; skips, saying so, where it is absent."""

    def find(name: str) -> Path:
        path = data_folder() / name
        if not path.exists():
            pytest.skip(f"research data {name} is not here: set PORT_DATA to the folder that holds it")
        return path

    return find


SMALL = {"kind": "soft", "layers": 1, "head_dim": 16}
"""`random_model` of `small_onnx`."""


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``m.safetensors``, ``joints/m.onnx`` and ``heatmaps/m.onnx`` of a small model, exported once a session."""
    for library in ("torch", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    from port_deploy.export import ExportOptions, export_model
    from port_deploy.weights import save_model

    place = tmp_path_factory.mktemp("small")
    model = random_model(**SMALL)
    save_model(place / "m.safetensors", model.spec, model.tensors)
    for kind in ("joints", "heatmaps"):
        options = ExportOptions(("onnx",), input=kind)  # type: ignore[arg-type]
        export_model(place / "m.safetensors", place / kind, options)
    return place


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither use nor fill the engine cache of whoever runs them."""
    os.environ["PORT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def gpu_present() -> bool:
    """Whether an NVIDIA driver answers, asked without touching CUDA."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests without a GPU, or fail them where PORT_REQUIRE says that there must be one."""
    if item.get_closest_marker("cuda") and not gpu_present():
        if "cuda" in os.environ.get("PORT_REQUIRE", ""):
            pytest.fail("PORT_REQUIRE=cuda, and no NVIDIA GPU answers")
        pytest.skip("no NVIDIA GPU")
