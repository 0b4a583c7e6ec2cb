# SPDX-License-Identifier: Apache-2.0
"""port-calibrate: δ, reach and fusion for one detector, kept in the model file.

May use: calibrate, calibration, predictions, curves, weights, errors, cli.common. Test: tests/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from port_deploy.calibrate import Calibration, calibrate, from_scores
from port_deploy.calibrate_trials import MEASURES
from port_deploy.calibration import with_calibration
from port_deploy.cli.common import Parser, print_json, run, table
from port_deploy.curves import draw_calibration
from port_deploy.errors import InputError
from port_deploy.files import check_writable, write_bytes
from port_deploy.predictions import load_predictions, load_scores
from port_deploy.reliability import EXPECTED
from port_deploy.weights import load_model

if TYPE_CHECKING:
    from argparse import ArgumentParser

EPILOG = (
    "With labels, cross-validation chooses among percentiles of the detector's scores, and refinement stays off where "
    "it would do harm. Afterwards: Refiner.load(FILE, detector=NAME), port-eval --detector NAME."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-calibrate."""
    return run(_command, argv)


def parser() -> ArgumentParser:
    """The options."""
    options = Parser(
        prog="port-calibrate", description="Choose δ, reach and fusion for a detector, and keep them.", epilog=EPILOG
    )
    options.add_argument(
        "file", metavar="FILE.npz", help="predictions as port-eval takes them; labels for the best choice"
    )
    options.add_argument("--model", required=True, help="bundled name or .safetensors file")
    options.add_argument("--detector", required=True, metavar="NAME", help="what the setting is kept under")
    options.add_argument(
        "-o", "--output", type=Path, metavar="FILE.safetensors", help="the model with the setting in it"
    )
    options.add_argument("--default", action="store_true", help="also make it the model's own setting")
    options.add_argument("--unlabelled", action="store_true", help="read no labels: δ is a percentile of the scores")
    options.add_argument("--percentile", type=float, default=10.0, help="of --unlabelled: per cent of joints below δ")
    options.add_argument("--folds", type=int, default=5, help="parts of the cross-validation")
    options.add_argument("--seed", type=int, default=0, help="of the split into parts")
    options.add_argument("--pred", default="pred", metavar="ARRAY", help="array of the predictions")
    options.add_argument("--conf", default="conf", metavar="ARRAY", help="array of the confidence")
    options.add_argument("--plot", metavar="PICTURE", help="write the change of the error over δ, and the scores")
    options.add_argument("--threads", type=int, default=0, help="0: one per processor")
    options.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return options


def _command(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    model = load_model(options.model)
    if options.output:
        if options.output.suffix != ".safetensors":
            raise InputError(f"expected the output to be a .safetensors file, got {str(options.output)!r}")
        check_writable(options.output)
    if options.seed < 0:
        raise InputError(f"expected --seed of at least 0, got {options.seed}")
    skeleton = model.spec.skeleton
    if options.unlabelled:
        scores = load_scores(options.file, skeleton, options.pred, options.conf)
        found = from_scores(model, scores, options.percentile)
    else:
        predictions = load_predictions(options.file, skeleton, options.pred, options.conf)
        scores = predictions.confidence
        found = calibrate(model, predictions, options.folds, options.seed, options.threads)
    changed = with_calibration(model, options.detector, found.setting, found.facts(), options.default)
    if options.plot:
        draw_calibration(found, scores, options.plot, f"{model.spec.name} behind {options.detector}")
    if options.output:
        write_bytes(options.output, changed.data)
    if options.json:
        chosen = found.setting.to_json(model.spec.config.variance)
        print_json({"model": model.spec.name, "detector": options.detector, **chosen, **found.facts()})
        return 0
    print(f"{model.spec.name} behind {options.detector}: {found.setting}\n{found.source}")
    if found.after:
        print("\n" + _figures(found))
    if found.std:
        print("\n" + _spread(found))
    if not found.kept:
        print("\nno setting was found that does no harm: refinement is off for this detector")
    if options.output:
        load = (
            f'Refiner.load("{options.output}"' + ("" if options.default else f', detector="{options.detector}"') + ")"
        )
        print(f"\nkept in {options.output}: {load}")
    return 0


def _figures(found: Calibration) -> str:
    labels = ("EPE", "EPE, relative to the root", "P-EPE", "P-EPE, the paper's way")
    rows = []
    for label, measure in zip(labels, MEASURES, strict=True):
        before, after = found.before[measure], found.after[measure]
        if before == before:
            half = f"± {found.change_95:.2f}" if measure == "epe" else ""
            rows.append((label, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f} {half}".rstrip()))
    return table(rows, ("px, on poses left out of the choice", "detector", "+ PORT", "change"))


def _spread(found: Calibration) -> str:
    if "within" not in found.std:
        return f"standard deviations: {found.std['joints']} repaired joints have a label, too few for a scale"
    labels = {"raw": "as the network says", "held_out": f"times {found.setting.std_scale:.3g}, held out"}
    rows = [(label, *(f"{v:.1%}" for v in found.std["within"][key])) for key, label in labels.items()]
    rows.append(("an isotropic Gaussian has", *(f"{v:.1%}" for v in EXPECTED)))
    return table(rows, (f"standard deviations of {found.std['joints']:,} repaired joints", "within σ", "within 2 σ"))
