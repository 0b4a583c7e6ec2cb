# SPDX-License-Identifier: Apache-2.0
"""``port-export``: a model as TorchScript, ONNX, an AOTInductor package and a TensorRT engine, each verified.

May use: export, cli.common, cli.detector, cli.engines, cli.preflight, cli.progress, cli.triton.
Test: tests/test_export_cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from port_deploy.cli import common, detector, engines, preflight, triton
from port_deploy.cli.progress import build_progress
from port_deploy.errors import InputError
from port_deploy.export import Exported, ExportOptions, export_model
from port_deploy.sidecar import Kind, sidecar_path

_DESCRIPTION = """\
Write a model as artefacts that take and give pixels: decode, mask, frame, PORT and blend are inside, the threshold is
an input. Each artefact is loaded in its own runtime and compared with the float64 oracle on random and adversarial
poses; above the allowed error the exit code is 1 and nothing is left. Beside each lies a sidecar NAME.<kind>.json with
the full specification, which port_deploy reads back: keep the two together.
"""

_FLAGS: tuple[tuple[str, Kind, str], ...] = (
    ("torchscript", "ts", "NAME.ts, for PyTorch in Python or C++"),
    ("onnx", "onnx", "NAME.onnx, for ONNX Runtime, OpenVINO and TensorRT"),
    ("pt2", "pt2", "NAME.pt2, compiled ahead of time for this machine's CPU (needs a C++ compiler, about a minute)"),
    ("trt", "engine", "NAME.engine, for TensorRT or TensorRT-RTX"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return common.run(_export, argv)


def _export(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    front = detector.detector_options(arguments)
    every = [kind for _, kind, _ in _FLAGS if front is None or kind in ("onnx", "engine")]
    chosen = every if arguments.all else [kind for flag, kind, _ in _FLAGS if getattr(arguments, flag)]
    if not chosen and (arguments.check or arguments.triton):
        chosen = ["engine"]
    if not chosen:
        flags = ", ".join(f"--{flag}" for flag, _, _ in _FLAGS)
        raise InputError(f"nothing to write: choose from {flags}, or --all")
    options = ExportOptions(
        kinds=tuple(chosen),
        input=arguments.input,
        precision=arguments.precision,
        heatmap_size=arguments.heatmap_size,
        batch=arguments.batch,
        max_px_error=arguments.max_px_error,
        build=engines.build_options(arguments),
        detector=front,
    )
    if arguments.check:
        return preflight.check(arguments.model, arguments.output, options, arguments.json)
    if arguments.triton:
        return triton.serve(arguments, options)
    if arguments.model is None:
        raise InputError("expected a model: a bundled name, a .safetensors or an .onnx")
    with build_progress(f"building {Path(arguments.model).stem}.engine") as progress:
        done = export_model(arguments.model, arguments.output, options, progress)
    if arguments.json:
        common.print_json({"artefacts": [_as_json(artefact) for artefact in done]})
    else:
        _print(done)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="port-export", description=_DESCRIPTION)
    parser.add_argument(
        "model", nargs="?", help="bundled name, .safetensors file, or an .onnx written here before (--trt only)"
    )
    parser.add_argument("-o", "--output", metavar="DIR", default=".", help="folder for artefacts and sidecars")
    for flag, _, text in _FLAGS:
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    parser.add_argument("--all", action="store_true", help="all of them (with --detector: ONNX and engine)")
    parser.add_argument(
        "--input", choices=("heatmaps", "joints"), help="what the artefact takes; heatmaps unless given"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        help="of the encoder's matrix products (fp32 unless given); LayerNorm, softmax and coordinates stay float32",
    )
    parser.add_argument(
        "--heatmap-size",
        type=_numbers(2),
        default=(64, 64),
        metavar="H,W",
        help="that an engine takes; others take any",
    )
    parser.add_argument(
        "--batch", type=_numbers(3), default=(1, 8, 256), metavar="MIN,OPT,MAX", help="of an engine; others take any"
    )
    parser.add_argument(
        "--max-px-error",
        type=float,
        metavar="X",
        help="largest error allowed, pixels of a 256-pixel crop unless given, the table in port_deploy.verify",
    )
    engines.add_options(parser)
    triton.add_options(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing: say what the export would run into (of any .onnx, too; without a model: of the machine)",
    )
    detector.add_options(parser, _numbers(2))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _numbers(count: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        parts = tuple(int(part) for part in text.split(","))
        if len(parts) != count:
            raise ValueError(text)
        return parts

    parse.__name__ = f"{count} whole numbers with commas"  # argparse shows it in its message
    return parse


def _print(done: Sequence[Exported]) -> None:
    rows = [
        (
            e.path,
            f"{e.sidecar.size_bytes / 1e6:.2f}",
            e.sidecar.precision,
            e.verification.backend,
            f"{e.verification.max_error_px:.1e}",
            f"{e.verification.mean_error_px:.1e}",
            f"{e.verification.tolerance_px:g}",
        )
        for e in done
    ]
    print(common.table(rows, ("artefact", "MB", "precision", "verified in", "max px", "mean px", "allowed px")))
    for artefact in done:
        if artefact.note:
            print(f"{artefact.path.name}: {artefact.note}")


def _as_json(artefact: Exported) -> dict[str, object]:
    side = artefact.sidecar
    return {
        "path": str(artefact.path),
        "sidecar": str(sidecar_path(artefact.path)),
        "kind": side.kind,
        "size_bytes": side.size_bytes,
        "sha256": side.sha256,
        "input": side.input,
        "precision": side.precision,
        "verification": dict(side.verification),
    }
