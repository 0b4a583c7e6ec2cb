# SPDX-License-Identifier: Apache-2.0
"""Keypoint detectors whose checkpoints users have: the five of the paper's Table I, and RTMPose.

    detector = load_detector("hrnet_w32", "td-hm_hrnet-w32_8xb64-210e_coco-256x192.pth")
    (heatmaps,) = detector(crops)                     # uint8 [B, 256, 192, 3], RGB; `crops.cut_crops` makes them
    joints, confidence = DetectorDecode(detector.spec)(heatmaps)
    data = export_detector_onnx(detector, precision="fp16")

Own short modules, whose keys and shapes are those of MMPose 1.x. May use: nn, skeleton, errors, torch.
Test: tests/test_detectors.py, tests/test_detectors_{checkpoint,decode,onnx}.py.
"""

from port_deploy.nn.detectors.checkpoint import Checkpoint, read_checkpoint
from port_deploy.nn.detectors.decode import DetectorDecode, PeakDecode, SimccDecode
from port_deploy.nn.detectors.detector import Detector
from port_deploy.nn.detectors.family import DETECTORS, FAMILY
from port_deploy.nn.detectors.load import load_detector
from port_deploy.nn.detectors.spec import DetectorSpec, choose_skeleton
from port_deploy.nn.detectors.to_onnx import export_detector_onnx

__all__ = [
    "DETECTORS",
    "FAMILY",
    "Checkpoint",
    "Detector",
    "DetectorDecode",
    "DetectorSpec",
    "PeakDecode",
    "SimccDecode",
    "choose_skeleton",
    "export_detector_onnx",
    "load_detector",
    "read_checkpoint",
]
