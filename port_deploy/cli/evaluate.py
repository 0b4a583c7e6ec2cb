# SPDX-License-Identifier: Apache-2.0
"""port-eval: a detector's predictions before and after PORT.

May use: evaluate, predictions, curves, report, baselines, refiner, errors, cli.common. Test: tests/test_evaluate.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from port_deploy import metrics
from port_deploy.baselines import LinearCompletion
from port_deploy.cli.common import Parser, print_json, run, table
from port_deploy.curves import draw_curves
from port_deploy.errors import InputError
from port_deploy.evaluate import Evaluation, evaluate
from port_deploy.files import check_writable
from port_deploy.predictions import SIZES, Predictions, load_poses, load_predictions
from port_deploy.refiner import Refiner
from port_deploy.report import Entry, write_report
from port_deploy.weights import load_model

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from port_deploy.skeleton import Skeleton

FILE_HELP = (
    "The file holds joints (labels) and pred, [B, M, 2] in pixels, and conf [B, M]. Where present, names [M] match "
    "joints by name, labelled or visible [B, M] says which labels count, and bbox [B, 4] (x, y, width, height), "
    "head_size [B] or image_size [B, 2] give PCK its unit."
)


MARKDOWN_HEADER = (
    "| predictions (poses) | model, δ | EPE to root, px | EPE, px | P-EPE, px | joints below δ, px | change of EPE |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of port-eval."""
    return run(_command, argv)


def parser() -> ArgumentParser:
    """The options."""
    options = Parser(
        prog="port-eval", description="Score a detector's predictions before and after PORT.", epilog=FILE_HELP
    )
    options.add_argument("file", metavar="FILE.npz", nargs="+", help="predictions with labels; several with --report")
    options.add_argument(
        "--model", action="append", required=True,
        help="bundled name, .safetensors, or an exported artefact; with --report it may be repeated",
    )  # fmt: skip
    options.add_argument("--threshold", type=float, help="δ: joints of lower confidence are rebuilt; else the model's")
    options.add_argument("--detector", metavar="NAME", help="use what port-calibrate has kept in the model for it")
    options.add_argument("--refine", choices=("masked", "all"), help="joints that change; else the model's")
    options.add_argument("--backend", default="auto", help="native-cpu, torch, onnxruntime, …")
    options.add_argument("--device", default="auto", help="cpu, cuda or auto")
    options.add_argument("--threads", type=int, default=0, help="0: one per processor")
    options.add_argument("--pred", default="pred", metavar="ARRAY", help="array of the predictions")
    options.add_argument("--conf", default="conf", metavar="ARRAY", help="array of the confidence")
    options.add_argument("--conf-constant", type=float, metavar="X", help="confidence of every joint, if there is none")
    options.add_argument("--pck", type=float, metavar="LIMIT", help="fraction of the size below, or pixels")
    options.add_argument("--pck-of", choices=(*SIZES, "px"), help="what --pck is a fraction of; else what FILE has")
    options.add_argument("--joints", action="store_true", help="also the error of each joint")
    options.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options.add_argument("--markdown", action="store_true", help="a Markdown row, detector → refined, instead")
    options.add_argument("--plot", metavar="PICTURE", help="write the error by confidence and by masked joints")
    report = options.add_argument_group("report: every model on every file that has its joints")
    report.add_argument("--report", type=Path, metavar="FOLDER", help="write index.html and its pictures there")
    report.add_argument(
        "--poses", action="append", default=[], metavar="FILE.npz",
        help="true poses that a linear completion is learnt from, to be held against; may be repeated",
    )  # fmt: skip
    report.add_argument("--ablations", type=Path, metavar="FILE.json", help="rows to show as Table III")
    return options


def _command(argv: Sequence[str] | None) -> int:
    options = parser().parse_args(argv)
    for name in ("conf_constant", "pck"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"expected --{name.replace('_', '-')} to be a finite number of at least 0, got {value!r}")
    if options.report:
        return _report(options)
    if len(options.file) + len(options.model) > 2:
        raise InputError("expected one file and one model: --report takes several")
    options.file, options.model = options.file[0], options.model[0]
    refiner, predictions, result = _evaluate(options, options.file, options.model)
    spec = refiner.model
    title = f"{options.file} · {spec.name} ({spec.refine}) · δ = {result.threshold:g}"
    if options.plot:
        draw_curves(result, options.plot, title)
    if options.json:
        named = {"file": options.file, "model": spec.name, "refine": spec.refine, "backend": refiner.backend.name}
        print_json(
            {**named, **result.to_json(), "absent": predictions.absent, "joints": _joints(result, spec.skeleton.names)}
        )
        return 0
    if options.markdown:
        print("\n".join((*MARKDOWN_HEADER, markdown_row(options.file, spec.name, result, options.pred, options.conf))))
        return 0
    where = f"{refiner.backend.name} ({refiner.backend.detail})"
    print(f"{options.file} · model {spec.name}, refine {spec.refine}, on {where}")
    source = "from the command line" if options.threshold is not None else spec.threshold_source
    print(
        f"{result.samples:,} poses, {result.scored:,} joints scored, {result.masked_fraction:.1%} of them below "
        f"δ = {result.threshold:g}; {result.left_alone:,} poses left alone by the model's rules\nδ: {source}"
    )
    if predictions.absent:
        print(f"not in the file, given as missing and not scored: {', '.join(predictions.absent)}")
    print("\n" + _figures(result, spec.skeleton.names[spec.skeleton.root]))
    low, high = result.epe_change - result.epe_change_95, result.epe_change + result.epe_change_95
    print(f"\nEPE changed by {result.epe_change:+.3f} px; 95 % interval over poses {low:+.3f} to {high:+.3f}")
    if not math.isnan(result.nearer):
        print(f"of the joints that changed, {result.nearer:.1%} ended nearer to their label")
    if result.missing:
        print(
            f"{result.missing:,} joints that the detector gave no position for: rebuilt {result.missing_epe:.2f} px off"
        )
    if result.reliability is not None:
        print(f"standard deviations of {result.reliability.joints:,} repaired joints: {result.reliability}")
    if options.joints:
        print("\n" + _joint_table(result, spec.skeleton.names))
    if options.plot:
        print(f"\nplot: {options.plot}")
    return 0


