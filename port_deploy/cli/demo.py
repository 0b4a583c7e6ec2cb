# SPDX-License-Identifier: Apache-2.0
"""port-demo: from real detector heatmaps to repaired joints, a picture and an exported engine, in one command.

May use: calibration, demo, picture, refiner, weights, cli.export (the same code as port-export), cli.common.
Test: tests/test_demo.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from port_deploy.calibration import detectors
from port_deploy.cli.common import Parser, print_json, run, table
from port_deploy.demo import PATCH_PX, Case, latency_us, load_sample, run_cases
from port_deploy.errors import BackendUnavailableError, InputError
from port_deploy.files import check_writable
from port_deploy.info import gpus, processor_name
from port_deploy.picture import draw_before_after
from port_deploy.refiner import Refiner
from port_deploy.weights import load_model

if TYPE_CHECKING:
    from argparse import ArgumentParser

PICTURE = "before_after.png"
SETTING = "reconstruct"
"""Setting of the model file that the demo uses where there is one: masked joints are replaced, eq. (14)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-demo."""
    return run(_command, argv)


def parser() -> ArgumentParser:
    """The options."""
    options = Parser(
        prog="port-demo",
        description="Repair the hidden joints of two photographs, draw them, and export the model. "
        "Exit code 1 where a hidden joint did not end nearer to its place.",
        epilog='All of it needs pip install "port-deploy[export,tensorrt-rtx,viz]"; without, --no-picture --no-export.',
    )
    options.add_argument("-o", "--output", default="out/demo", metavar="DIR", help="folder for picture and artefacts")
    options.add_argument(
        "--picture", metavar="FILE", help="where the picture goes: .png, .jpg, .svg; else in the folder"
    )
    options.add_argument("--model", default="mpii16", help="bundled name or .safetensors")
    options.add_argument("--backend", default="auto", help="native-cpu, torch, …")
    options.add_argument("--no-picture", action="store_true", help="draw nothing")
    options.add_argument("--no-export", action="store_true", help="export nothing")
    options.add_argument("--json", action="store_true", help="one JSON object on standard output, the rest on error")
    return options


def _command(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    if not options.json:
        return _demo(options)[0]
    with redirect_stdout(sys.stderr):
        code, facts = _demo(options)
    print_json(facts)
    return code


def missing_extras(picture: bool, export: bool) -> list[str]:
    """Extras of port-deploy that bring what the demo needs and does not find."""

    def absent(*libraries: str) -> bool:
        return any(find_spec(name) is None for name in libraries)

    needed = {
        "export": export and absent("torch", "onnx", "onnxscript"),
        "tensorrt" if gpus() else "tensorrt-rtx": export and absent("tensorrt") and absent("tensorrt_rtx"),
        "viz": picture and absent("matplotlib", "skimage"),
    }
    return [extra for extra, lacking in needed.items() if lacking]


def _check_libraries(options: Any) -> None:
    picture, export = not options.no_picture, not options.no_export
    if extras := missing_extras(picture, export):
        leave_out = " ".join(
            flag
            for flag, lacking in (
                ("--no-picture", missing_extras(picture, False)),
                ("--no-export", missing_extras(False, export)),
            )
            if lacking
        )
        raise BackendUnavailableError(
            "the demo needs libraries that are not installed: "
            f'pip install "port-deploy[{",".join(extras)}]", or run it with {leave_out}'
        )


def _demo(options: Any) -> tuple[int, dict[str, Any]]:
    output = Path(options.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: choose a folder with -o")
    check_writable(output / PICTURE)
    _check_libraries(options)
    kept = detectors(load_model(options.model).spec)
    setting = SETTING if SETTING in kept else None
    refiner = Refiner.load(options.model, backend=options.backend, detector=setting)
    decoder = Refiner.load(options.model, backend=options.backend, threshold=0.0, refine="masked")
    spec = refiner.model
    sample = load_sample(spec.skeleton)
    cases = run_cases(sample, refiner, decoder)
    latency = latency_us(refiner, sample)

    print(f"Real heatmaps of two photographs; in each, an {PATCH_PX}-pixel patch hides one joint from the detector.")
    print(
        f"model {spec.name}{f', setting {setting}' if setting else ''}, δ = {refiner.threshold:g}, "
        f"refine {spec.refine}, on {refiner.backend}\n"
        f"licence of its weights: {spec.licence}\n"
    )
    header = ("photograph", "hidden joint", "confidence", "off before, px", "off after, px", "masked and rebuilt")
    print(table([_row(case) for case in cases], header))
    print(f"\nheatmaps to refined joints, one person: {latency:.0f} µs median on {processor_name()}")

    facts: dict[str, Any] = {
        "model": spec.name,
        "backend": refiner.backend.name,
        "threshold": refiner.threshold,
        "latency_us": latency,
        "cases": [case.to_json() for case in cases],
    }
    failed = [case for case in cases if not case.after_px < case.before_px]
    for case in failed:
        print(f"FAILED: the {case.joint} of {case.photo} did not end nearer to its place", file=sys.stderr)
    code = 1 if failed else 0
    if not options.no_picture:
        picture = Path(options.picture) if options.picture else output / PICTURE
        draw_before_after(cases, picture)
        print(f"picture: {picture}")
        facts["picture"] = str(picture)
    if not options.no_export:
        exported = _export(options.model, output, sample.heatmaps.shape[2:])
        facts["export_exit_code"] = exported
        code = code or exported
    return code, facts


def _row(case: Case) -> tuple[str, ...]:
    confidence = f"{case.truth_confidence[case.hidden]:.2f} → {case.confidence[case.hidden]:.2f}"
    return (
        case.photo,
        case.joint,
        confidence,
        f"{case.before_px:.1f}",
        f"{case.after_px:.1f}",
        case.masked_in_words(),
    )


def _export(model: str, output: Path, heatmap: tuple[int, ...]) -> int:
    """What ``port-export MODEL --trt -o DIR`` does for this detector's heatmaps, with a word on what came of it."""
    from port_deploy.cli.export import main as export  # needs PyTorch, which decoding and refining do not

    where = "TensorRT" if gpus() else "TensorRT-RTX, which builds engines on a machine without a GPU"
    arguments = [model, "--trt", "--heatmap-size", ",".join(map(str, heatmap)), "-o", str(output)]
    print(f"\nport-export {' '.join(arguments)}\n({where})", flush=True)
    code = export(arguments)
    if code == 0:
        print(
            f"The engine and its sidecar lie in {output}. On a machine with a GPU that it was built for:\n"
            f'    port_deploy.Refiner.load("{output / Path(model).stem}.engine")'
        )
    else:
        print(f"the export ended with exit code {code}: its message above says why", file=sys.stderr)
    return code
