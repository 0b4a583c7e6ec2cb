# SPDX-License-Identifier: Apache-2.0
"""`export_model`: writes artefacts with their sidecars, verifies each in its own runtime, and keeps all or none.

May use: the other files of export, backends, verify, sidecar, weights, errors, files. Test: tests/test_export.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from port_deploy.backends.base import Backend
from port_deploy.config import ModelSpec
from port_deploy.errors import BackendUnavailableError, InputError, missing_extra
from port_deploy.export.compare import Problems, compare, fit, stored_problems
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.engine_options import DEFAULT_BUILD, BuildOptions
from port_deploy.export.engine_progress import Progress
from port_deploy.export.staging import publish, staging_folder
from port_deploy.files import sha256
from port_deploy.sidecar import (
    InputKind,
    Kind,
    Precision,
    Sidecar,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from port_deploy.verify import Verification, make_problems
from port_deploy.verify_golden import golden_answers
from port_deploy.weights import Model, bundled_models, load_model

MAX_BATCH = 65536
MAX_HEATMAP = 1024


@dataclass(frozen=True)
class ExportOptions:
    """What to write and how.

    Attributes:
        kinds: Any of ``ts``, ``onnx``, ``pt2``, ``engine``.
        input: ``heatmaps`` (the whole line) or ``joints``; None: heatmaps, or what the ONNX that is built from has.
        precision: Of the encoder's matrix products; None: fp32, or what the ONNX has.
        heatmap_size: (H, W) of an engine with input ``heatmaps``; the other kinds take any.
        batch: Smallest, best and largest B of an engine; the other kinds take any.
        max_px_error: Bound of the verification in pixels; None: the table in verify.py.
        build: How an engine is built beyond that.
        detector: What stands in front; the artefact then takes images. ONNX and engines only.
    """

    kinds: tuple[Kind, ...]
    input: InputKind | None = None
    precision: Precision | None = None
    heatmap_size: tuple[int, int] = (64, 64)
    batch: tuple[int, int, int] = (1, 8, 256)
    max_px_error: float | None = None
    build: BuildOptions = DEFAULT_BUILD
    detector: DetectorOptions | None = None

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(get_args(Kind)):
            raise InputError(f"expected kinds of artefact among {', '.join(get_args(Kind))}, got {self.kinds!r}")
        if self.input not in (None, "heatmaps", "joints"):
            raise InputError(f"unknown input {self.input!r}: use heatmaps or joints")
        if self.precision not in (None, *get_args(Precision)):
            raise InputError(f"unknown precision {self.precision!r}: use {', '.join(get_args(Precision))}")
        if len(self.heatmap_size) != 2 or not all(2 <= v <= MAX_HEATMAP for v in self.heatmap_size):
            raise InputError(f"expected a heatmap size H,W from 2 to {MAX_HEATMAP}, got {self.heatmap_size}")
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2] <= MAX_BATCH:
            raise InputError(
                f"expected a batch min,opt,max with 1 <= min <= opt <= max <= {MAX_BATCH}, got {self.batch}"
            )
        if self.max_px_error is not None and not 0 <= self.max_px_error < float("inf"):
            raise InputError(f"expected a max px error of at least 0, got {self.max_px_error}")
        if self.build != DEFAULT_BUILD and "engine" not in self.kinds:
            raise InputError("--target and other ways to build are for engines: add --trt")
        if self.detector is not None and set(self.kinds) - {"onnx", "engine"}:
            raise InputError("a detector is joined in ONNX: use --onnx, --trt or both")
        if self.detector is not None and self.input is not None:
            raise InputError("with a detector the artefact takes images: leave out --input")


@dataclass(frozen=True)
class Exported:
    """An artefact that was written.

    Attributes:
        path: Where it lies.
        sidecar: What stands beside it.
        verification: What was measured.
        note: What a reader must know about that measurement; empty where its own runtime ran it.
        ran: The artefact itself was run; False for an engine that cannot run here.
    """

    path: Path
    sidecar: Sidecar
    verification: Verification
    note: str
    ran: bool = True


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


class Run:
    """One export in a staging folder."""

    progress: Progress | None = None

    def __init__(self, name: str, staging: Path, options: ExportOptions) -> None:
        self.name, self.staging, self.options = name, staging, options

    def write(self) -> list[Exported]:
        """Write and verify every artefact that is wanted, and the ONNX of an engine."""
        raise NotImplementedError

    def engine(self, onnx: Exported, problems: Callable[[], Problems] | None) -> Exported:
        """Build an engine from an ONNX artefact; without problems that fit it, the ONNX's verification stands."""
        from port_deploy.export.engine_artefact import write_engine

        return write_engine(self, onnx, problems)

    def describe(
        self, path: Path, kind: Kind, spec: ModelSpec, takes: InputKind, precision: Precision, tools: dict[str, str]
    ) -> Sidecar:
        """The sidecar of a file that was just written, before its verification."""
        return Sidecar(
            kind=kind,
            file=path.name,
            sha256=sha256(path),
            size_bytes=path.stat().st_size,
            spec=spec,
            input=takes,
            precision=precision,
            tools=tools,
        )

    def verified(
        self,
        path: Path,
        sidecar: Sidecar,
        load: Callable[[Path], Backend],
        problems: Problems,
        note: str,
    ) -> Exported:
        """Load the artefact as a user would, compare, and write the result into its sidecar."""
        write_sidecar(path, sidecar)
        found = compare(load(path), problems, sidecar.precision, self.options.max_px_error)
        found.check(f"{path.name} in {found.backend}")
        return self.recorded(Exported(path, sidecar, found, note))

    def recorded(self, result: Exported) -> Exported:
        """Write the sidecar with the verification in it."""
        record = result.verification.to_json() | {"artefact_ran": result.ran, "note": result.note}
        sidecar = replace(result.sidecar, verification=record)
        write_sidecar(result.path, sidecar)
        return replace(result, sidecar=sidecar)


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
            done.append(self.engine(done[0], lambda: make_problems(model, self.input, size)))
        return done

    def _describe(self, path: Path, kind: Kind, tools: dict[str, str]) -> Sidecar:
        return self.describe(path, kind, self.model.spec, self.input, self.precision, tools)


class _OnnxRun(Run):
    """From an ONNX artefact, without PyTorch: the oracle's answers come from its sidecar."""

    def __init__(self, source: str | Path, name: str, staging: Path, options: ExportOptions) -> None:
        super().__init__(name, staging, options)
        if options.kinds != ("engine",):
            raise InputError("from an .onnx only engines are built: use --trt alone, or start from the .safetensors")
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
        return [self.engine(onnx, (lambda: golden) if fit(golden, self.options.heatmap_size) else None)]


def onnx_verified(run: Run, path: Path, sidecar: Sidecar, problems: Problems) -> Exported:
    """Verify an ONNX artefact in ONNX Runtime, or in the reference evaluator where that cannot run it."""
    from port_deploy.backends import onnxruntime_
    from port_deploy.export.reference import ReferenceBackend

    try:
        return run.verified(path, sidecar, onnxruntime_.load, problems, "")
    except BackendUnavailableError as error:
        note = f"run in ONNX's reference evaluator: {error}"
        return run.verified(path, sidecar, ReferenceBackend, problems, note.replace(str(path), path.name))
