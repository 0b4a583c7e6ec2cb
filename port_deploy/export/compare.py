# SPDX-License-Identifier: Apache-2.0
"""An artefact compared with the right answers, whatever it takes.

May use: verify, verify_images, backends, sidecar. Test: tests/test_export.py, tests/test_export_detector.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from port_deploy.backends.artefact import ArtefactBackend
from port_deploy.backends.base import Backend
from port_deploy.errors import InputError
from port_deploy.sidecar import Precision, Sidecar
from port_deploy.verify import Problem, Verification, verify
from port_deploy.verify_golden import golden_problems
from port_deploy.verify_images import ImageProblem, golden_images, verify_images

Problems = Sequence[Problem] | Sequence[ImageProblem]


def compare(backend: Backend, problems: Problems, precision: Precision, bound: float | None) -> Verification:
    """`verify` or `verify_images`, whichever the problems are for.

    Raises:
        InputError: There is nothing to compare.
    """
    images = [p for p in problems if isinstance(p, ImageProblem)]
    if images and isinstance(backend, ArtefactBackend):
        return verify_images(backend, images, precision, bound)
    return verify(backend, [p for p in problems if isinstance(p, Problem)], precision, bound)


def stored_problems(sidecar: Sidecar, source: str) -> Problems:
    """The oracle's answers that an ONNX artefact's sidecar holds.

    Raises:
        InputError: It holds none.
        ModelFileError: They are damaged.
    """
    if sidecar.golden is None:
        raise InputError(f"the sidecar of {source} holds no golden answers to verify with: export it again")
    if sidecar.detector is not None:
        return golden_images(sidecar.spec, sidecar.detector, sidecar.golden)
    return golden_problems(sidecar.spec, sidecar.input, sidecar.golden)


def fit(problems: Problems, heatmap_size: tuple[int, int]) -> bool:
    """Whether an engine that takes heatmaps of that size can be asked them."""
    sizes = {p.questions.first.shape[2:] for p in problems if isinstance(p, Problem) and p.questions.input != "joints"}
    return sizes <= {heatmap_size}
