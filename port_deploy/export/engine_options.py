# SPDX-License-Identifier: Apache-2.0
"""How an engine is built beyond its shapes, and how that is said to each library: TensorRT 10, 11 and TensorRT-RTX.

TensorRT-RTX has its own idea of each option: engines are portable by ``--target``, kernels are compiled where they run
(so it has no timing cache, it has a runtime cache), and there is no lean runtime. What a library lacks is an error
before the build, never silently left out.
May use: backends.cuda_memory, errors, files. Test: tests/test_engine_options.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from port_deploy.backends import cuda_memory
from port_deploy.errors import ExportError, InputError

FLAVOURS = ("auto", "tensorrt", "tensorrt-rtx")

WORKSPACE_BYTES = 1 << 30
"""Scratch memory that a kernel may ask for unless told; PORT needs a few megabytes, a detector some hundred."""

HARDWARE_COMPAT = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}
"""Our words for TensorRT's levels: every GPU from compute capability 8.0 on; every GPU of the same one."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        flavour: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: TensorRT where it can build, else TensorRT-RTX.
        targets: GPUs to build for, ``sm_89``; TensorRT-RTX only. None: its default set.
        workspace_bytes: Scratch memory that a kernel may ask for.
        hardware_compat: None (this model of GPU), or a key of HARDWARE_COMPAT; TensorRT only.
        version_compat: The engine runs with later versions of TensorRT, too, a little slower; TensorRT only.
        strip_weights: The engine has no weights in it: they are read from the ONNX beside it when it is loaded.
        refit: Other weights of the same network can be put into the engine.
        timing_cache: File of measured kernel times, read and written; TensorRT only. None: one beside the engine cache.
        fuse: The whole line is one plugin layer, the fused kernel; TensorRT only.
        cache: Take an engine that was built from the same before, and keep this one.
    """

    flavour: str = "auto"
    targets: tuple[str, ...] = ()
    workspace_bytes: int = WORKSPACE_BYTES
    hardware_compat: str | None = None
    version_compat: bool = False
    strip_weights: bool = False
    refit: bool = False
    timing_cache: Path | None = None
    fuse: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise InputError(f"unknown TensorRT {self.flavour!r}: use one of {', '.join(FLAVOURS)}")
        if self.hardware_compat is not None and self.hardware_compat not in HARDWARE_COMPAT:
            raise InputError(
                f"unknown hardware compatibility {self.hardware_compat!r}: use {' or '.join(HARDWARE_COMPAT)}"
            )
        if not 0 < self.workspace_bytes < 1 << 45:
            raise InputError(f"expected a workspace above 0 and below 32 TiB, got {self.workspace_bytes} bytes")
        if self.fuse and (self.strip_weights or self.refit):
            raise InputError("--fuse packs the weights for its kernel: leave out --strip-weights and --refit")
        if self.fuse and self.version_compat:
            raise InputError("a fused engine runs with the version that built it: leave out --fuse or --version-compat")
        wrong = [t for t in self.targets if not re.fullmatch(r"sm_\d{2,3}", t)]
        if wrong:
            raise InputError(f"expected targets as sm_89, got {', '.join(map(repr, wrong))}")

    def to_key(self) -> dict[str, Any]:
        """What of it makes another engine, as plain JSON values."""
        return {
            "targets": sorted(self.targets),
            "workspace_bytes": self.workspace_bytes,
            "hardware_compat": self.hardware_compat,
            "version_compat": self.version_compat,
            "strip_weights": self.strip_weights,
            "refit": self.refit,
            "fuse": self.fuse,
        }


DEFAULT_BUILD = BuildOptions()


def parse_size(text: str) -> int:
    """Bytes of ``512M``, ``1GiB``, ``2g`` or a bare number of bytes.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"expected a size such as 512M or 2G, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def check_supported(name: str, library: Any, options: BuildOptions) -> None:
    """Find out before the build whether a library has what the options ask for.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        library: Its Python module.
        options: What is asked for.

    Raises:
        InputError: The library has no such thing; the message says what to use in its place.
        ExportError: It has, but not without a GPU.
    """
    said = f"{name} {library.__version__}"
    if name == "tensorrt":
        if options.targets:
            raise InputError("TensorRT builds for the GPU that it runs on: leave out --target, or use TensorRT-RTX")
        level = HARDWARE_COMPAT.get(options.hardware_compat or "")
        if level and not hasattr(library.HardwareCompatibilityLevel, level):
            raise InputError(f"{said} has no hardware compatibility {options.hardware_compat}: use ampere+")
        return
    if options.fuse:
        raise InputError(
            f"{said} has no plugin layers, so there is no --fuse: leave it out, or build with TensorRT on a GPU "
            "(--tensorrt tensorrt)"
        )
    if options.hardware_compat:
        raise InputError(f"{said} has no --hardware-compat: name the GPUs with --target sm_86,sm_89")
    if options.version_compat:
        raise InputError(
            f"{said} has no --version-compat: keep the ONNX beside the engine, and "
            "Refiner.load(..., on_mismatch='rebuild') builds it again"
        )
    if options.timing_cache:
        raise InputError(
            f"{said} times nothing when it builds, so there is no --timing-cache: "
            "what it compiles at run time is kept by Refiner.load(..., runtime_cache=FILE)"
        )
    if (options.strip_weights or options.refit) and (problem := cuda_memory.device_state()):
        raise ExportError(
            f"{said} builds refittable and stripped engines only where a GPU is ({problem}): "
            "leave out --refit and --strip-weights, or build on the target"
        )


def configure(name: str, library: Any, config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Put the options into a builder configuration.

    Returns:
        Compute capabilities that were asked for (``8.9``).

    Raises:
        InputError: An unknown target.
        ExportError: The library refuses one.
    """
    flags = library.BuilderFlag
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(flags.TF32)  # 10 bits of mantissa are not float32: errors of tenths of a pixel
    if hasattr(flags, "STRICT_NANS"):
        config.set_flag(flags.STRICT_NANS)  # missing joints arrive as NaN and are found by comparing
    if options.hardware_compat:
        level = getattr(library.HardwareCompatibilityLevel, HARDWARE_COMPAT[options.hardware_compat])
        config.hardware_compatibility_level = level
    if options.version_compat:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.strip_weights:
        config.set_flag(flags.STRIP_PLAN)
    if options.refit or (options.strip_weights and name == "tensorrt-rtx"):
        config.set_flag(flags.REFIT)
    elif options.strip_weights:
        config.set_flag(flags.REFIT_IDENTICAL)  # the same weights come back: nothing is lost in speed or accuracy
    return _set_targets(library, config, options.targets)


def _set_targets(library: Any, config: Any, targets: Sequence[str]) -> tuple[str, ...]:
    if not targets:
        return ()
    known = {
        f"sm_{member[2:]}": value
        for member, value in library.ComputeCapability.__members__.items()
        if member.startswith("SM")
    }
    unknown = [t for t in targets if t not in known]
    if unknown:
        raise InputError(
            f"{library.__name__} {library.__version__} cannot build for {', '.join(unknown)}: "
            f"use {', '.join(sorted(known, key=lambda t: int(t[3:])))}"
        )
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(known[target], index):
            raise ExportError(f"{library.__name__} {library.__version__} refuses to build for {target}: leave it out")
    return tuple(f"{t[3:-1]}.{t[-1]}" for t in targets)
