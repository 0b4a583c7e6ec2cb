# SPDX-License-Identifier: Apache-2.0
"""The engine of one export: built or taken from the cache, described, and run where it can run.

May use: to_engine, run, compare, backends, sidecar, weights, errors. Test: tests/test_engine_build.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from port_deploy.backends import tensorrt_
from port_deploy.errors import BackendUnavailableError
from port_deploy.export.compare import Problems
from port_deploy.export.run import Exported, Run
from port_deploy.export.to_engine import build_engine
from port_deploy.weights import Model


def write_engine(
    run: Run, onnx: Exported, problems: Callable[[], Problems] | None, model: Model | None = None
) -> Exported:
    """Build ``NAME.engine`` in the staging folder of an export.

    Args:
        run: The export.
        onnx: The verified ONNX artefact that it is built from.
        problems: What to verify it on where it can run; None where no answers fit its shapes.
        model: The model that the ONNX was made from; a fused engine needs it.

    Returns:
        The engine. Where it could not be run, its verification is that of the ONNX, and its note says so.
    """
    options, source = run.options, onnx.sidecar
    size = options.heatmap_size
    built = build_engine(
        onnx.path.read_bytes(), source, size, options.batch, options.build, run.progress, weights=model
    )
    path = run.staging / f"{run.name}.engine"
    path.write_bytes(built.data)
    sidecar = replace(
        run.describe(path, "engine", source.spec, source.input, source.precision, dict(source.tools)),
        heatmap_size=size if source.input == "heatmaps" else None,
        detector=source.detector,
        batch=options.batch,
        engine=built.info,
    )
    notes = ["taken from the engine cache"] if built.cached else []
    if built.info.fused == "ipluginv3":
        notes.append("its fused layer is a plugin: it loads where port_deploy is")
    if built.info.stripped:
        notes.append(f"it has no weights: keep {onnx.path.name} beside it")
    try:
        tensorrt_.check_runs_here(path, sidecar, built.info.version)
    except BackendUnavailableError as error:
        reason = str(error).split(": use the")[0]
    else:
        if problems is not None:
            return run.verified(path, sidecar, tensorrt_.load, problems(), "; ".join(notes))
        reason = f"the oracle's answers in the ONNX sidecar are for other heatmaps than {size}"
    unrun = f"the engine was not run ({reason}); these are the errors of the ONNX that it was built from"
    return run.recorded(Exported(path, sidecar, onnx.verification, "; ".join([unrun, *notes]), ran=False))
