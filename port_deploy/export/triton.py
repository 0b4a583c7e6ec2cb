# SPDX-License-Identifier: Apache-2.0
"""A repository for Triton Inference Server: ``DIR/NAME/config.pbtxt`` and ``DIR/NAME/1/model.plan`` or ``model.onnx``.

Triton concatenates requests along the batch, so a served model has δ inside, as a constant: the model's own. A second
export of the same name is the next version, and the server takes the newest. Triton's TensorRT backend is full
TensorRT; engines of TensorRT-RTX are not for it.
May use: package, to_engine, triton_config, staging, backends.onnxruntime_, onnx_bytes, sidecar, files, errors.
Test: tests/test_triton.py.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from port_deploy.backends import onnxruntime_
from port_deploy.errors import BackendUnavailableError, ExportError, InputError
from port_deploy.export.engine_options import DEFAULT_BUILD
from port_deploy.export.engine_progress import Progress
from port_deploy.export.package import export_model
from port_deploy.export.run import ExportOptions
from port_deploy.export.staging import staging_folder
from port_deploy.export.to_engine import build_engine, find_toolchain
from port_deploy.export.triton_config import TritonOptions, make_config, to_pbtxt
from port_deploy.files import sha256, write_text
from port_deploy.onnx_bytes import without_initializer, without_input
from port_deploy.sidecar import DEFAULTS, Sidecar, outputs_of, read_artefact


@dataclass(frozen=True)
class Served:
    """What was written.

    Attributes:
        folder: ``DIR/NAME``.
        version: The folder of this version in it.
        backend: Triton's backend.
        note: What a reader must know.
    """

    folder: Path
    version: int
    backend: str
    note: str


def export_triton(
    source: str | Path,
    repository: str | Path,
    export: ExportOptions,
    options: TritonOptions,
    progress: Progress | None = None,
) -> Served:
    """Write a model into a Triton repository.

    Args:
        source: A bundled name, a ``.safetensors`` file, or an ``.onnx`` written by port-export.
        repository: The repository's folder; it is made.
        export: What is exported; its kinds do not matter.
        options: How it is served.
        progress: Shown how far the build of an engine is.

    Raises:
        InputError: A batch that does not start at 1, or an option or source that is unusable.
        BackendUnavailableError: A library is not installed.
        ExportError: TensorRT cannot build here, or the served graph answers otherwise than the verified one.
        VerificationError: The ONNX disagrees with the oracle; nothing was left.
    """
    if export.batch[0] != 1:
        raise InputError(f"Triton fills batches from one request on: expected --batch 1,…, got {export.batch}")
    if export.build.fuse:
        raise InputError("a Triton repository holds the plain graph: leave out --fuse")
    target = Path(repository).absolute()
    with staging_folder(target) as staging:
        name, side, model = _onnx(source, staging, export, progress)
        served = without_input(model, "threshold")
        others = [n for n in DEFAULTS[side.input] if n != "threshold"]
        if others:
            served = without_initializer(served, *others)
        size = export.heatmap_size if side.input == "heatmaps" else None
        _check_same(model, served, side, size or (32, 24))
        backend, why = _backend(export, options)
        fresh = staging / "version"
        fresh.mkdir()
        if backend == "tensorrt":
            full = replace(export.build, flavour="tensorrt")  # what Triton's backend is
            built = build_engine(served, side, export.heatmap_size, export.batch, full, progress, free=())
            (fresh / "model.plan").write_bytes(built.data)
            why = f"it needs a Triton whose TensorRT is {built.info.version}, on {built.info.device or 'the same GPU'}"
        else:
            (fresh / "model.onnx").write_bytes(served)
        _describe(fresh, side, backend)
        config = make_config(name, side, backend, export.batch, size if backend == "tensorrt" else None, options)
        folder = target / name
        folder.mkdir(exist_ok=True)
        version = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        try:
            fresh.rename(folder / str(version))
            write_text(folder / "config.pbtxt", to_pbtxt(config))
        except BaseException:
            shutil.rmtree(folder / str(version), ignore_errors=True)
            if version == 1:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return Served(folder, version, backend, why)


def _onnx(
    source: str | Path, staging: Path, export: ExportOptions, progress: Progress | None
) -> tuple[str, Sidecar, bytes]:
    """Name, sidecar and bytes of the verified ONNX artefact."""
    path = Path(source)
    if path.suffix != ".onnx":
        (done,) = export_model(
            source, staging / "onnx", replace(export, kinds=("onnx",), build=DEFAULT_BUILD), progress
        )
        path = done.path
    return path.stem, *read_artefact(path, "onnx")


def _backend(export: ExportOptions, options: TritonOptions) -> tuple[str, str]:
    if options.backend != "auto":
        return options.backend, ""
    if options.kind == "cpu":
        return "onnxruntime", "on the CPU"
    try:
        find_toolchain(replace(export.build, flavour="tensorrt", targets=()))
    except (ExportError, BackendUnavailableError) as error:
        return "onnxruntime", f"no engine, because {error}"
    return "tensorrt", ""


def _describe(folder: Path, side: Sidecar, backend: str) -> None:
    """The specification beside the served file, for whoever has to find out what is running."""
    file = folder / ("model.plan" if backend == "tensorrt" else "model.onnx")
    told = replace(side, file=file.name, sha256=sha256(file), size_bytes=file.stat().st_size, golden=None)
    write_text(folder / "port_deploy.json", json.dumps(told.to_json(), indent=1, ensure_ascii=False) + "\n")


def _check_same(model: bytes, served: bytes, side: Sidecar, size: tuple[int, int]) -> None:
    """Run both graphs on the same random inputs.

    Raises:
        ExportError: They differ.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for tensor in side.to_json()["inputs"]:
        if tensor["name"] == "threshold":
            continue
        dims = [{"B": 2, "H": size[0], "W": size[1]}.get(d, d) for d in tensor["shape"]]
        values = rng.random(dims, np.float32)
        feeds[tensor["name"]] = (
            (values * 255).astype(np.uint8) if tensor["dtype"] == "uint8" else values.astype(tensor["dtype"])
        )
    names = list(outputs_of(side.input, side.spec))
    try:
        answers = [onnxruntime_.run_once(m, names, feeds) for m in (model, served)]
    except BackendUnavailableError:
        return  # nothing here runs it; its bytes are the verified ones but for the fields that were taken out
    for name, first, second in zip(names, *answers, strict=True):
        if not np.array_equal(first, second, equal_nan=True):
            raise ExportError(
                f"the graph for Triton answers otherwise than the verified one in {name}: export it again"
            )
