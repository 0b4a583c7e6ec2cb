# SPDX-License-Identifier: Apache-2.0
"""The cards of the bundled models that benchmarks/train_models.py trains: port_deploy/data/models/NAME.md.

    python benchmarks/cards.py DATA [NAME ...]     writes them; DATA is the folder of the research data
    python benchmarks/cards.py DATA --check        exit code 1 if one says something else

All figures come from the model file and from scoring it here; what a figure cannot say stands in card_texts.py.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from card_texts import HIDDEN, NOTES, REAL, SEEN_BODIES, SEEN_HANDS, SOURCES, STEPPED, UNLIMITED, VIEWS
from train_models import RECIPES

from port_deploy.baselines import LinearCompletion, neighbour_mean
from port_deploy.calibration import KEY, calibrated, detectors
from port_deploy.cli.common import Parser, run, say
from port_deploy.errors import InputError
from port_deploy.evaluate import Evaluation, evaluate
from port_deploy.files import write_text
from port_deploy.nn.data import DataSpec
from port_deploy.nn.simulate import simulate
from port_deploy.predictions import load_poses, load_predictions
from port_deploy.refiner import Refiner
from port_deploy.weights import Model, bundled_models, load_model

KINDS = {3: "conditioned on confidence (`soft`)", 2: "the paper's own kind (`paper`: mask embedding, eq. (12))"}
"""By the network's inputs of a joint."""
FOLDER = Path(__file__).resolve().parents[1] / "port_deploy" / "data" / "models"


def card(name: str, data: Path) -> str:
    """The card of a bundled model."""
    model = load_model(name)
    spec, config = model.spec, model.spec.config
    what = "every joint corrected" if spec.refine == "all" else f"masked joints corrected by {spec.fusion:g} of the way"
    if spec.refine == "masked" and spec.fusion == 1:
        what = "masked joints replaced"
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "<!-- written by benchmarks/cards.py -->",
        f"# {name}",
        "",
        f"{spec.joints} joints (`{spec.skeleton.name}`), {KINDS[config.input_channels]}, {what} "
        f'(`refine="{spec.refine}"`). {config.parameter_count():,} parameters, K = '
        f"{{{', '.join(map(str, config.hops))}}}, frame `{spec.frame}`, {len(model.data) / 1e6:.1f} MB as float16.",
        "",
        "## Licence",
        "",
        f"Weights: {spec.licence}. Code: Apache-2.0.",
        "",
        "## Training",
        "",
        *_data(model),
        "",
        *_history(model),
        "",
        "## Held-out data, simulated detector",
        "",
        *_held_out(model),
    ]
    lines += ["", *_occluded(model, data)]
    for title, part in (("Real detectors (not trained on)", _real(model, data)), ("Settings", _settings(model))):
        lines += ["", f"## {title}", "", *part]
    lines += ["", "## Limits", "", *(f"- {note}" for note in NOTES[name])]
    return "\n".join(lines) + "\n"


def _history(model: Model) -> list[str]:
    """How it was trained, and the command that trains it."""
    name, recipe = model.spec.name, RECIPES[model.spec.name]
    start = f", starting from `{recipe.start}`" if recipe.start else ", from random weights"
    views = f"{recipe.epochs * 51_200:,} random views from a simulated detector{start}"
    variance = " Then the variance alone." if model.spec.config.variance else ""
    steps = "Its steps were run one by one; one command, seed 0, runs them all" if name in STEPPED else "Seed 0"
    told = (
        f"{views}; the best epoch by held-out data.{variance} PyTorch {model.spec.training['torch']}, one thread; "
        f"another version, processor or thread count gives other last digits. {steps}:"
    )
    return [told, "", "```", f"python benchmarks/train_models.py {name} DATA -o runs", "```"]


