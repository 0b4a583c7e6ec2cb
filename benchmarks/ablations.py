# SPDX-License-Identifier: Apache-2.0
"""Table III and its like: what each choice of the network and of its training is worth, with seeds and their spread.

    python benchmarks/ablations.py DATA            trains what is not in the JSON yet, rewrites ABLATIONS.md
    python benchmarks/ablations.py --render        rewrites ABLATIONS.md from the JSON

DATA is the folder of the research data, which is no part of the project. Every run is short, all alike but for the one
choice, and is stored as soon as it is done; the seeds come round by round, so that a stopped run leaves whole rounds.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from port_deploy.bench.machine import commit
from port_deploy.cli.common import Parser, run, say
from port_deploy.cli.train import main as train
from port_deploy.errors import InputError, PortError
from port_deploy.evaluate import evaluate
from port_deploy.files import write_text
from port_deploy.predictions import load_predictions
from port_deploy.refiner import Refiner

HERE = Path(__file__).resolve().parent
RESULT, DOCUMENT = HERE / "ablations.json", HERE / "ABLATIONS.md"
DATA = (
    *("--data", "mano_scans_hand21.npz:1", "--data", "signlex_mediapipe_hand21.npz:0.5"),
    *("--data", "gesturecsv_mediapipe_hand21.npz:0.3", "--data", "fphb_hand21.npz:0.15", "--hold-out", "subject=6"),
)
SCORED = "panoptic_dev_hand21"
"""The detector's answers that are scored; nothing is chosen by them."""
THRESHOLD = 0.15
VIEWS = 204_800
RECIPE = (
    *("--skeleton", "hand21", "--optimiser", "muon", "--lr", "4e-3", "--batch", "128", "--average", "0.995"),
    *("--precision", "bf16", "--threads", "1", "--epochs", "4", "--epoch-poses", str(VIEWS // 4)),
    *("--threshold", str(THRESHOLD), "--max-masked", "15"),
)
PAPER = ("--kind", "paper")


def hops(*powers: int) -> tuple[str, ...]:
    """Options for K."""
    return (*PAPER, "--config", f"hops={list(powers)}")


GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Projection (Table III a)": {
        "Linear": hops(0),
        "K = {1}": hops(1),
        "K = {2}": hops(2),
        "K = {3}": hops(3),
        "K = {1, 2}": PAPER,
        "K = {1, 3}": hops(1, 3),
        "K = {2, 3}": hops(2, 3),
        "K = {1, 2, 3}": hops(1, 2, 3),
    },
    "Masking ratio (Table III b)": {
        "10 %": (*PAPER, "--mask-ratio", "0.1"),
        "20 %": (*PAPER, "--mask-ratio", "0.2"),
        "30 %": (*PAPER, "--mask-ratio", "0.3"),
        "40 %": PAPER,
        "50 %": (*PAPER, "--mask-ratio", "0.5"),
        "60 %": (*PAPER, "--mask-ratio", "0.6"),
    },
    "What is masked": {
        "40 % at random": PAPER,
        "what a simulated detector doubts": (*PAPER, "--masking", "simulated"),
    },
    "What reaches the graph of a masked joint": {
        "the detector's coordinates": PAPER,
        "nothing (zeroed)": (*PAPER, "--config", "masked_coordinates=zero"),
    },
    "Frame": {"visible": PAPER, "paper": (*PAPER, "--frame", "paper")},
    "Network": {
        "D = 64, L = 4, heads of 64": PAPER,
        "heads of 16": (*PAPER, "--config", "head_dim=16"),
        "one W for all powers": (*PAPER, "--config", "share_hop_weights=true"),
        "L = 2": (*PAPER, "--config", "layers=2"),
        "L = 6": (*PAPER, "--config", "layers=6"),
        "D = 32": (*PAPER, "--config", "width=32"),
    },
    "Kind": {"paper": PAPER, "soft (every joint refined)": ("--kind", "soft", "--refine", "all")},
}
"""Group -> row -> the options that differ. Rows with the same options are one run."""

NOTES = {
    "Projection (Table III a)": "Without a positional encoding, `Linear` tells no joint from another: every masked "
    "joint of a pose gets the same answer. The paper's way of P-EPE, which aligns the truth to the prediction and so "
    "rewards a shrunken pose, ranks it above the detector all the same; the usual way does not.",
    "Masking ratio (Table III b)": "Held-out poses are masked at the row's own ratio: that column compares within a "
    "row only.",
    "What is masked": "Held-out detections are each row's own too. Simulated, the network also learns to read visible "
    "joints that err.",
}
"""Group -> what its table needs to be read right."""

PUBLISHED = {
    **{"Linear": 7.65, "K = {1}": 7.54, "K = {2}": 7.40, "K = {3}": 7.64, "K = {1, 2}": 7.36, "K = {1, 3}": 7.43},
    **{"K = {2, 3}": 7.38, "K = {1, 2, 3}": 7.39},
    **{"10 %": 7.63, "20 %": 7.57, "30 %": 7.45, "40 %": 7.36, "50 %": 7.39, "60 %": 7.37},
}
"""The paper's P-EPE, trained on Panoptic's own labels, scored on the whole test set."""

