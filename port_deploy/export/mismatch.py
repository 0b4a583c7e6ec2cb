# SPDX-License-Identifier: Apache-2.0
"""An engine that does not fit where it is to run: built again from its ONNX, or replaced by the model it was made from.

Engines fit one version of one library on some GPUs, so a fleet that updates its drivers meets this. ``rebuild`` takes
the ONNX beside the engine, builds through the engine cache, and checks the result against the golden answers in the
ONNX's sidecar; ``native`` runs the model file in the core. Neither happens unless it was asked for.
May use: the rest of export, backends, sidecar, weights, errors. Test: tests/test_mismatch.py.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from port_deploy.backends import cuda_memory, tensorrt_
from port_deploy.backends.base import Backend
from port_deploy.backends.select import Choice, Source, open_backend
from port_deploy.errors import BackendUnavailableError, InputError, ModelFileError, PortError
from port_deploy.export.compare import compare, fit, stored_problems
from port_deploy.export.engine_options import DEFAULT_BUILD, BuildOptions
from port_deploy.export.engine_progress import Progress
from port_deploy.export.to_engine import build_engine
from port_deploy.sidecar import Sidecar, describe, read_artefact
from port_deploy.weights import Model, bundled_models, load_model, with_changes

OPTIONS = {"graphs", "warm_up", "runtime_cache", "refit"}
"""Of `tensorrt_.open_engine`, what callers set."""

CHOICES = ("raise", "rebuild", "native")


def open_or_replace(
    source: Source,
    on_mismatch: str,
    backend: str,
    device: str,
    threads: int,
    precision: str,
    changes: dict[str, Any],
    options: dict[str, Any],
) -> tuple[Backend, Choice]:
    """`open_backend`; an engine that does not fit is dealt with as asked.

    Args:
        source: As `open_backend`, and so are the others.
        on_mismatch: ``raise``, ``rebuild`` or ``native``.
        backend: …
        device: …
        threads: …
        precision: …
        changes: …
        options: …

    Raises:
        InputError: Another word, or the source is no engine.
        BackendUnavailableError: What was asked for cannot be done; the message holds both reasons.
    """
    if on_mismatch not in CHOICES:
        raise InputError(f"unknown on_mismatch {on_mismatch!r}: use one of {', '.join(CHOICES)}")
    if isinstance(source, Model) or Path(source).suffix != ".engine":
        raise InputError(f"on_mismatch= is for .engine files, got {str(source)!r}: leave it out")
    path = Path(source)
    try:
        return open_backend(path, backend, device, threads, precision, changes, options)
    except InputError:
        raise
    except (BackendUnavailableError, ModelFileError) as error:
        reason = error
    try:
        if on_mismatch == "native":
            return _native(path, reason, threads, changes)
        return _rebuilt(path, reason, device, options)
    except PortError as error:
        raise BackendUnavailableError(f"{reason}; and it could not be replaced: {error}") from reason


def rebuild(
    path: Path, device: str = "cuda", build: BuildOptions | None = None, progress: Progress | None = None
) -> tuple[Sidecar, bytes]:
    """Build an engine again, as its sidecar says it was built, from the ONNX beside it.

    Args:
        path: ``NAME.engine``; the file itself is not read.
        device: The GPU that it is for.
        build: How; None: as before, with the library of before where it is installed.
        progress: Shown how far it is.

    Returns:
        The new engine's sidecar and bytes; nothing is written but into the engine cache.

    Raises:
        ModelFileError: There is no ONNX, or it is not the one that the engine was built from.
        PortError: It cannot be built here.
    """
    old = describe(path, "engine")
    assert old.engine is not None  # Sidecar.from_json saw to both
    assert old.batch is not None
    place = path.with_suffix(".onnx")
    if not place.is_file():
        raise ModelFileError(f"no {place} to build it from: keep the ONNX beside the engine (port-export --onnx --trt)")
    source, model = read_artefact(place, "onnx")
    if old.engine.onnx_sha256 not in ("", source.sha256) or (old.spec, old.input) != (source.spec, source.input):
        raise ModelFileError(f"{place} is not the ONNX that {path.name} was built from: export both again")
    if build is None:
        build = _as_before(old)
    size = old.heatmap_size or (64, 64)
    built = build_engine(model, source, size, old.batch, build, progress, tensorrt_.device_number(device))
    sha256 = hashlib.sha256(built.data).hexdigest()
    side = replace(
        old, sha256=sha256, size_bytes=len(built.data), engine=built.info, verification={}, golden=source.golden
    )
    return side, built.data


def _as_before(old: Sidecar) -> BuildOptions:
    info = old.engine
    assert info is not None
    there = tensorrt_.availability(info.flavour).available
    build = replace(
        DEFAULT_BUILD,
        flavour=info.flavour if there else "auto",
        workspace_bytes=info.workspace_bytes or DEFAULT_BUILD.workspace_bytes,
        refit=info.refittable,
        strip_weights=info.stripped,
    )
    if build.flavour != "tensorrt":
        return build
    return replace(build, hardware_compat=info.hardware_compat or None, version_compat=info.version_compat)


def _rebuilt(path: Path, reason: PortError, device: str, options: dict[str, Any]) -> tuple[Backend, Choice]:
    device = "cuda" if device == "auto" else device
    if problem := cuda_memory.device_state():
        raise BackendUnavailableError(f"building it again does not help without a GPU ({problem})")
    unknown = set(options) - OPTIONS
    if unknown:
        raise InputError(f"engines take no option {', '.join(sorted(unknown))}: leave it out")
    side, data = rebuild(path, device)
    loaded = tensorrt_.open_engine(path, side, data, device=device, **options)
    if side.golden is not None:
        problems = stored_problems(side, str(path))
        if side.heatmap_size is None or fit(problems, side.heatmap_size):
            compare(loaded, problems, side.precision, None).check(f"{path.name}, built again, in {loaded.name}")
    return loaded, Choice(loaded.name, device, loaded.detail, f"built again from the ONNX, because {reason}")


def _native(path: Path, reason: PortError, threads: int, changes: dict[str, Any]) -> tuple[Backend, Choice]:
    side = describe(path, "engine")
    if side.input == "image":
        raise ModelFileError("it holds a detector, which the native core does not have: use on_mismatch='rebuild'")
    model = _model_of(path, side)
    if changes:
        model = with_changes(model, **changes)
    loaded, choice = open_backend(model, "auto", "auto", threads, "fp32", {}, {})
    warnings.warn(
        f"{path.name} is not what runs: {loaded.name} does, from {model.source}, because {reason}",
        RuntimeWarning,
        stacklevel=4,
    )
    return loaded, replace(choice, reason=f"in place of the engine, because {reason}")


def _model_of(path: Path, side: Sidecar) -> Model:
    """The model file beside the engine, or the bundled model, whose specification is the engine's."""
    beside = path.with_suffix(".safetensors")
    candidates: list[str | Path] = [beside] if beside.is_file() else []
    candidates += [side.spec.name] if side.spec.name in bundled_models() else []
    for candidate in candidates:
        model = load_model(candidate)
        if model.spec == side.spec:
            return model
    raise ModelFileError(
        f"no {beside.name} of the same model beside it, and no such bundled model: put the model file there"
    )
