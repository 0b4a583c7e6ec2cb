# SPDX-License-Identifier: Apache-2.0
"""What will fail in an export, and why, before anything long is begun: ``port-export --check``.

Each check finds something good, something to know, or something that ends the build. A check that could not be made
says so: nothing is passed because it was not looked at.
May use: preflight_graph, fused_network, to_engine, backends, files, sidecar, weights, errors.
Test: tests/test_preflight.py.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from port_deploy.backends import cuda_memory, tensorrt_
from port_deploy.errors import InputError, PortError
from port_deploy.export.engine_options import check_supported
from port_deploy.export.fused_network import plan_fused
from port_deploy.export.preflight_graph import Finding, check_graph
from port_deploy.export.run import ExportOptions
from port_deploy.export.to_engine import Toolchain, find_toolchain
from port_deploy.files import cache_folder, check_writable
from port_deploy.sidecar import Sidecar, read_artefact, sidecar_path
from port_deploy.weights import bundled_models, load_model

LIBRARIES = {
    "ts": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "pt2": ("torch",),
    "engine": (),
}
"""What writing each kind needs beside the package itself; engines: see `find_toolchain`."""

ENGINE_BYTES = 64 << 20
"""Room that an engine of PORT may take beside its weights, for all GPUs of TensorRT-RTX's default set."""


def check_export(source: str | Path | None, folder: str | Path, options: ExportOptions) -> list[Finding]:
    """Find out what an export would run into. Writes nothing that stays.

    Args:
        source: A bundled name, a ``.safetensors`` file, or any ``.onnx``; None: the machine alone.
        folder: Where the export would write.
        options: Its options.

    Returns:
        What was found, in the order of the work.

    Raises:
        InputError: There is no such model.
        ModelFileError: It is no model file.
    """
    if source is not None and Path(source).suffix == ".onnx" and not Path(source).is_file():
        raise InputError(f"no file {source}: name a bundled model, a .safetensors or an .onnx")
    if source is not None and Path(source).suffix != ".onnx":
        load_model(source)
    return [*_checks(source, Path(folder), options)]


def _checks(source: str | Path | None, folder: Path, options: ExportOptions) -> Iterator[Finding]:
    from_onnx = source is not None and Path(source).suffix == ".onnx"
    if not from_onnx:
        yield from _libraries(options)
    yield from _folders(folder, options)
    tools: Toolchain | None = None
    if "engine" in options.kinds:
        try:
            tools = find_toolchain(options.build)
            gpu = f" on {tools.gpu} ({tools.capability})" if tools.gpu else ", which needs no GPU to build"
            yield Finding("builder", "ok", f"{tools.name} {tools.module.__version__}{gpu}")
            check_supported(tools.name, tools.module, options.build)
            yield from _targets(tools, options)
            yield from _fused(source, tools, options)
        except PortError as error:
            yield Finding("builder", "error", str(error))
        yield from _gpu(options)
    yield from _detector(tools, options)
    if source is None:
        return
    with tempfile.TemporaryDirectory(prefix="port-check-") as temporary:
        try:
            model, side = _graph_of(source, Path(temporary), options, tools is not None)
        except PortError as error:
            yield Finding("model", "error", str(error))
            return
        if not model:
            yield Finding("model", "note", f"{Path(source).name} can be read; its graph was not looked at")
            return
        what = f"{side.input}, {side.precision}, {side.spec.joints} joints" if side else f"{len(model):,} bytes"
        yield Finding("model", "ok", f"{Path(source).name}: {what}")
        yield from check_graph(model, side, tools, options)