def _data(model: Model) -> list[str]:
    lines = [
        "| file | what | poses | held out | weight | licence at its source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for facts in model.spec.training["data"]:
        what, licence = SOURCES[facts["file"]]
        if facts.get("ignored_joints"):
            what += "; without " + ", ".join(facts["ignored_joints"])
        if facts.get("face"):
            what += "; face simulated"
        held = f"{facts['held_out']:,} ({facts['split']})"
        lines.append(f"| {facts['file']} | {what} | {facts['poses']:,} | {held} | {facts['weight']:g} | {licence} |")
    return lines


def _held_out(model: Model) -> list[str]:
    metrics = model.spec.metrics
    soft = model.spec.config.input_channels == 3
    options = RECIPES[model.spec.name].options
    delta = options[options.index("--threshold") + 1]
    groups = ("masked", "visible")[: 2 if soft else 1]
    lines = [
        "Mean error in per cent of the pose's size (root-mean-square coordinate), fusion 1"
        f"{', every joint corrected' if soft else ''}. Hidden: confidence below {delta}, δ of the training.",
        "",
        f"| source | {' | '.join(f'{h}: detector | {h}: + PORT' for h in ('hidden', 'seen')[: len(groups)])} |",
        "| --- |" + " ---: |" * (2 * len(groups)),
    ]
    for name, s in metrics["held_out"]["sources"].items():
        figures = (s[f"{who}_{group}"] for group in groups for who in ("detector", "error"))
        lines.append(f"| {name} | " + " | ".join(f"{v:.1f}" for v in figures) + " |")
    if "held_out_variance" in metrics:
        which = ("masked", "visible") if model.spec.refine == "all" else ("masked",)
        heads = [f"{h}: {k}σ" for h in ("hidden", "seen")[: len(which)] for k in ("", "2 ")]
        lines += [
            "",
            "Predicted standard deviation: per cent of the changed joints that lie within σ and 2 σ of where it "
            "puts them (an isotropic Gaussian: 39 and 86).",
            "",
            f"| source | {' | '.join(heads)} |",
            "| --- |" + " ---: |" * len(heads),
        ]
        for name, s in metrics["held_out_variance"]["sources"].items():
            figures = (s[f"within_{k}_{w}"] for w in which for k in (1, 2))
            lines.append(f"| {name} | " + " | ".join(f"{v:.0f}" for v in figures) + " |")
    return lines


def _real(model: Model, data: Path) -> list[str]:
    lines = [
        "Pixels; joints found by name. A setting of the detector's own was chosen by cross-validation: scored on folds "
        "left out.",
        "",
        "| detector | setting | EPE root | EPE | P-EPE | P-EPE as in the paper | EPE below δ | change of EPE, 95 % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    skeleton = model.spec.skeleton
    for file, what, pred, conf in REAL[skeleton.name]:
        predictions = load_predictions(data / f"{file}.npz", skeleton, pred, conf)
        for setting in (None, *(d for d in detectors(model.spec) if d == "reconstruct")):
            chosen = calibrated(model, setting) if setting else model
            lines.append(
                f"| {what} | {setting or 'as shipped'} | {_row(evaluate(Refiner.load(chosen), predictions))} |"
            )
    for name in detectors(model.spec):
        entry = model.spec.metrics[KEY][name]
        if name != "simulated" and "held_out" in entry:
            pairs = (entry["held_out"].get(m) for m in ("epe_root", "epe", "p_epe", "p_epe_paper"))
            cells = " | ".join(f"{p[0]:.2f} → {p[1]:.2f}" if p else "–" for p in pairs)
            lines.append(f"| {name} | its own | {cells} | – | {entry['poses']:,} poses |")
    seen = SEEN_HANDS if skeleton.name == "hand21" else SEEN_BODIES
    return [*lines, "", seen]


def _occluded(model: Model, data: Path) -> list[str]:
    """Held-out poses with a simulated detector: joints really hidden, before and after, beside two baselines."""
    skeleton = model.spec.skeleton
    hand = skeleton.name == "hand21"
    chosen = model if hand else calibrated(model, "reconstruct")
    setting = "as shipped" if hand else "reconstruct"
    lines = [
        f"`port-simulate`, {VIEWS:,} held-out views, pixels of a 256-pixel picture; the joints "
        + ("below confidence 0.3" if hand else "that 30-pixel patches hide (the paper's H36M_masked)")
        + f"; setting: {setting}. The baselines rebuild the joints below δ from the others.",
        "",
        "| poses | detector | + PORT | change | + mean of the neighbours | + linear completion (PCA) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for file, what, held in HIDDEN["hand21" if hand else "body"]:
        face = ":face" if skeleton.name == "coco17" else ""
        arrays = simulate(DataSpec.parse(f"{data / file}:1{face}"), skeleton, held, VIEWS, not hand)
        truth, found, confidence = (np.asarray(arrays[k], np.float32) for k in ("joints", "pred", "conf"))
        low = confidence < (0.3 if hand else chosen.spec.threshold)
        answers = {
            "detector": found,
            "port": Refiner.load(chosen).refine(found, confidence).joints,
            "neighbours": neighbour_mean(skeleton, found, low),
        }
        with contextlib.suppress(InputError):  # poses without every joint: no linear completion
            answers["linear"] = LinearCompletion(load_poses(data / file, skeleton))(found, low)
        for group, which in ({"": low} if hand else {", under patches": arrays["patched"], ", below δ": low}).items():
            scored = which & arrays["labelled"] & np.isfinite(found).all(-1)
            errors = {k: float(np.linalg.norm(v - truth, axis=-1)[scored].mean()) for k, v in answers.items()}
            cells = {
                k: f"{errors[k]:.2f}" if k in errors else "–" for k in ("detector", "port", "neighbours", "linear")
            }
            change = f"{100 * (errors['port'] / errors['detector'] - 1):+.0f} %"
            before, after, *baselines = cells.values()
            lines.append(f"| {what}{group} | {before} | {after} | {change} | {' | '.join(baselines)} |")
    if not hand and chosen.spec.max_masked == chosen.spec.joints:
        lines += ["", UNLIMITED]
    return lines


def _row(result: Evaluation) -> str:
    pairs = []
    for measure in ("epe_root", "epe", "p_epe", "p_epe_paper", "epe_masked"):
        before, after = getattr(result.detector, measure), getattr(result.refined, measure)
        pairs.append(f"{before:.2f} → {after:.2f}" if before == before else "–")
    return " | ".join([*pairs, f"{result.epe_change:+.2f} ± {result.epe_change_95:.2f}"])


def _settings(model: Model) -> list[str]:
    spec = model.spec
    scale = f" Confidence is divided by {spec.confidence_divisor:g} and clipped before the network reads it."
    if spec.config.input_channels < 3:
        scale = ""
    lines = [
        f"As shipped: δ = {spec.threshold:g}, {spec.threshold_source or 'set by hand'}.{scale} Left alone: poses with "
        f"fewer than {spec.min_visible} visible or more than {spec.max_masked} masked joints.",
    ]
    entries: dict[str, Any] = dict(spec.metrics.get(KEY, {}))
    if entries:
        lines += ["", "By name (`Refiner.load(…, detector=NAME)`):", ""]
        lines += [
            "| name | δ | joints | at most masked | fusion | confidence over | std times | how it was chosen |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, e in sorted(entries.items()):
            over = f"{e['confidence_divisor']:g}" if spec.config.input_channels == 3 else "–"
            scale = f"{e['std_scale']:.3g}" if "std_scale" in e else "–"
            values = f"{e['threshold']:g} | {e['refine']} | {e['max_masked']} | {e['fusion']:g} | {over} | {scale}"
            lines.append(f"| `{name}` | {values} | {e['source']} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    return run(command, argv)


def command(argv: list[str] | None) -> int:
    p = Parser(prog="cards.py", description="Write the cards of the bundled models.")
    p.add_argument("data", type=Path, help="folder of the research data")
    p.add_argument("names", nargs="*", help="models; else all that are bundled and have a recipe")
    p.add_argument("--check", action="store_true", help="write nothing; 1 if a card says something else")
    options = p.parse_args(argv)
    names = options.names or [n for n in bundled_models() if n in RECIPES]
    wrong = []
    for name in names:
        if name not in RECIPES or name not in bundled_models():
            raise InputError(f"no bundled model {name!r} with a recipe: use {', '.join(RECIPES)}")
        text, path = card(name, options.data), FOLDER / f"{name}.md"
        if not options.check:
            write_text(path, text)
            say(f"{path} written")
        elif path.read_text("utf-8") != text:
            wrong.append(name)
    if wrong:
        say(f"out of date: {', '.join(wrong)}: python benchmarks/cards.py DATA writes them")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
