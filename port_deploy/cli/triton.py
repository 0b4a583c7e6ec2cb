# SPDX-License-Identifier: Apache-2.0
"""``port-export --triton DIR``: the options, and what is said at the end.

May use: export, cli.common, cli.progress. Test: tests/test_triton.py.
"""

from __future__ import annotations

import argparse

from port_deploy.cli import common
from port_deploy.cli.progress import build_progress
from port_deploy.errors import InputError
from port_deploy.export import ExportOptions
from port_deploy.export.triton import export_triton
from port_deploy.export.triton_config import BACKENDS, TritonOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser, in a group of their own."""
    group = parser.add_argument_group("serving")
    group.add_argument(
        "--triton",
        metavar="DIR",
        help="a model repository of Triton Inference Server; the threshold is a constant in it",
    )
    group.add_argument(
        "--triton-backend",
        choices=BACKENDS,
        default="auto",
        help="that runs it; auto: TensorRT where it can build here, else ONNX Runtime",
    )
    group.add_argument("--triton-instances", type=int, default=1, metavar="N", help="copies that run at the same time")
    group.add_argument("--triton-kind", choices=("gpu", "cpu"), default="gpu", help="where they run")
    group.add_argument(
        "--triton-delay", type=int, default=200, metavar="µs", help="how long a request may wait to share a batch"
    )


def serve(arguments: argparse.Namespace, export: ExportOptions) -> int:
    """Write the repository and say how it is served; returns the exit code."""
    if arguments.model is None:
        raise InputError("expected a model: a bundled name, a .safetensors or an .onnx")
    options = TritonOptions(
        arguments.triton_backend, arguments.triton_instances, arguments.triton_kind, arguments.triton_delay
    )
    with build_progress("building model.plan") as progress:
        done = export_triton(arguments.model, arguments.triton, export, options, progress)
    facts = {"folder": str(done.folder), "version": done.version, "backend": done.backend, "note": done.note}
    if arguments.json:
        common.print_json(facts)
        return 0
    print(f"{done.folder}: version {done.version}, backend {done.backend}{f' ({done.note})' if done.note else ''}")
    print(f"serve it: tritonserver --model-repository={done.folder.parent}")
    return 0