COLUMNS = {
    "p_epe_paper": ("P-EPE as in the paper", 3),
    "p_epe": ("P-EPE", 3),
    "epe": ("EPE", 3),
    "held_out": ("held out, masked", 1),
}
"""Figure -> its heading and decimals."""
SCORED_COLUMNS = ("p_epe_paper", "p_epe", "epe")


def runs() -> dict[str, tuple[str, ...]]:
    """Every different set of options, under its options as one string."""
    return {" ".join(options): options for rows in GROUPS.values() for options in rows.values()}


def one(options: Sequence[str], seed: int, data: Path) -> dict[str, Any]:
    """Train and score once.

    Raises:
        PortError: The training failed; its message is shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(data / o) if o.partition(":")[0].endswith(".npz") else o for o in DATA]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = train([*files, *RECIPE, *options, "--seed", str(seed), "--json", "-o", folder])
        if code:
            raise PortError(f"training with {' '.join(options)} failed")
        answer = json.loads(printed.getvalue())
        refiner = Refiner.load(answer["model"])
        scores = evaluate(refiner, load_predictions(data / f"{SCORED}.npz", refiner.model.skeleton))
    git = commit()
    sources = answer["best"]["held_out"]["sources"].values()
    return {
        "seed": seed,
        "commit": f"{git['hash']} with changes" if git["dirty"] else git["hash"],
        "parameters": refiner.model.config.parameter_count(),
        "p_epe_paper": scores.refined.p_epe_paper,
        "p_epe": scores.refined.p_epe,
        "epe": scores.refined.epe,
        "epe_root": scores.refined.epe_root,
        "held_out": mean(s["error_masked"] for s in sources),
        "detector": {c: getattr(scores.detector, c) for c in SCORED_COLUMNS},
    }


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows, one for each variant that has run: what ABLATIONS.md and ``port-eval --report --ablations`` show."""
    rows = []
    for group, variants in GROUPS.items():
        for name, options in variants.items():
            seeds = result["runs"].get(" ".join(options), [])
            if not seeds:
                continue
            row = {"group": group, "variant": name, "seeds": len(seeds)}
            row |= {label: _spread([s[c] for s in seeds], digits) for c, (label, digits) in COLUMNS.items()}
            row |= {"parameters": f"{seeds[0]['parameters'] / 1e6:.2f} M", "the paper's": PUBLISHED.get(name, "–")}
            rows.append(row)
    return rows


def render(result: dict[str, Any]) -> str:
    """ABLATIONS.md from the JSON."""
    detector = next(iter(result["runs"].values()))[0]["detector"]
    commits = dict.fromkeys(s["commit"] for seeds in result["runs"].values() for s in seeds)
    figures = ", ".join(f"{detector[c]:.2f}" for c in SCORED_COLUMNS)
    lines = [
        "# Ablations",
        "",
        "<!-- written by benchmarks/ablations.py -->",
        "",
        f"Short runs of {result['views']:,} views each, all alike but for one choice; mean ± standard deviation over "
        "seeds. P-EPE and EPE in pixels, CMU Panoptic hand test, every second hand (423), MobileNetV2, δ = "
        f"{result['threshold']:g}: detector {figures}. Held out: error of masked joints in per cent of the pose's "
        "size, simulated (`soft` is trained and scored on another simulation, so its figure there stands apart). The "
        "paper's figures come from full trainings on Panoptic's own labels and the whole test set: values do not "
        "compare, and the order need not agree. Nothing was chosen by these tables. "
        f"Commits: {', '.join(commits)}.",
    ]
    rows = result["table"]
    for group in dict.fromkeys(r["group"] for r in rows):
        head = [k for k in rows[0] if k not in ("group", "variant")]
        lines += ["", f"## {group}", ""]
        if group in NOTES:
            lines += [NOTES[group], ""]
        lines += [f"| | {' | '.join(head)} |", "| --- |" + " ---: |" * len(head)]
        lines += [f"| {r['variant']} | {' | '.join(str(r[k]) for k in head)} |" for r in rows if r["group"] == group]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main(argv: list[str] | None = None) -> int:
    return run(command, argv)


def command(argv: list[str] | None) -> int:
    p = Parser(prog="ablations.py", description="Train and score the variants of PORT, with seeds; write the table.")
    p.add_argument("data", type=Path, nargs="?", help="folder of the research data")
    p.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    p.add_argument("--result", type=Path, default=RESULT, help="the JSON; what is in it is not run again")
    p.add_argument("--document", type=Path, default=DOCUMENT, help="the table's file")
    p.add_argument("--render", action="store_true", help="train nothing, write the table from the JSON")
    options = p.parse_args(argv)
    result: dict[str, Any] = {"views": VIEWS, "threshold": THRESHOLD, "runs": {}}
    if options.result.exists():
        result = json.loads(options.result.read_text("utf-8"))
    elif options.render:
        raise InputError(f"no {options.result}: run python benchmarks/ablations.py DATA first")
    if not options.render:
        if options.data is None:
            raise InputError("expected the folder of the research data, or --render")
        for seed in range(options.seeds):
            for name, variant in runs().items():
                stored = result["runs"].setdefault(name, [])
                if any(s["seed"] == seed for s in stored):
                    continue
                say(f"seed {seed}: {name}")
                stored.append(one(variant, seed, options.data))
                result["table"] = table(result)
                write_text(options.result, json.dumps(result, indent=1) + "\n")
    write_text(options.document, render(result))
    say(f"{options.document} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
