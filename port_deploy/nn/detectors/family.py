# SPDX-License-Identifier: Apache-2.0
"""The detectors of the family by name: how each is built, its usual input size, and whose checkpoints fit it.

The five of the paper's Table I, and RTMPose. May use: the networks here, errors, torch. Test: tests/test_detectors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from port_deploy.errors import InputError
from port_deploy.nn.detectors.cspnext import CSPNeXt
from port_deploy.nn.detectors.heads import DECONVOLUTIONS, HeatmapHead, SimCCHead
from port_deploy.nn.detectors.hrnet import HRNet
from port_deploy.nn.detectors.mobilenetv2 import MobileNetV2
from port_deploy.nn.detectors.resnet import ResNet50
from port_deploy.nn.detectors.spec import DetectorSpec

_SQUARE = (256, 256)
_TALL = (256, 192)

Build = Callable[[DetectorSpec], tuple[nn.Module, nn.Module]]
"""Backbone and head of a specification."""


@dataclass(frozen=True)
class Member:
    """One of the family.

    Attributes:
        build: Backbone and head.
        simcc: Its outputs are SimCC vectors, not heatmaps.
        sources: MMPose configurations whose checkpoints fit (the model zoo lists a file for each).
    """

    build: Build
    simcc: bool
    sources: tuple[str, ...]

    def input_size(self, skeleton: str) -> tuple[int, int]:
        """(H, W) of the crops that checkpoints of a skeleton are usually trained at."""
        return _TALL if skeleton == "coco17" else _SQUARE


def _hrnet(width: int) -> Build:
    def build(spec: DetectorSpec) -> tuple[nn.Module, nn.Module]:
        backbone = HRNet(width)
        return backbone, HeatmapHead(backbone.channels, spec.joints)

    return build


def _hrnetv2(spec: DetectorSpec) -> tuple[nn.Module, nn.Module]:
    backbone = HRNet(18, all_branches=True, mode="bilinear")
    return backbone, HeatmapHead(backbone.channels, spec.joints, mix=True)


def deconvolved(backbone: Callable[[], ResNet50 | MobileNetV2], channels: tuple[int, ...] = DECONVOLUTIONS) -> Build:
    """A builder: features at a 32nd of the crop, enlarged by deconvolutions."""

    def build(spec: DetectorSpec) -> tuple[nn.Module, nn.Module]:
        features = backbone()
        return features, HeatmapHead(features.channels, spec.joints, channels)

    return build


def rtmpose(deepen: float, widen: float) -> Build:
    """A builder: RTMPose at a depth and width."""

    def build(spec: DetectorSpec) -> tuple[nn.Module, nn.Module]:
        backbone = CSPNeXt(deepen, widen)
        height, width = spec.input_size
        (_, bins_x), (_, bins_y) = spec.output_shapes
        return backbone, SimCCHead(backbone.channels, spec.joints, height * width // 1024, bins_x, bins_y)

    return build


FAMILY: Mapping[str, Member] = {
    "hrnet_w32": Member(_hrnet(32), False, ("td-hm_hrnet-w32_8xb64-210e_coco-256x192", "hrnet_w32_h36m_256x256")),
    "hrnet_w48": Member(_hrnet(48), False, ("td-hm_hrnet-w48_8xb32-210e_coco-256x192", "hrnet_w48_h36m_256x256")),
    "hrnetv2_w18": Member(
        _hrnetv2, False, ("td-hm_hrnetv2-w18_8xb64-210e_onehand10k-256x256", "hrnetv2_w18_panoptic2d_256x256")
    ),
    "mobilenetv2": Member(
        deconvolved(MobileNetV2),
        False,
        ("td-hm_mobilenetv2_8xb64-210e_onehand10k-256x256", "mobilenetv2_panoptic2d_256x256"),
    ),
    "resnet50": Member(
        deconvolved(ResNet50), False, ("td-hm_res50_8xb32-210e_onehand10k-256x256", "res50_panoptic2d_256x256")
    ),
    "rtmpose_t": Member(rtmpose(0.167, 0.375), True, ("rtmpose-t_8xb256-420e_coco-256x192",)),
    "rtmpose_s": Member(rtmpose(0.33, 0.5), True, ("rtmpose-s_8xb256-420e_coco-256x192",)),
    "rtmpose_m": Member(rtmpose(0.67, 0.75), True, ("rtmpose-m_8xb256-420e_coco-256x192",)),
    "rtmpose_l": Member(rtmpose(1.0, 1.0), True, ("rtmpose-l_8xb256-420e_coco-256x192",)),
}
"""Every detector by name; ``DETECTORS`` are the names."""

DETECTORS = tuple(FAMILY)


def member(name: str) -> tuple[str, Member]:
    """The family's own spelling of a name, and what it means; ``HRNet-w32`` is ``hrnet_w32``.

    Raises:
        InputError: There is none of that name; the message lists them.
    """
    plain = name.lower().replace("-", "_")
    if plain not in FAMILY:
        raise InputError(f"unknown detector {name!r}: use one of {', '.join(DETECTORS)}")
    return plain, FAMILY[plain]
