# SPDX-License-Identifier: Apache-2.0
"""What an export is asked for, what it answers, and what every way of exporting does with a file that it wrote.

May use: compare, reference, the options, backends, verify, sidecar, errors, files. Test: tests/test_export.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from port_deploy.backends.base import Backend
from port_deploy.config import ModelSpec
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.export.compare import Problems, compare
from port_deploy.export.detector.options import DetectorOptions
from port_deploy.export.engine_options import DEFAULT_BUILD, BuildOptions
from port_deploy.export.engine_progress import Progress
from port_deploy.files import sha256
from port_deploy.sidecar import InputKind, Kind, Precision, Sidecar, write_sidecar
from port_deploy.verify import Verification

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
        if self.detector is not None and self.build.fuse:
            raise InputError("behind a detector the plain graph is built: leave out --fuse")
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


class Run(ABC):
    """One export in a staging folder."""

    progress: Progress | None = None

    def __init__(self, name: str, staging: Path, options: ExportOptions) -> None:
        self.name, self.staging, self.options = name, staging, options

    @abstractmethod
    def write(self) -> list[Exported]:
        """Write and verify every artefact that is wanted, and the ONNX of an engine."""

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


def onnx_verified(run: Run, path: Path, sidecar: Sidecar, problems: Problems) -> Exported:
    """Verify an ONNX artefact in ONNX Runtime, or in the reference evaluator where that cannot run it."""
    from port_deploy.backends import onnxruntime_
    from port_deploy.export.reference import ReferenceBackend

    try:
        return run.verified(path, sidecar, onnxruntime_.load, problems, "")
    except BackendUnavailableError as error:
        note = f"run in ONNX's reference evaluator: {error}"
        return run.verified(path, sidecar, ReferenceBackend, problems, note.replace(str(path), path.name))
