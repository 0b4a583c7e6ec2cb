# SPDX-License-Identifier: Apache-2.0
"""Running an ONNX artefact in ONNX's own reference evaluator: slow, and it has every type.

For verification only, where ONNX Runtime's CPU provider lacks an operator (bf16 matrix products).
May use: backends.artefact, onnx. Test: tests/test_export.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from port_deploy.backends.artefact import ArtefactBackend
from port_deploy.backends.base import FloatArray, HostBuffers
from port_deploy.errors import missing_extra
from port_deploy.sidecar import read_sidecar


class ReferenceBackend(ArtefactBackend):
    """The artefact in ``onnx.reference``.

    Args:
        path: ``NAME.onnx``; its sidecar lies beside it.

    Raises:
        BackendUnavailableError: onnx is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import onnx
            from onnx.reference import ReferenceEvaluator
        except ModuleNotFoundError as error:
            raise missing_extra("ONNX's reference evaluator", "export") from error
        super().__init__("onnx-reference", f"ONNX {onnx.__version__} reference evaluator", read_sidecar(path, "onnx"))
        self._evaluator = ReferenceEvaluator(onnx.load(str(path)), new_ops=_own_operators())

    def _infer(self, first: NDArray[Any], second: FloatArray, threshold: FloatArray, out: HostBuffers) -> None:
        with np.errstate(all="ignore"):
            answers = self._evaluator.run(None, dict(zip(self.input_names, (first, second, threshold), strict=True)))
        for target, answer in zip(self.targets(out), answers, strict=True):
            target[...] = answer


def _own_operators() -> list[type]:
    """Two operators that the evaluator has in a form that does not serve."""
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):  # type: ignore[misc]  # the evaluator finds it by this name
        """Takes any length: the evaluator's own stops at 64 entries of the axis."""

        op_domain = ""

        def _run(self, data: Any, indices: Any, axis: int = 0) -> tuple[Any]:
            return (np.take_along_axis(data, indices, axis),)

    class MatMul(OpRun):  # type: ignore[misc]
        """Sums in float32, as every processor does: the evaluator's own rounds each partial sum to bf16."""

        op_domain = ""

        def _run(self, a: Any, b: Any) -> tuple[Any]:
            return (np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype),)

    return [GatherElements, MatMul]
