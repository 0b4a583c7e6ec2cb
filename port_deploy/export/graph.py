# SPDX-License-Identifier: Apache-2.0
"""The PyTorch module that every export traces or scripts: the whole line, in evaluation mode, at a precision.

May use: nn, weights, sidecar, torch. Test: tests/test_export.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from port_deploy.detector_info import DetectorInfo
from port_deploy.nn.detector_line import detected_line
from port_deploy.nn.line_std import heatmap_line, refine_line
from port_deploy.nn.port import Port
from port_deploy.sidecar import InputKind, Precision, outputs_of
from port_deploy.weights import Model

LOWERED = {"fp16": torch.float16, "bf16": torch.bfloat16}

_EXAMPLE_POSES = 3  # not 1: torch.export takes a dimension of 1 for a constant


@dataclass(frozen=True)
class Graph:
    """A module with what exporters want to know.

    Attributes:
        module: `HeatmapLine`, `RefineLine`, or what follows a detector.
        examples: Inputs to trace it with.
        dynamic_shapes: Which dimensions are free, as torch.export wants them.
        outputs: Names of what it answers.
    """

    module: torch.nn.Module
    examples: tuple[torch.Tensor, ...]
    dynamic_shapes: tuple[dict[int, Any] | None, ...]
    outputs: tuple[str, ...]


def build_graph(model: Model, kind: InputKind, precision: Precision) -> Graph:
    """The module of an artefact.

    Args:
        model: Specification and weights.
        kind: ``heatmaps`` or ``joints``.
        precision: Of the encoder's matrix products; it is carried by the weights' dtype.
    """
    spec = model.spec
    port = _network(model, precision)
    free = torch.export.Dim.DYNAMIC
    b, n = _EXAMPLE_POSES, spec.joints
    threshold = torch.tensor([spec.threshold], dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    if kind == "joints":
        module: torch.nn.Module = refine_line(spec, port)
        first = torch.rand((b, n, 2), generator=generator) * 256
        second = torch.rand((b, n), generator=generator)
        shapes: tuple[dict[int, Any] | None, ...] = ({0: free}, {0: free}, None)
    else:
        module = heatmap_line(spec, port)
        first = torch.rand((b, n, 48, 64), generator=generator)
        second = torch.rand((b, 2, 3), generator=generator)
        shapes = ({0: free, 2: free, 3: free}, {0: free}, None)
    module.eval()
    module.requires_grad_(False)
    return Graph(module, (first, second, threshold), shapes, outputs_of(kind, spec))


def build_detector_graph(model: Model, info: DetectorInfo, precision: Precision) -> Graph:
    """The module that follows a detector.

    Args:
        model: Specification and weights.
        info: The detector.
        precision: Of the encoder's matrix products.
    """
    spec, b, n = model.spec, _EXAMPLE_POSES, len(info.joints)
    port = _network(model, precision)
    height, width = info.map_size
    shapes: tuple[tuple[int, ...], ...] = ((b, n, width), (b, n, height))
    if info.head == "heatmaps":
        shapes = ((b, height, width, n) if info.map_layout == "nhwc" else (b, n, height, width),)
    generator = torch.Generator().manual_seed(0)
    given = tuple(torch.rand(shape, generator=generator) for shape in shapes)
    module = detected_line(spec, port, info).eval().requires_grad_(False)
    # The affine is traced with a batch of 1, which broadcasts; the merged graph declares its batch free.
    examples = (*given, torch.eye(2, 3)[None], torch.tensor([spec.threshold], dtype=torch.float32))
    free = torch.export.Dim.DYNAMIC
    dynamic = (*({0: free} for _ in given), None, None)
    return Graph(module, examples, dynamic, outputs_of("image", spec))


def _network(model: Model, precision: Precision) -> Port:
    port = Port(model.spec.config, model.spec.skeleton)
    port.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in model.tensors.items()})
    if precision != "fp32":
        port.lower(LOWERED[precision])
    return port


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings from exporters about their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
