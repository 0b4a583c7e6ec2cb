# SPDX-License-Identifier: Apache-2.0
"""The options of port-export that are about building engines. May use: export. Test: tests/test_engine_build.py."""

from __future__ import annotations

import argparse
from pathlib import Path

from port_deploy.export.engine_options import FLAVOURS, HARDWARE_COMPAT, WORKSPACE_BYTES, BuildOptions, parse_size


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    group = parser.add_argument_group("engines")
    group.add_argument(
        "--tensorrt",
        choices=FLAVOURS,
        default="auto",
        help="what builds the engine; auto: TensorRT where a GPU lets it, else TensorRT-RTX, which needs no GPU",
    )
    group.add_argument(
        "--target",
        type=lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
        default=(),
        metavar="sm_89,…",
        help="GPUs that TensorRT-RTX builds for; its default set unless given",
    )
    group.add_argument(
        "--workspace",
        type=_size,
        default=WORKSPACE_BYTES,
        metavar="SIZE",
        help="scratch memory that a kernel may ask for: 512M, 2G",
    )
    group.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernel times, read and written")
    group.add_argument(
        "--hardware-compat",
        choices=tuple(HARDWARE_COMPAT),
        help="the engine runs on every GPU from compute capability 8.0 on, or on all of this one's",
    )
    group.add_argument("--version-compat", action="store_true", help="later versions of TensorRT run it, too")
    group.add_argument(
        "--strip-weights", action="store_true", help="no weights in the engine: it takes them from the ONNX beside it"
    )
    group.add_argument("--refit", action="store_true", help="other weights can be put into the engine")
    group.add_argument(
        "--fuse",
        action="store_true",
        help="the whole line as one layer that holds our fused kernel (TensorRT only; not run on a GPU yet)",
    )
    group.add_argument(
        "--no-cache", action="store_true", help="build anew: neither take an engine from the cache nor keep it there"
    )


def _size(text: str) -> int:
    return parse_size(text)


_size.__name__ = "size such as 512M or 2G"  # argparse shows it in its message


def build_options(arguments: argparse.Namespace) -> BuildOptions:
    """What they say."""
    return BuildOptions(
        flavour=arguments.tensorrt,
        targets=tuple(arguments.target),
        workspace_bytes=arguments.workspace,
        hardware_compat=arguments.hardware_compat,
        version_compat=arguments.version_compat,
        strip_weights=arguments.strip_weights,
        refit=arguments.refit,
        timing_cache=arguments.timing_cache,
        fuse=arguments.fuse,
        cache=not arguments.no_cache,
    )
