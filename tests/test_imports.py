# SPDX-License-Identifier: Apache-2.0
"""`import port_deploy` and the native path need NumPy and safetensors alone, and are quick."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "matplotlib", "cv2", "skimage", "scipy", "rich")


def python(code: str, *options: str) -> str:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_brings_nothing_heavy() -> None:
    code = f"import sys, port_deploy; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_native_path_works_where_nothing_heavy_can_be_imported() -> None:
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
import numpy as np, port_deploy
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
from test_imports import tiny_model
refiner = port_deploy.Refiner.load(tiny_model())
out = refiner.refine(np.random.rand(2, 21, 2).astype(np.float32) * 99, np.random.rand(2, 21).astype(np.float32))
out = refiner(np.random.rand(2, 21, 16, 16).astype(np.float16))
out = port_deploy.decode(np.random.rand(2, 21, 16, 16).astype(np.float32))
print(type(out.joints).__module__)
"""
    assert python(code).strip() == "numpy"


def tiny_model() -> object:
    """A small model of zeros, made without pytest."""
    import numpy as np

    from port_deploy.config import ModelSpec, PortConfig
    from port_deploy.skeleton import Skeleton
    from port_deploy.weights import model_from_bytes, model_to_bytes

    spec = ModelSpec("tiny", Skeleton.load("hand21"), PortConfig.preset("soft", layers=1, head_dim=8))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in spec.config.parameter_shapes().items()}
    return model_from_bytes(model_to_bytes(spec, tensors), "tiny")


def test_import_is_quick() -> None:
    """The budget is 0.3 s, counted in the processor's time, so that a busy machine does not fail it."""
    code = "import time; t = time.process_time(); import port_deploy; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) <= 0.3


def test_every_public_name_is_there() -> None:
    import port_deploy

    assert all(hasattr(port_deploy, name) for name in port_deploy.__all__)
    assert port_deploy.__version__ != ""
