# SPDX-License-Identifier: Apache-2.0
"""`export_model`: writes artefacts with their sidecars, verifies each in its own runtime, and keeps all or none.

May use: the other files of export, backends, verify, sidecar, weights, errors, files. Test: tests/test_export.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from port_deploy.errors import InputError, missing_extra
from port_deploy.export.compare import fit, stored_problems
from port_deploy.export.engine_artefact import write_engine
from port_deploy.export.engine_progress import Progress
from port_deploy.export.run import Exported, ExportOptions, Run, onnx_verified
from port_deploy.export.staging import publish, staging_folder
from port_deploy.sidecar import InputKind, Kind, Precision, Sidecar, read_sidecar, sidecar_path
from port_deploy.verify import make_problems
from port_deploy.verify_golden import golden_answers
from port_deploy.weights import Model, bundled_models, load_model


def export_model(
    source: str | Path, folder: str | Path, options: ExportOptions, progress: Progress | None = None
) -> tuple[Exported, ...]:
    """Export a model.

    Args:
        source: A bundled name, a ``.safetensors`` file, or an ``.onnx`` written here before (engines only).
        folder: Where artefacts and sidecars go; it is made.
        options: What to write and how.
        progress: Shown how far the build of an engine is.

    Returns:
        The artefacts, in the order onnx, ts, pt2, engine.

    Raises:
        InputError: An option or the source is unusable, or the folder cannot be written.
        ModelFileError: The source is broken or foreign.
        BackendUnavailableError: A library is not installed; the message holds the pip command.
        ExportError: A library refuses to build.
        VerificationError: An artefact disagrees with the oracle; nothing was left.
    """
    target = Path(folder).absolute()
    name = str(source) if str(source) in bundled_models() else Path(source).stem
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise InputError(f"expected a model name of letters, digits, '.', '_', '-', got {name!r}: rename the file")
    with staging_folder(target) as staging:
        run = _choose(source, name, staging, options)
        run.progress = progress
        done = run.write()
        kinds = {*options.kinds, *(["onnx"] if options.build.strip_weights else [])}  # it holds the engine's weights
        wanted = [e for e in done if e.sidecar.kind in kinds]
        files = [file for e in wanted for file in (e.path.name, sidecar_path(e.path).name)]
        publish(staging, target, files)
    return tuple(replace(e, path=target / e.path.name) for e in wanted)


def _choose(source: str | Path, name: str, staging: Path, options: ExportOptions) -> Run:
    from_onnx = Path(source).suffix == ".onnx"
    if options.detector is None:
        return (_OnnxRun if from_onnx else _ModelRun)(source, name, staging, options)
    if from_onnx:
        raise InputError("a detector is joined to a model: use a bundled name or a .safetensors, not an .onnx")
    try:
        from port_deploy.export.detector.run import DetectorRun
    except ModuleNotFoundError as error:
        raise missing_extra(f"exporting {name}", "export") from error
    return DetectorRun(source, name, staging, options)


class _ModelRun(Run):
    """From a model file, with PyTorch."""

    def __init__(self, source: str | Path, name: str, staging: Path, options: ExportOptions) -> None:
        super().__init__(name, staging, options)
        self.model: Model = load_model(source)
        self.input: InputKind = options.input or "heatmaps"
        self.precision: Precision = options.precision or "fp32"

    def write(self) -> list[Exported]:
        try:
            from port_deploy.export.graph import build_graph
        except ModuleNotFoundError as error:
            raise missing_extra(f"exporting {self.name}", "export") from error
        from port_deploy.backends import aotinductor_, torchscript_

        kinds, model = self.options.kinds, self.model
        problems = make_problems(model, self.input)
        graph = build_graph(model, self.input, self.precision)
        done: list[Exported] = []
        if "onnx" in kinds or "engine" in kinds:
            from port_deploy.export.to_onnx import write_onnx

            path = self.staging / f"{self.name}.onnx"
            sidecar = self._describe(path, "onnx", write_onnx(graph, self.input, path))
            golden = golden_answers(model, self.input, self.options.heatmap_size)
            done.append(onnx_verified(self, path, replace(sidecar, golden=golden), problems))
        if "ts" in kinds:
            from port_deploy.export.to_torchscript import write_torchscript

            path = self.staging / f"{self.name}.ts"
            sidecar = self._describe(path, "ts", write_torchscript(graph, path))
            done.append(self.verified(path, sidecar, torchscript_.load, problems, ""))
        if "pt2" in kinds:
            from port_deploy.export.to_pt2 import write_pt2

            path = self.staging / f"{self.name}.pt2"
            sidecar = self._describe(path, "pt2", write_pt2(graph, path))
            sidecar = replace(sidecar, platform=aotinductor_.this_platform())
            done.append(self.verified(path, sidecar, aotinductor_.load, problems, ""))
        if "engine" in kinds:
            size = self.options.heatmap_size if self.input == "heatmaps" else None
            done.append(write_engine(self, done[0], lambda: make_problems(model, self.input, size), model))
        return done

    def _describe(self, path: Path, kind: Kind, tools: dict[str, str]) -> Sidecar:
        return self.describe(path, kind, self.model.spec, self.input, self.precision, tools)


class _OnnxRun(Run):
    """From an ONNX artefact, without PyTorch: the oracle's answers come from its sidecar."""

    def __init__(self, source: str | Path, name: str, staging: Path, options: ExportOptions) -> None:
        super().__init__(name, staging, options)
        if options.kinds != ("engine",):
            raise InputError("from an .onnx only engines are built: use --trt alone, or start from the .safetensors")
        if options.build.fuse:
            raise InputError("--fuse needs the model itself: start from its .safetensors, or leave out --fuse")
        self.source, self.sidecar = Path(source), read_sidecar(source, "onnx")
        for what, asked, there in (
            ("input", options.input, self.sidecar.input),
            ("precision", options.precision, self.sidecar.precision),
        ):
            if asked is not None and asked != there:
                raise InputError(f"{source} has {what} {there}, asked for {asked}: export the ONNX anew with --{what}")

    def write(self) -> list[Exported]:
        sidecar = self.sidecar
        golden = stored_problems(sidecar, str(self.source))
        path = self.staging / f"{self.name}.onnx"
        path.write_bytes(self.source.read_bytes())
        onnx = onnx_verified(self, path, replace(sidecar, file=path.name), golden)
        return [write_engine(self, onnx, (lambda: golden) if fit(golden, self.options.heatmap_size) else None)]
