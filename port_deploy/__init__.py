# SPDX-License-Identifier: Apache-2.0
"""PORT, the pose relation transformer, deployed: repairs the joints that a keypoint detector lost to occlusion.

    refiner = port_deploy.Refiner.load("hand21")
    out = refiner(heatmaps)                   # [B, 21, H, W] -> out.joints, out.confidence, out.mask
    out = refiner.refine(joints, confidence)  # behind any detector
    engine = port_deploy.PoseEngine.load("detector_refiner.onnx")  # port-export MODEL --detector
    out = engine(crops)                       # [B, H, W, 3] uint8

Needs NumPy and safetensors only. Test: tests/test_imports.py.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from port_deploy.config import ModelSpec, PortConfig
from port_deploy.errors import (
    BackendUnavailableError,
    EngineMismatchError,
    ExportError,
    InputError,
    ModelFileError,
    PortError,
    VerificationError,
)
from port_deploy.pose_engine import PoseEngine
from port_deploy.refined import Refined
from port_deploy.refiner import Refiner, decode
from port_deploy.simcc import decode_simcc
from port_deploy.skeleton import Skeleton, bundled_skeletons
from port_deploy.weights import bundled_models

try:
    __version__ = version("port-deploy")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "BackendUnavailableError",
    "EngineMismatchError",
    "ExportError",
    "InputError",
    "ModelFileError",
    "ModelSpec",
    "PortConfig",
    "PortError",
    "PoseEngine",
    "Refined",
    "Refiner",
    "Skeleton",
    "VerificationError",
    "__version__",
    "bundled_models",
    "bundled_skeletons",
    "decode",
    "decode_simcc",
]