def _evaluate(options: Namespace, file: str, model: str) -> tuple[Refiner, Predictions, Evaluation]:
    refiner = Refiner.load(
        model,
        device=options.device,
        backend=options.backend,
        threshold=options.threshold,
        threads=options.threads,
        refine=options.refine,
        detector=options.detector,
    )
    predictions = load_predictions(file, refiner.model.skeleton, options.pred, options.conf, options.conf_constant)
    return refiner, predictions, evaluate(refiner, predictions, options.pck_of, options.pck)


def _report(options: Namespace) -> int:
    """Every model on every file that has its joints, as a page."""
    models = [load_model(name) for name in options.model]
    ablations = _ablations(options.ablations) if options.ablations else []
    check_writable(options.report / "index.html")
    entries = []
    for file in options.file:
        skipped: list[str] = []
        for name, model in zip(options.model, models, strict=True):
            try:
                load_predictions(file, model.spec.skeleton, options.pred, options.conf, options.conf_constant)
            except InputError as error:
                skipped.append(str(error))
                continue
            refiner, _, result = _evaluate(options, file, name)
            completion = _completion(options.poses, refiner.model.skeleton)
            changed = replace(model, spec=refiner.model)
            entries.append(Entry(Path(file).stem, changed, result, completion))
        if len(skipped) == len(models):
            raise InputError(skipped[0])
    page = write_report(entries, options.report, ablations)
    if options.json:
        every = [{"file": e.data, "model": e.model.spec.name, **e.result.to_json()} for e in entries]
        print_json({"report": str(page), "entries": every})
        return 0
    print("\n".join((*MARKDOWN_HEADER, *(markdown_row(e.data, e.model.spec.name, e.result) for e in entries))))
    print(f"\nreport: {page}")
    return 0


def _completion(files: Sequence[str], skeleton: Skeleton) -> LinearCompletion | None:
    """The linear baseline for a skeleton, from the files that have all its joints."""
    found = []
    for file in files:
        try:
            found.append(load_poses(file, skeleton))
        except InputError as error:
            if "is not a usable" in str(error) or "cannot read" in str(error):
                raise
    return LinearCompletion(np.concatenate(found)) if found else None


def _ablations(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if isinstance(rows, dict):
        rows = rows.get("table")  # as benchmarks/ablations.py writes them
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise InputError(f"{path}: expected a list of rows, each an object")
    return rows


def markdown_row(file: str, model: str, result: Evaluation, pred: str = "pred", conf: str = "conf") -> str:
    """One evaluation as a row under MARKDOWN_HEADER: detector → refined, and the change with its 95 % interval.

    Arrays that have not the usual name are named: ``FILE pred_b by visible``.
    """
    pairs = (
        f"{_number(getattr(result.detector, name))} → {_number(getattr(result.refined, name))}"
        for name in ("epe_root", "epe", "p_epe", "epe_masked")
    )
    change = f"{result.epe_change:+.2f} ± {result.epe_change_95:.2f}"
    arrays = (f" {pred}" if pred != "pred" else "") + (f" by {conf}" if conf != "conf" else "")
    head = (f"{Path(file).stem}{arrays} ({result.samples:,})", f"`{model}`, {result.threshold:g}")
    return "| " + " | ".join((*head, *pairs, change)) + " |"


def _figures(result: Evaluation, root: str) -> str:
    unit = "px" if result.pck_of == "px" else f" {result.pck_of}"
    labels = {
        "epe_root": f"EPE, relative to {root}",
        "epe": "EPE",
        "p_epe": "P-EPE",
        "p_epe_paper": "P-EPE, the paper's way",
        "epe_masked": "EPE, joints below δ",
        "epe_untouched": "EPE, the other joints",
        "pck": f"PCK@{result.pck_limit:g}{unit}, %",
        "auc": f"AUC to {result.pck_limit:g}{unit}, %",
    }
    rows = []
    for name, label in labels.items():
        scale = 100 if name in ("pck", "auc") else 1
        before, after = (scale * getattr(side, name) for side in (result.detector, result.refined))
        rows.append((label, _number(before), _number(after), _number(after - before, "+.2f")))
    return table(rows, ("px unless said otherwise", "detector", "+ PORT", "change"))


def _joints(result: Evaluation, names: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "detector": metrics.mean(result.errors_before[:, j]),
            "refined": metrics.mean(result.errors_after[:, j]),
            "scored": int(np.isfinite(result.errors_before[:, j]).sum()),
        }
        for j, name in enumerate(names)
    }


def _joint_table(result: Evaluation, names: Sequence[str]) -> str:
    rows = [
        (
            name,
            int(v["scored"]),
            _number(v["detector"]),
            _number(v["refined"]),
            _number(v["refined"] - v["detector"], "+.2f"),
        )
        for name, v in _joints(result, names).items()
        if v["scored"]
    ]
    return table(rows, ("EPE, px", "scored", "detector", "+ PORT", "change"))


def _number(value: float, form: str = ".2f") -> str:
    return "–" if math.isnan(value) else format(value, form)