def _libraries(options: ExportOptions) -> Iterator[Finding]:
    wanted = dict.fromkeys(name for kind in options.kinds for name in LIBRARIES[kind])
    if "engine" in options.kinds and "onnx" not in options.kinds:
        wanted |= dict.fromkeys(LIBRARIES["onnx"])
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        mend = 'pip install "port-deploy[export]"'
        yield Finding("libraries", "error", f"{', '.join(missing)} not installed: {mend}")
    elif wanted:
        yield Finding("libraries", "ok", ", ".join(f"{name} {_version(name)}" for name in wanted))
    if "pt2" in options.kinds and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        yield Finding("compiler", "error", "--pt2 compiles C++ and finds no compiler: apt install g++")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _folders(folder: Path, options: ExportOptions) -> Iterator[Finding]:
    places = [("output", folder)]
    if "engine" in options.kinds and options.build.cache:
        places.append(("cache", cache_folder()))
    if options.build.timing_cache:
        places.append(("timing cache", options.build.timing_cache))
    for name, place in places:
        try:
            check_writable(place / "artefact" if name != "timing cache" else place)
        except PortError as error:
            if name == "cache":
                yield Finding(name, "note", f"{error}: engines are built anew each time")
            else:
                yield Finding(name, "error", str(error))
            continue
        existing = next(p for p in (place, *place.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free
        enough = free > 2 * ENGINE_BYTES or "engine" not in options.kinds
        text = f"{place}, {free / 1e9:.1f} GB free"
        yield Finding(name, "ok" if enough else "error", text if enough else f"{text}: make room for an engine")


def _fused(source: str | Path | None, tools: Toolchain, options: ExportOptions) -> Iterator[Finding]:
    """Whether the fused kernel gets into an engine, and how."""
    if not options.build.fuse or source is None:
        return
    if Path(source).suffix == ".onnx":
        yield Finding("fused layer", "error", "--fuse needs the model itself: start from its .safetensors")
        return
    kind, precision = options.input or "heatmaps", options.precision or "fp32"
    oldest = "8.0" if options.build.hardware_compat == "ampere+" else tools.capability
    fused = plan_fused(tools.module, load_model(source), kind, precision, options.heatmap_size, oldest)
    yield Finding("fused layer", "ok", f"{fused.way}: {fused.reason}")


def _targets(tools: Toolchain, options: ExportOptions) -> Iterator[Finding]:
    if not options.build.targets:
        if tools.name == "tensorrt-rtx":
            known = ", ".join(tensorrt_.RTX_DEFAULT)
            yield Finding("target", "ok", f"the default set: compute capability {known} and later")
        return
    known_targets = {f"sm_{m[2:]}" for m in tools.module.ComputeCapability.__members__ if m.startswith("SM")}
    unknown = [t for t in options.build.targets if t not in known_targets]
    if unknown:
        there = ", ".join(sorted(known_targets, key=lambda t: int(t[3:])))
        yield Finding("target", "error", f"{tools.name} cannot build for {', '.join(unknown)}: use {there}")
    else:
        yield Finding("target", "ok", ", ".join(options.build.targets))


def _gpu(options: ExportOptions) -> Iterator[Finding]:
    problem = cuda_memory.device_state()
    if problem:
        text = f"none ({problem}): the engine will not be run here, its ONNX is verified in its place"
        yield Finding("GPU", "note", text)
        return
    free, total = cuda_memory.free_memory()
    text = f"{cuda_memory.device_name()}, compute capability {cuda_memory.compute_capability()}, "
    text += f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < options.build.workspace_bytes:
        text += f", less than the workspace of {options.build.workspace_bytes / 1e9:.1f} GB: give a smaller --workspace"
        yield Finding("GPU", "note", text)
    else:
        yield Finding("GPU", "ok", text)


def _detector(tools: Toolchain | None, options: ExportOptions) -> Iterator[Finding]:
    """What a builder would say of the detector alone, before it is joined."""
    given = options.detector
    if given is None:
        return
    path = Path(given.source if given.is_file else given.checkpoint or "")
    if not path.is_file():
        what = "--checkpoint" if not given.is_file else "--detector"
        yield Finding("detector", "error", f"no file {str(path)!r} for {what}")
    elif given.is_file:
        for found in check_graph(path.read_bytes(), None, tools, options):
            yield Finding(f"detector {found.check}", found.status, found.text)
    else:
        yield Finding("detector", "ok", f"{given.source}, weights {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _graph_of(
    source: str | Path, temporary: Path, options: ExportOptions, wanted: bool
) -> tuple[bytes, Sidecar | None]:
    """The ONNX graph of an engine (empty where none is wanted), and its sidecar if it has one."""
    path = Path(source)
    if path.suffix == ".onnx":
        if sidecar_path(path).exists():
            side, model = read_artefact(path, "onnx")
            return model, side
        return path.read_bytes(), None
    model_file = load_model(source)
    if not wanted or find_spec("torch") is None or find_spec("onnxscript") is None:
        return b"", None
    from port_deploy.export.graph import build_graph
    from port_deploy.export.to_onnx import write_onnx

    kind, precision = options.input or "heatmaps", options.precision or "fp32"
    place = temporary / "model.onnx"
    write_onnx(build_graph(model_file, kind, precision), kind, place)
    name = str(source) if str(source) in bundled_models() else path.name
    side = Sidecar("onnx", name, "", 0, model_file.spec, kind, precision)
    return place.read_bytes(), side


def failed(findings: Sequence[Finding]) -> bool:
    """Whether one of them ends the export."""
    return any(f.status == "error" for f in findings)
